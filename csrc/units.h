// Units of variables and rows by the exponents of their entries: Σ (exponent + u_a + u_b)² is least (Curtis and Reid 1972).
// Problems that differ by powers of two in the units of variables, rows and objective get the same scaled data.
#pragma once
#include <vector>

namespace optlayer {

struct Meeting { int a, b, exponent; };  // of two unknowns (twice the same one on the diagonal of Q) in an entry that is not zero

// Exponents of the units, `count` of them, each rounded.
std::vector<int> natural_units(int count, const std::vector<Meeting>& meetings);

}  // namespace optlayer

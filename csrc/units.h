// Natural units of a problem, by the exponents of its data, whatever units it comes in: problems that differ by powers of two in
// the units of variables, rows and objective get the same scaled data.
#pragma once
#include <cmath>
#include <vector>

namespace optlayer {

inline bool is_entry(double x) { return x != 0 && std::isfinite(x); }

struct Meeting { int a, b, exponent; };  // of two unknowns (twice the same one on the diagonal of Q) in an entry that is not zero

class NaturalUnits {
  public:
    // Unknowns: the variables, then the rows. Their exponents u make Σ (exponent + u_a + u_b)² least (Curtis and Reid 1972); where
    // none is larger than `near`, or that is known (not `far`), they are zero.
    NaturalUnits(int variables, int rows, const std::vector<Meeting>& meetings, int near = 0, bool far = true);
    // That leaves a choice, of each part of the problem that no curvature holds: its costs are like those of the others, or are
    // left as they are where these are near.
    std::vector<int> exponents(const double* q) const;
    // Where there is no curvature, the scale of all variables stays open: the sides, in the units found, are then of size one.
    void scale_to(const std::vector<int>& sides, std::vector<int>& found) const;
    bool flat() const { return curvature_ == none; }
    // And of the objective, in the units found: its typical curvature is 1, or without any its typical cost.
    int objective(const double* q, const std::vector<int>& found) const;

  private:
    static constexpr int none = -(1 << 30);
    int variables_, near_, curvature_ = none;  // the exponent of a typical one
    std::vector<int> exponents_, part_;  // part_: an unknown that stands for all that entries connect
    std::vector<bool> curved_;           // of those

    void fit(const std::vector<Meeting>& meetings);
    void connect(const std::vector<Meeting>& meetings);
};

}  // namespace optlayer

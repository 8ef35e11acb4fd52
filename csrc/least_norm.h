#pragma once

namespace optlayer {

// x of least norm among those of least |K x − b|, K symmetric, n×n; directions along which K is less than `zero` of its largest
// pivot are none. False: K and b determine more of x than double precision finds.
bool least_norm(int n, const double* K, const double* b, double zero, double* x);

}  // namespace optlayer

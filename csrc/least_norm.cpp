#include "least_norm.h"

#include <Eigen/QR>

namespace optlayer {

bool least_norm(int n, const double* K_, const double* b_, double zero, double* x_) {
    const Eigen::Map<const Eigen::MatrixXd> K(K_, n, n);
    const Eigen::Map<const Eigen::VectorXd> b(b_, n);
    Eigen::Map<Eigen::VectorXd> x(x_, n);
    Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> factor;
    factor.setThreshold(zero);
    factor.compute(K);
    x = factor.solve(b);
    x += factor.solve(b - K * x);  // one step of refinement
    // What is left lies across the range of K, which for a symmetric K is where K is zero.
    const Eigen::VectorXd left = b - K * x;
    const double across = (K * left).lpNorm<Eigen::Infinity>(), size = b.lpNorm<Eigen::Infinity>();
    return across <= (1e-9 + 10 * zero) * size;
}

}  // namespace optlayer

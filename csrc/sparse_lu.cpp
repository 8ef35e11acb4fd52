#include "sparse_lu.h"

#include <limits>
#include <vector>

#include <Eigen/OrderingMethods>
#include <Eigen/SparseLU>

namespace optlayer {

// Share of the largest entry of its column from which a diagonal entry is the pivot: so small that the order mostly stays, and
// with it the fill (0.6 of the time of full pivoting in an order of its own).
constexpr double pivot_share = 0.01;

struct SparseLu::Factor {
    Eigen::SparseLU<Eigen::SparseMatrix<double>, Eigen::NaturalOrdering<int>> lu;
};

// Positions are those of the elimination order; the plan knows where in a panel each entry lies.
void SparseLu::factor(const double* values, const double* diagonal, const double*) {
    const LdlPlan& p = *plan_;
    std::vector<Eigen::Triplet<double>> entries;
    for (int i = 0; i < p.size; ++i) entries.emplace_back(i, i, diagonal[i]);
    for (int s = 0; s < p.supernodes; ++s) {
        const int columns = p.columns(s), height = columns + p.below(s);
        for (int e = p.entries_at[s]; e < p.entries_at[s + 1]; ++e) {
            const int at = p.place[e] % height, column = p.first[s] + p.place[e] / height;
            const int row = at < columns ? p.first[s] + at : p.rows[p.rows_at[s] + at - columns];
            entries.emplace_back(row, column, values[p.entry[e]]), entries.emplace_back(column, row, values[p.entry[e]]);
        }
    }
    Eigen::SparseMatrix<double> K(p.size, p.size);
    K.setFromTriplets(entries.begin(), entries.end());
    factor_ = std::make_shared<Factor>();
    factor_->lu.isSymmetric(true), factor_->lu.setPivotThreshold(pivot_share);
    factor_->lu.compute(K);
}

void SparseLu::solve(double* x_) const {
    Eigen::Map<Eigen::VectorXd> x(x_, plan_->size);
    if (factor_->lu.info() == Eigen::Success) x = factor_->lu.solve(x).eval();
    else x.setConstant(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace optlayer

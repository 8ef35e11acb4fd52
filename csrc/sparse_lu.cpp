#include "sparse_lu.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <Eigen/OrderingMethods>
#include <Eigen/SparseLU>

namespace optlayer {

struct SparseLu::Factor {
    using Matrix = Eigen::SparseMatrix<double>;
    Matrix K;
    Eigen::SparseLU<Matrix, Eigen::NaturalOrdering<int>> lu;
    bool sound = false;

    // Positions are those of the elimination order; the plan knows where in a panel each entry lies.
    Factor(const LdlPlan& p, const double* values, const double* diagonal) : K(p.size, p.size) {
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
        K.setFromTriplets(entries.begin(), entries.end());
        lu.isSymmetric(true), lu.setPivotThreshold(0.01);
        lu.compute(K);
        sound = lu.info() == Eigen::Success;
    }
};

bool SparseLu::factor(const double* values, const double* diagonal, const double*) {
    factor_ = std::make_shared<Factor>(*plan_, values, diagonal);
    return factor_->sound;
}

void SparseLu::solve(double* x_) const {
    Eigen::Map<Eigen::VectorXd> x(x_, plan_->size);
    if (factor_->sound) x = factor_->lu.solve(x).eval();
    else std::fill_n(x_, plan_->size, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace optlayer

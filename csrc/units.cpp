#include "units.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include <Eigen/IterativeLinearSolvers>
#include <Eigen/SparseCore>

namespace optlayer {

namespace {

struct Mean {
    int64_t sum = 0, count = 0;
    void add(int x) { sum += x, ++count; }
    int value() const { return count ? int(std::floor(double(sum) / double(count))) : 0; }  // (rounded so that it moves with its terms)
};

}  // namespace

NaturalUnits::NaturalUnits(int variables, int rows, const std::vector<Meeting>& meetings, int near, bool far)
    : variables_(variables), near_(near), exponents_(variables + rows), part_(variables + rows), curved_(variables + rows) {
    connect(meetings);
    if (far) fit(meetings);
    far = std::any_of(exponents_.begin(), exponents_.end(), [&](int u) { return std::abs(u) > near; });
    if (!far) std::fill(exponents_.begin(), exponents_.end(), 0);
    else near_ = 0;  // (what is scaled at all is scaled whole)
    Mean curvature;
    for (const Meeting& m : meetings)
        if (std::max(m.a, m.b) < variables) curvature.add(m.exponent + exponents_[m.a] + exponents_[m.b]);
    if (curvature.count) curvature_ = far ? curvature.value() : 0;
}

void NaturalUnits::fit(const std::vector<Meeting>& meetings) {
    constexpr int most = 50;         // steps: so few that they cost no more than a factorisation or two
    constexpr double close = 1e-6;   // of the right-hand side: far below the half that decides a rounding
    constexpr double largest = 500;  // so that products of three stay numbers
    using Matrix = Eigen::SparseMatrix<double, Eigen::RowMajor>;
    Matrix sums(Eigen::Index(meetings.size()), Eigen::Index(exponents_.size()));
    Eigen::VectorXd right(sums.rows());
    std::vector<Eigen::Triplet<double>> entries;
    entries.reserve(2 * meetings.size());
    for (int i = 0; i < int(meetings.size()); ++i) {
        entries.emplace_back(i, meetings[i].a, 1.0), entries.emplace_back(i, meetings[i].b, 1.0);  // (2 on the diagonal of Q)
        right[i] = -meetings[i].exponent;
    }
    sums.setFromTriplets(entries.begin(), entries.end());
    Eigen::LeastSquaresConjugateGradient<Matrix> method(sums);
    method.setMaxIterations(most), method.setTolerance(close);
    const Eigen::VectorXd u = method.solve(right);
    for (size_t i = 0; i < exponents_.size(); ++i) exponents_[i] = int(std::lround(std::clamp(u[Eigen::Index(i)], -largest, largest)));
}

void NaturalUnits::connect(const std::vector<Meeting>& meetings) {
    std::iota(part_.begin(), part_.end(), 0);
    const auto find = [&](int i) {
        while (part_[i] != i) i = part_[i] = part_[part_[i]];
        return i;
    };
    for (const Meeting& m : meetings) part_[find(m.a)] = find(m.b);
    for (int& part : part_) part = find(part);
    for (const Meeting& m : meetings)
        if (std::max(m.a, m.b) < variables_) curved_[part_[m.a]] = true;
}

std::vector<int> NaturalUnits::exponents(const double* q) const {
    std::vector<int> found = exponents_;
    std::vector<Mean> costs(found.size());  // of each part
    Mean of_curved, of_all;
    for (int j = 0; j < variables_; ++j) {
        if (!is_entry(q[j])) continue;
        const int part = part_[j], cost = std::ilogb(q[j]) + found[j];
        costs[part].add(cost), of_all.add(cost);
        if (curved_[part]) of_curved.add(cost);
    }
    const int typical = (of_curved.count ? of_curved : of_all).value();
    for (int i = 0; i < int(found.size()); ++i) {
        const int part = part_[i];
        if (curved_[part] || !costs[part].count) continue;
        const int more = typical - costs[part].value();
        if (std::abs(more) > near_) found[i] += i < variables_ ? more : -more;
    }
    return found;
}

void NaturalUnits::scale_to(const std::vector<int>& sides, std::vector<int>& found) const {
    if (sides.empty()) return;
    std::vector<int> sorted = sides;
    const auto middle = sorted.begin() + sorted.size() / 2;  // (a side that is far off may be none)
    std::nth_element(sorted.begin(), middle, sorted.end());
    if (std::abs(*middle) <= near_) return;
    for (int i = 0; i < int(found.size()); ++i) found[i] += i < variables_ ? *middle : -*middle;
}

int NaturalUnits::objective(const double* q, const std::vector<int>& found) const {
    if (curvature_ != none) return -curvature_;
    Mean costs;
    for (int j = 0; j < variables_; ++j)
        if (is_entry(q[j])) costs.add(std::ilogb(q[j]) + found[j]);
    return std::abs(costs.value()) <= near_ ? 0 : -costs.value();
}

}  // namespace optlayer

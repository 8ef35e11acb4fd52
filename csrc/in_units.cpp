#include "in_units.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/solver.h"
#include "residuals.h"
#include "sparse_plan.h"

namespace optlayer {

const std::vector<InUnits::Quantity> InUnits::data = {
    {&Args::q, &Units::D, 1, 1}, {&Args::h, &Units::E, 1, 0}, {&Args::h_lower, &Units::E, 1, 0}, {&Args::b, &Units::F, 1, 0},
    {&Args::lb, &Units::D, -1, 0}, {&Args::ub, &Units::D, -1, 0}};
const std::vector<InUnits::Quantity> InUnits::solution = {
    {&Args::z, &Units::D, -1, 0}, {&Args::s, &Units::E, 1, 0}, {&Args::lam, &Units::E, -1, 1}, {&Args::lam_lower, &Units::E, -1, 1},
    {&Args::nu, &Units::F, -1, 1}, {&Args::lam_lb, &Units::D, 1, 1}, {&Args::lam_ub, &Units::D, 1, 1}};
const std::vector<InUnits::Quantity> InUnits::right = {
    {&Args::r_z, &Units::D, 1, 1}, {&Args::r_lam, &Units::E, 1, 0}, {&Args::r_lower, &Units::E, 1, 0}, {&Args::r_nu, &Units::F, 1, 0},
    {&Args::r_lb, &Units::D, -1, 0}, {&Args::r_ub, &Units::D, -1, 0}};
const std::vector<InUnits::Quantity> InUnits::derivative = {
    {&Args::v_z, &Units::D, -1, 0}, {&Args::v_lam, &Units::E, -1, 1}, {&Args::v_lower, &Units::E, -1, 1}, {&Args::v_nu, &Units::F, -1, 1},
    {&Args::v_lb, &Units::D, 1, 1}, {&Args::v_ub, &Units::D, 1, 1}};

double InUnits::Quantity::factor(const Units& of, size_t i) const {
    const double u = (of.*unit)[i];
    return (power > 0 ? u : 1 / u) * (objective ? of.c : 1);
}

namespace {

struct Sizes {  // of entries
    double least = std::numeric_limits<double>::max(), most = 0;
    Sizes& with(const Tensor& x, int64_t member, size_t count) {
        const double* v = View<const double>(x).of(member);
        for (size_t i = 0; i < count; ++i) {
            const double size = std::abs(v[i]);
            least = size > 0 && size < least ? size : least, most = size > most ? size : most;
        }
        return *this;
    }
    // From one, or from each other.
    bool far() const {
        constexpr double far = double(1 << far_entry), apart = double(int64_t(1) << far_apart);
        return most > 0 && (most > far || least < 1 / far || most > apart * least);
    }
};

}  // namespace

InUnits::InUnits(const SparsePlan& plan, Args& user, bool solving) : plan_(plan), user_(user), scaled_(user), solving_(solving) {
    shared_ = !user.Q.stride && !user.G.stride && !user.A.stride;
    std::optional<NaturalUnits> units;
    bool far = false;  // of the matrices that were looked at last
    for (int64_t k = 0; k < user.batch; ++k) {
        if (!shared_ || k == 0) {
            far = Sizes().with(user.Q, k, plan.user_row.size()).with(user.G, k, plan.G.entries()).with(user.A, k, plan.A.entries()).far();
            units.reset();
        }
        members_.emplace_back();
        if (!far && !Sizes().with(user.q, k, user.n).far()) continue;
        if (!units) units = look(k, far);
        members_.back() = natural(*units, k);
    }
    if (std::all_of(members_.begin(), members_.end(), [](const Units& u) { return u.D.empty(); })) members_.clear();
    if (members_.empty()) return;
    for (Units& u : members_)
        if (u.D.empty()) u.D.assign(user.n, 1), u.E.assign(user.p, 1), u.F.assign(user.m, 1);

    const int64_t count = shared_ ? 1 : user.batch;  // (members that share matrices scale them alike)
    copy(&Args::Q, plan.user_row.size(), count, [&](const Units& u, size_t e) { return u.c * u.D[plan.user_row[e]] * u.D[plan.user_col[e]]; });
    const auto copy_rows = [&](Tensor Args::*at, const RowPattern& M, Numbers Units::*unit) {
        int row = 0;
        copy(at, M.entries(), count, [&, row](const Units& u, size_t e) mutable {
            if (e == 0) row = 0;
            while (M.first[row + 1] <= int(e)) ++row;
            return (u.*unit)[row] * u.D[M.col[e]];
        });
    };
    copy_rows(&Args::G, plan.G, &Units::E), copy_rows(&Args::A, plan.A, &Units::F);
    copy(data);
    if (!solving) copy(solution), copy(right);
    else if (user.given) scale_in_place(solution, true);
}

NaturalUnits InUnits::look(int64_t member, bool far) const {
    const SparsePattern& s = plan_.pattern;
    Numbers values(s.entries());
    plan_.gather(user_, member, values.data(), 1);
    std::vector<Meeting> meetings;
    auto value = values.begin();
    const auto meet = [&](int a, int b) {
        if (is_entry(*value)) meetings.push_back({a, b, std::ilogb(*value)});
        ++value;
    };
    for (int e = 0; e < s.diagonals; ++e) meet(s.diagonal[e], s.diagonal[e]);
    for (int e = 0; e < s.lowers; ++e) meet(s.row[e], s.col[e]);
    int row = s.n;
    for (const RowPattern* M : {&plan_.G, &plan_.A})
        for (int i = 0; i < M->rows; ++i, ++row)
            for (int e = M->first[i]; e < M->first[i + 1]; ++e) meet(row, M->col[e]);
    return NaturalUnits(s.n, s.p + s.m, meetings, far_unit, far);
}

// None where they are the member's own.
InUnits::Units InUnits::natural(const NaturalUnits& units, int64_t k) const {
    const double* q = View<double>(user_.q).of(k);
    std::vector<int> exponents = units.exponents(q), sides;
    const auto take = [&](const Tensor& x, int count, int first, int sign, const RowPattern* rows = nullptr) {
        const View<const double> of(x);
        for (int i = 0; of && i < count; ++i)
            if (is_entry(of.of(k)[i]) && !(rows && rows->first[i] == rows->first[i + 1])) sides.push_back(std::ilogb(of.of(k)[i]) + sign * exponents[first + i]);
    };
    if (units.flat()) {
        take(user_.lb, user_.n, 0, -1), take(user_.ub, user_.n, 0, -1), take(user_.b, user_.m, user_.n + user_.p, 1, &plan_.A);
        take(user_.h, user_.p, user_.n, 1, &plan_.G), take(user_.h_lower, user_.p, user_.n, 1, &plan_.G);
        units.scale_to(sides, exponents);
    }
    const int objective = user_.smoothing > 0 ? 0 : units.objective(q, exponents);  // (κ is in the user's units)
    if (!objective && std::all_of(exponents.begin(), exponents.end(), [](int u) { return u == 0; })) return {};
    Units found;
    auto next = exponents.begin();
    for (const auto& [part, size] : {std::pair{&found.D, user_.n}, std::pair{&found.E, user_.p}, std::pair{&found.F, user_.m}})
        for (int i = 0; i < size; ++i) part->push_back(std::ldexp(1.0, *next++));
    found.c = std::ldexp(1.0, objective);
    return found;
}

template <class F> void InUnits::copy(Tensor Args::*at, size_t size, int64_t count, F&& factor) {
    const View<const double> from(user_.*at);
    if (!from || !size) return;
    Numbers& to = copies_.emplace_back(size * size_t(count));
    for (int64_t k = 0; k < count; ++k)
        for (size_t i = 0; i < size; ++i) to[size_t(k) * size + i] = from.of(k)[i] * factor(members_[k], i);
    scaled_.*at = {to.data(), count > 1 ? int64_t(size) : 0};
}
void InUnits::copy(const std::vector<Quantity>& quantities) {
    for (const Quantity& x : quantities)
        copy(x.at, (members_[0].*x.unit).size(), user_.batch, [&](const Units& u, size_t i) { return x.factor(u, i); });
}

void InUnits::scale_in_place(const std::vector<Quantity>& quantities, bool into) const {
    for (int64_t k = 0; k < user_.batch; ++k) {
        const Units& u = members_[k];
        const int32_t status = into ? SOLVED : View<int32_t>(user_.status).of(k)[0];
        for (const Quantity& x : quantities) {
            const View<double> to(user_.*x.at);
            if (!to) continue;
            // A proof is scaled to the value -1 by itself: its multipliers have no unit of the objective, its ray has.
            const bool proof = solving_ && (x.objective ? status == PRIMAL_INFEASIBLE : x.at == &Args::z && status == DUAL_INFEASIBLE);
            for (size_t i = 0; i < (u.*x.unit).size(); ++i) to.of(k)[i] *= into ? x.factor(u, i) : (proof ? u.c : 1) / x.factor(u, i);
        }
    }
}

void InUnits::finish() {
    if (members_.empty()) return;
    user_.lanes = scaled_.lanes, user_.method = scaled_.method;
    scale_in_place(solving_ ? solution : derivative, false);
    if (!solving_) return;
    SparseData<double, double> a{};
    a.n = user_.n, a.m = user_.m, a.p = user_.p, a.pattern = &plan_.pattern;
    Numbers values(plan_.pattern.entries());
    a.point_to(values.data());
    const auto finite = [&](const Tensor& x, int64_t k, int size) {
        const View<const double> sides(x);
        return sides ? std::count_if(sides.of(k), sides.of(k) + size, [](double side) { return std::isfinite(side); }) : 0;
    };
    for (int64_t k = 0; k < user_.batch; ++k) {
        plan_.gather(user_, k, values.data(), 1);
        const auto count = finite(user_.h, k, a.p) + finite(user_.h_lower, k, a.p) + finite(user_.lb, k, a.n) + finite(user_.ub, k, a.n);
        store_residuals(a, user_, k, user_.smoothing * double(count));
    }
}

}  // namespace optlayer

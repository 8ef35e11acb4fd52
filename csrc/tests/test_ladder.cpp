// The ladder, rung by rung: for each one a small problem that those before it leave and it settles, climbed as a whole call
// climbs; what it says is checked here, entry by entry. A problem that an earlier rung has learned to settle needs a harder one.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../calls.h"
#include "../rescue.cpp"  // its rungs, one by one

using namespace optlayer;

static int failures = 0;
static void expect(bool fine, const char* what, double number = 0) {
    if (!fine) ++failures, std::printf("FAILED %s (%g)\n", what, number);
}

static void twofold() {
    const Twofold third = Twofold(1) / Twofold(3), root = sqrt(Twofold(2));
    expect(std::fabs(double(third * Twofold(3) - Twofold(1))) < 1e-31, "a third");
    expect(std::fabs(double(root * root - Twofold(2))) < 1e-31, "the root of two");
    const Twofold sum = Twofold(1e16) + Twofold(1) - Twofold(1e16);
    expect(double(sum) == 1, "a sum that double rounds away");
    expect(Twofold(1) + Twofold(1e-30) > Twofold(1), "order beyond double");
    expect(double(abs(Twofold(-2))) == 2 && double(max(Twofold(1), Twofold(2))) == 2, "sizes");
}

// ---- one problem, and what an answer must be ---------------------------------------------------------------------------

template <class T> struct Member {
    using Numbers = std::vector<T>;
    int n, m = 0, p = 0;
    Numbers Q, q, G, h, A, b, lb, ub, z, s, lam, nu, lower, upper, numbers, rz, vz, vlam, vnu, vlower, vupper;
    int32_t status = -1, iterations = 0;
    int closest = 0;
    double smoothing = 0, tolerance = sizeof(T) == 4 ? 1e-5 : 1e-9;

    Member(Numbers Q_, Numbers q_) : n(int(q_.size())), Q(Q_), q(q_) {}
    Member rows(Numbers G_, Numbers h_) const { Member x = *this; return x.G = G_, x.h = h_, x.p = int(h_.size()), x; }
    Member equal(Numbers A_, Numbers b_) const { Member x = *this; return x.A = A_, x.b = b_, x.m = int(b_.size()), x; }
    Member within(Numbers lb_, Numbers ub_) const { Member x = *this; return x.lb = lb_, x.ub = ub_, x; }
    Member nearest() const { Member x = *this; return x.closest = 1, x; }
    Member to(double tolerance_) const { Member x = *this; return x.tolerance = tolerance_, x; }
    Member smooth(double smoothing_) const { Member x = *this; return x.smoothing = smoothing_, x; }

    Args args() {
        const auto tensor = [](Numbers& x) { return Tensor{x.empty() ? nullptr : x.data(), 0}; };
        const size_t sizes[] = {size_t(n), size_t(p), size_t(m), lb.size(), ub.size()};
        for (auto* x : {&z, &vz}) x->assign(sizes[0], T(0));
        for (auto* x : {&s, &lam, &vlam}) x->assign(sizes[1], T(0));
        for (auto* x : {&nu, &vnu}) x->assign(sizes[2], T(0));
        for (auto* x : {&lower, &vlower}) x->assign(sizes[3], T(0));
        for (auto* x : {&upper, &vupper}) x->assign(sizes[4], T(0));
        rz.assign(sizes[0], T(1)), numbers.assign(3, T(0));
        Args g{};
        g.n = n, g.m = m, g.p = p, g.batch = 1, g.single = sizeof(T) == 4, g.max_iterations = 60, g.polish = 1, g.keep = 1;
        g.closest = closest, g.tolerance = tolerance, g.smoothing = smoothing;
        g.Q = tensor(Q), g.q = tensor(q), g.G = tensor(G), g.h = tensor(h),
        g.A = tensor(A), g.b = tensor(b), g.lb = tensor(lb), g.ub = tensor(ub);
        g.z = tensor(z), g.s = tensor(s), g.lam = tensor(lam),
        g.nu = tensor(nu), g.lam_lb = tensor(lower), g.lam_ub = tensor(upper);
        g.status = {&status, 1}, g.iterations = {&iterations, 1};
        g.primal_residual = {&numbers[0], 1}, g.dual_residual = {&numbers[1], 1}, g.gap = {&numbers[2], 1};
        g.r_z = tensor(rz), g.v_z = tensor(vz), g.v_lam = tensor(vlam),
        g.v_nu = tensor(vnu), g.v_lb = tensor(vlower), g.v_ub = tensor(vupper);
        return g;
    }

    // A sum, that of the sizes of its terms, and what rounding may leave of it where it is zero.
    struct Sum {
        double value = 0, terms = 0, zero = 0;
        void add(double x) { value += x, terms += std::fabs(x); }
        double share(double off) const { return std::fabs(off) <= zero ? 0 : std::fabs(off) / terms; }
        double share() const { return share(value); }
    };
    Sum row(const Numbers& M, int i, const Numbers& x) const {
        Sum sum;
        double entry = 0, size = 1;
        for (int j = 0; j < n; ++j) {
            const double a = M[size_t(i) * n + j];
            sum.add(a * x[j]), entry = std::fmax(entry, std::fabs(a)), size = std::fmax(size, std::fabs(double(x[j])));
        }
        return sum.zero = 4 * double(std::numeric_limits<T>::epsilon()) * entry * size, sum;
    }
    void add_forces(Sum& sum, int j, const Numbers& y, const Numbers& mu, const Numbers& below, const Numbers& above) const {
        for (int i = 0; i < p; ++i) sum.add(double(G[size_t(i) * n + j]) * y[i]);
        for (int i = 0; i < m; ++i) sum.add(double(A[size_t(i) * n + j]) * mu[i]);
        if (!lb.empty()) sum.add(-double(below[j]));
        if (!ub.empty()) sum.add(above[j]);
    }
    // How far, relative to their terms, the numbers are from being what the status says: a solution, a proof, a ray.
    double error() const {
        double worst = 0;
        const auto look = [&](double off) { worst = off <= worst ? worst : off; };
        const bool proof = status == PRIMAL_INFEASIBLE, ray = status == DUAL_INFEASIBLE;
        Sum value;  // of a proof or ray: -1
        for (int j = 0; j < n; ++j) {
            Sum force = ray || !proof ? row(Q, j, z) : Sum{};
            if (ray) value.add(double(q[j]) * z[j]);
            if (!ray && !proof) force.add(q[j]);
            if (!ray) add_forces(force, j, lam, nu, lower, upper);
            look(force.share());
        }
        const auto side = [&](Sum sum, double limit, double multiplier) {  // sum <= limit
            if (proof) return value.add(multiplier == 0 ? 0 : limit * multiplier), look(multiplier < 0);
            if (!ray) sum.add(-limit);
            look(multiplier < 0), look(sum.share(multiplier > 0 ? sum.value : std::fmax(sum.value, 0)));
        };
        const auto alone = [](double x) { return Sum{x, std::fabs(x)}; };
        for (int i = 0; i < p; ++i) side(row(G, i, z), h[i], lam[i]);
        for (size_t j = 0; j < lb.size(); ++j) side(alone(-z[j]), -lb[j], lower[j]);
        for (size_t j = 0; j < ub.size(); ++j) side(alone(z[j]), ub[j], upper[j]);
        for (int i = 0; i < m; ++i) {
            Sum sum = row(A, i, z);
            if (proof) value.add(double(b[i]) * nu[i]);
            else if (!ray) sum.add(-double(b[i]));
            if (!proof) look(sum.share());
        }
        if (proof || ray) look(std::fabs(value.value + 1));
        return worst;
    }
    // The gradient of the violation ½|max(Gz - h, 0)|² + ½|Az - b|², of a problem without bounds.
    double violation_moves() const {
        Numbers over(p), off(m);
        for (int i = 0; i < p; ++i) over[i] = std::fmax(row(G, i, z).value - h[i], 0);
        for (int i = 0; i < m; ++i) off[i] = row(A, i, z).value - b[i];
        double worst = 0;
        for (int j = 0; j < n; ++j) {
            Sum force;
            add_forces(force, j, over, off, {}, {});
            worst = std::fmax(worst, force.share());
        }
        return worst;
    }
    // The same of the derivative's equations, whose right-hand side is 1 for z: active sides are equalities.
    double derivative_error() const {
        double worst = 0;
        const auto look = [&](double off) { worst = off <= worst ? worst : off; };
        for (int j = 0; j < n; ++j) {
            Sum force = row(Q, j, vz);
            add_forces(force, j, vlam, vnu, vlower, vupper), force.add(-double(rz[j]));
            look(force.share());
        }
        for (int i = 0; i < m; ++i) look(row(A, i, vz).share());
        for (int i = 0; i < p; ++i) look(lam[i] > 0 ? row(G, i, vz).share() : std::fabs(vlam[i]));
        for (size_t j = 0; j < lb.size(); ++j) look(std::fabs(lower[j] > 0 ? vz[j] : vlower[j]));
        for (size_t j = 0; j < ub.size(); ++j) look(std::fabs(upper[j] > 0 ? vz[j] : vupper[j]));
        return worst;
    }
};
using Double = Member<double>;

// ---- the ladder of a call ------------------------------------------------------------------------------------------------

// The rungs of one member, as a call climbs them.
struct Climb : Call<double> {
    explicit Climb(Args& g) : Call(g, g.factor.data == nullptr) {}
    char* work() const {
        const size_t room = std::max(plan.work_bytes, spare.work_bytes) + std::max(plan.keep_bytes, spare.keep_bytes);
        return static_cast<char*>(scratch().reserve(room));
    }
    Way solve() {
        dispatch(plan, 0, Arena(), Arena(work()), Task::SOLVE, nullptr);
        return climb(0, work());
    }
    Way differentiate() {
        bool found[Lanes::width] = {};
        if (at(header->flags)[0]) dispatch(plan, 0, Arena(at(header->groups)), Arena(work()), Task::ADJOINT, found);
        return Call::differentiate(0, work(), found[0]);
    }
};

// What ends the last rung, each part of it called alone.
static const char* last(Double member) {
    const Args g = member.args();
    const Scaled scaled(g, 0);
    const Rung rung(g, scaled);
    const double enough = g.tolerance * Tuning<double>::enough;
    Answer found;
    if (scaled.contradicts(g.tolerance)) return "contradiction";
    if (rung.pivot(found) != MAX_ITERATIONS) return "active set";
    for (double spread : {1.0, 1e3, 1e6}) {
        Attempt<double> attempt(scaled.model, 0);
        attempt.solve(g.tolerance, g.max_iterations, spread);
        found = attempt.answer();
        if (rung.error(found) <= enough) return spread == 1 ? "interior point" : spread == 1e3 ? "farther start" : "farthest start";
        if (spread > 1) continue;
        if (!g.closest && attempt.proves(rung.proof, rung.most)) return "multipliers";
        switch (rung.settle<double>(found)) {
            case PRIMAL_INFEASIBLE: return "least violation";
            case DUAL_INFEASIBLE: return "ray";
            case SOLVED: return "hardly violated";
            case CLOSEST: return "closest";
            default: break;
        }
    }
    return rung.climb<Twofold>(found) == SOLVED ? "twice the digits" : "nothing";
}

static void climbs(const char* what, Double member, Way way, int32_t verdict, const char* part = nullptr) {
    const double close = std::fmax(member.tolerance, 1e-15);
    Double whole = member;
    Args g = member.args(), all = whole.args();
    const Way ended = Climb(g).solve();
    expect(ended == way, what, double(ended));
    expect(member.status == verdict, what, member.status);
    const double error = verdict == CLOSEST ? member.violation_moves() : way == Way::DATA ? 0 : member.error();
    expect(error <= close, what, error);
    solve_double(all);
    const bool same = whole.z == member.z && whole.lam == member.lam && whole.nu == member.nu && whole.status == verdict;
    expect(same, "a whole call is a climb");
    Blocks::give(all.factor.data);
    if (part && std::strcmp(last(member), part)) expect(false, last(member));
}

static void solutions() {
    const Double flat({0}, {-1}), cone({0, 0, 0, 1}, {-1, 0}), nothing({0}, {0}), one({1}, {0}), plane({1, 0, 0, 1}, {-1, -1});
    climbs("a vertex", plane.rows({1, 2}, {1}).within({-1, -1}, {0.25, 1}), Way::GROUP, SOLVED);
    climbs("rows against each other", plane.rows({1, 2, -1, -2}, {-1, 0}), Way::GROUP, PRIMAL_INFEASIBLE);
    climbs("NaN", plane.rows({1, 2}, {std::nan("")}), Way::DATA, INVALID_INPUT);
    climbs("a saddle", Double({0, 1, 1, 0}, {0, 0}), Way::DATA, NOT_CONVEX);

    const int n = by_pattern_from;
    std::vector<double> costs(n);
    for (int j = 0; j < n; ++j) costs[j] = j % 3 - 0.5;
    const std::vector<double> none(size_t(n) * n), zero(n), ones(n, 1);
    climbs("a large linear program", Double(none, costs).within(zero, ones), Way::PATTERN, SOLVED);
    climbs("a face of solutions", Double(std::vector<double>(36), {2, 2, 0, -4, -4, 0})
               .rows({-1, -1, -1, 2, 1, 0, 0, 0, 1, 0, 1, 0}, {-3, 0}).equal({0, 0, 0, 1, -2, 2}, {3})
               .within(std::vector<double>(6, -50), std::vector<double>(6, 50)), Way::PATTERN, SOLVED);
    climbs("curvatures far apart", Double({1, 0, 0, 1e-20}, {-1, 2}).rows({2, 0}, {1}), Way::UNITS, SOLVED);
    climbs("a linear program", flat.rows({2}, {1}), Way::SPARE, SOLVED);
    climbs("no objective", Double({0, 0, 0, 0}, {0, 0}).rows({1, 3}, {2}).equal({1, -1}, {1}), Way::SPARE, SOLVED);
    climbs("an infeasible one", nothing.equal({-1}, {2}).within({0}, {inf}), Way::SPARE, PRIMAL_INFEASIBLE);
    climbs("an unbounded one", cone.rows({0, 1}, {1}), Way::SPARE, DUAL_INFEASIBLE);

    climbs("a row of zeros", one.rows({0}, {-1}), Way::LAST, PRIMAL_INFEASIBLE, "contradiction");
    climbs("bounds that cross", one.within({1}, {0}), Way::LAST, PRIMAL_INFEASIBLE, "contradiction");
    climbs("an equality of zeros", Double({1e-10}, {-2e3}).equal({0}, {0}), Way::LAST, SOLVED, "active set");
    climbs("a point that equalities fix", flat.equal({2}, {0}), Way::LAST, SOLVED, "interior point");
    climbs("a solution far away", flat.rows({2e-8}, {2}), Way::LAST, SOLVED, "farther start");
    const Double slope({0, 0, 0, 0}, {1, 1});
    climbs("a slope that equalities forbid", slope.rows({-2, -2, 1.9999999, 2, -1, -1}, {2, 1, 0}).equal({-1, -1, -1, -1}, {-1, -1}), Way::LAST, SOLVED,
           "farthest start");
    climbs("equalities far apart", Double({0}, {-2}).equal({2, -1}, {1e4, 0}), Way::LAST, PRIMAL_INFEASIBLE, "multipliers");
    climbs("equalities hardly apart", one.equal({1, 1}, {1, 1.00000001}), Way::LAST, PRIMAL_INFEASIBLE, "least violation");
    climbs("the same in twice the unit", Double({4}, {0}).equal({-2, -2}, {-1, -0.99999999}), Way::LAST, PRIMAL_INFEASIBLE, "least violation");
    climbs("equalities that are equal", nothing.equal({-1, -1}, {2, 2.000000001}), Way::LAST, SOLVED, "hardly violated");
    climbs("a ray beside them", Double({0, 0, 0, 0}, {-2, 1}).equal({0, -2, 0, -2}, {-1, -0.999999999999}), Way::LAST, DUAL_INFEASIBLE, "ray");
    climbs("the middle", Double({1, 0, 0, 1}, {0, 3}).equal({1, 1, 1, 1}, {1, 2}).nearest(), Way::LAST, CLOSEST, "closest");
    const Double rounded({0, 0, 0, 0, 1, 1e-7, 0, 1e-7, 2e-14}, {-1, 0, 1});
    climbs("a curvature that double rounds away", rounded.rows({1, -1, 0}, {9}).within({-inf, -inf, -inf}, {0, 2, -1}), Way::LAST, SOLVED, "twice the digits");

    // What is good enough is put aside while later rungs try to do better; they cannot.
    climbs("nothing better", plane.rows({1, 3}, {0.1}).to(1e-16), Way::GROUP, SOLVED);
}

// The point of the central path: lam s = κ.
static void relaxed(const char* what, Double member, Way way) {
    member = member.smooth(1e-3);
    Args g = member.args();
    const Way ended = Climb(g).solve();
    expect(ended == way && member.status == SOLVED, what, double(ended));
    for (int i = 0; i < member.p; ++i) {
        const double centre = member.lam[i] * member.s[i];
        expect(std::fabs(centre - 1e-3) < 1e-8, what, centre);
    }
    for (int j = 0; j < member.n; ++j) {
        Double::Sum force = member.row(member.Q, j, member.z);
        force.add(member.q[j]), member.add_forces(force, j, member.lam, member.nu, member.lower, member.upper);
        expect(force.share() < 1e-9, what, force.share());
    }
}

// twice: the derivative that double does not find.
static void derives(const char* what, Double member, Way way, bool twice = false) {
    Args g = member.args(), back = member.args();
    solve_double(g);
    back.factor = g.factor;
    const Way ended = Climb(back).differentiate();
    expect(ended == way, what, double(ended));
    if (way != Way::NONE && !member.closest) expect(member.derivative_error() < 1e-9, what, member.derivative_error());
    if (way == Way::LAST) {
        const Scaled scaled(back, 0);
        const Rung rung(back, scaled);
        const DerivativeOf of(back, scaled);
        const bool closest = member.closest;
        expect((closest ? derive_closest<double>(rung, scaled) : derive_of_least_norm(back, scaled, of)) != twice, what);
        expect(!twice || (closest ? derive_closest<Twofold>(rung, scaled) : derive<Twofold>(scaled, of)), what);
    }
    Blocks::give(g.factor.data);
}

static void derivatives() {
    const Double plane({1, 0, 0, 1}, {-1, -1});
    derives("by the kept factor", plane.rows({1, 2}, {1}).within({-1, -1}, {0.25, 1}), Way::GROUP);
    derives("by a factor made anew", Double({0}, {-1}).rows({2}, {1}), Way::SPARE);
    derives("of curvatures far apart", Double({1, 0, 0, 1e-20}, {-1, 2}).rows({2, 0}, {1}), Way::LAST);
    derives("by twice the digits", Double({5.000000000001, -5, -5, 5.000000000001}, {-1e-3, 1e-3}), Way::LAST, true);
    derives("of the middle", plane.equal({1, 1, 1, 1}, {1, 2}).nearest(), Way::LAST);
    derives("of the nearest, by twice the digits", Double({4e-18}, {0}).equal({0}, {-2}).within({-1}, {inf}).nearest(), Way::LAST, true);
    derives("of what has no solution", Double({1}, {0}).rows({0}, {-1}), Way::NONE);
}

// ---- float32: one rung of its own, which refines in double, and the ladder in double ---------------------------------------

static void single() {
    const auto left = [](Member<float>& member) {
        Args g = member.args(), back = member.args();
        const int unsolved = Call<float>::solve(g);
        back.factor = g.factor;
        if (!unsolved) expect(Call<float>::kkt_solve(back).empty() && member.derivative_error() < 1e-5, "a derivative in float");
        Blocks::give(g.factor.data);
        return unsolved;
    };
    const auto solved = [](Member<float> member) {  // by the whole ladder, with its derivative
        Args g = member.args(), back = member.args();
        expect(solve_float(g) == 0 && member.error() < 1e-5, "float", member.error());
        back.factor = g.factor;
        expect(kkt_solve_float(back) == 0 && member.derivative_error() < 1e-5, "a derivative", member.derivative_error());
        Blocks::give(g.factor.data);
    };
    const Member<float> middling({1, 0.999f, 0.999f, 1}, {-1, 1}), hard({1, 1, 1, 1 + 1e-6f}, {-1, 1});
    Member<float> alone = middling, with_row = middling.rows({1, 1}, {-2}), beyond = hard.rows({1, 1}, {-2});
    expect(left(alone) == 0 && left(with_row) == 0 && left(beyond) == 1, "what is badly conditioned is left to double");
    expect(alone.error() < 1e-6 && with_row.error() < 1e-6, "what float factors, double refines", alone.error());
    for (const auto& member : {middling, with_row, hard, beyond}) solved(member);
    solved(Member<float>({0}, {-1}).rows({2}, {1}));
}

int main() {
    twofold(), solutions(), derivatives(), single();
    relaxed("a relaxed point", Double({1, 0, 0, 1}, {-1, -1}).rows({1, 2}, {1}), Way::GROUP);
    relaxed("hardly curved", Double({1e-18}, {0.01}), Way::LAST);
    relaxed("and without a slope", Double({4e-18}, {0}).rows({2e3}, {1}).within({-1}, {inf}), Way::LAST);
    std::printf("%d failures\n", failures);
    return failures != 0;
}

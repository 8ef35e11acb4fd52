// What the first rungs leave: problems that are badly scaled, dependent, nearly parallel, degenerate, infeasible, unbounded.
//
// A member is brought into units of its own (scaled.h). There it meets, until one of them ends it,
//     the interior point in double precision,
//     the proofs: the point of least violation, whose multipliers are Farkas' proof where the violation is not zero, and
//     the projection of -q onto the directions of recession, a ray where it is not zero; both always have a solution,
//     and the same in twice the precision (twofold.h), where what rounding spoils in double is an ordinary problem.
// An answer is rounded to double, its bounds kept exactly, and judged in these units.
//
// CLOSEST. Of a problem without feasible point, in these units: least violation is min ½|t|², t >= 0 the violations of the
// rows of G, t of any sign those of A z = b, bounds kept. t is unique. The answer is the best point among those of least
// violation: rows with t > 0, equalities, and bounds that press against them hold at their values there, as equalities.
#include "rescue.h"

#include "attempt.h"
#include "least_norm.h"

namespace optlayer {
namespace {

Model curved(Model model, double more) {  // the same with so much more curvature everywhere
    for (int j = 0; j < model.n; ++j) model.Q[size_t(j) * model.n + j] += more;
    return model;
}
// Least violation: the objective ½|Az − b|², and rows that may be violated (soft = 1).
Model violation_of(const Model& model) {
    Model v = model;
    const int n = model.n;
    std::fill(v.Q.begin(), v.Q.end(), 0.0), std::fill(v.q.begin(), v.q.end(), 0.0);
    for (int i = 0; i < model.m; ++i) {
        const double* row = model.A.data() + size_t(i) * n;
        for (int j = 0; j < n; ++j) {
            v.q[j] -= model.b[i] * row[j];
            for (int l = 0; l < n; ++l) v.Q[size_t(j) * n + l] += row[j] * row[l];
        }
    }
    v.m = 0, v.A.clear(), v.b.clear();
    return v;
}
// The projection of −q onto the directions along which nothing but q'z changes the objective, and every row allows to go on.
Model recession_of(const Model& model) {
    Model r = model;
    const int n = model.n;
    std::fill(r.Q.begin(), r.Q.end(), 0.0);
    for (int j = 0; j < n; ++j) r.Q[size_t(j) * n + j] = 1;
    for (int i = 0; i < n; ++i) {
        const double* row = model.Q.data() + size_t(i) * n;
        if (std::any_of(row, row + n, [](double x) { return x != 0; })) r.A.insert(r.A.end(), row, row + n), ++r.m;
    }
    r.b.assign(r.m, 0);
    for (Numbers* x : {&r.h, &r.h_lower, &r.lb, &r.ub})
        for (double& side : *x)
            if (std::abs(side) < inf) side = 0;
    return r;
}

// Rows of float32 that are equal but for rounding differ by 6e-8: softened by so much, they are equal; and a Q without full
// rank has a curvature of that size, or none, where it should have none.
constexpr double blurred = 1e-8;
// Directions of a derivative's matrix that count as none (of float32's data: by their rounding; not of a relaxed problem, whose
// sides determine everything), and its largest order.
constexpr double zero_direction = 1e-14, rounded_zero = 1e-6;
constexpr int most_of_least_norm = 1000;
constexpr double ridge = 1e-12;  // nothing beside another curvature; but no point is far out for nothing

struct Rung {
    const Args& g;
    const Scaled& scaled;
    const Model& model;
    double tolerance, proof, most;  // of an answer, of a proof, of its terms
    int iterations;

    Rung(const Args& args, const Scaled& s) : g(args), scaled(s), model(s.model) {
        tolerance = g.tolerance, proof = 1e-9, most = g.single ? 1e3 : 1e8;
        iterations = g.max_iterations;
    }

    // Twice the precision costs forty times the time: beyond this order (about 60 variables and rows) a call would take seconds;
    // only to make an answer better that meets the tolerance, beyond about 20 it would be a cliff.
    static constexpr double twofold_work = 5e5, twofold_work_to_improve = 2e4;
    bool affords_twofold(bool to_improve = false) const {
        const double n = model.n;
        return n * n * (n + model.m + model.p) <= (to_improve ? twofold_work_to_improve : twofold_work);
    }

    // The answer in double, judged; with its bounds kept.
    double error(Answer& found) const {
        if (std::any_of(found.lam.begin(), found.lam.end(), [](double x) { return x < 0; })) return inf;
        Attempt<double> judge(model, 0);
        if (g.single == 2) judge.loop.expect_rounded_data();
        double off = judge.judge(found);
        Answer zero = found;  // where rounding sees no more
        for (int j = 0; j < model.n; ++j)
            if (std::abs(found.z[j]) <= judge.loop.in_rows.usual * judge.loop.scale[j]) zero.z[j] = 0;
        double force = 0;
        for (double q : model.q) force = std::max(force, std::abs(q));
        for (Numbers* x : {&zero.nu, &zero.lam})
            for (double& v : *x)
                if (std::abs(v) <= judge.loop.in_rows.usual * force) v = 0;
        if (zero.z != found.z || zero.nu != found.nu || zero.lam != found.lam) {
            const double off_zero = judge.judge(zero);
            if (off_zero <= off) found = zero, off = off_zero;
            else judge.judge(found);
        }
        if (g.single == 2) {
            for (Numbers* x : {&found.z, &found.nu, &found.lam})
                for (double& v : *x) v = double(float(v));
            judge.loop.expect_rounded();
            off = std::max(off, judge.judge(found));
        }
        bool idle = false;  // what is no equality has no multiplier
        for (int k = 0; k < model.sides(); ++k)
            if (found.lam[k] > 0 && !judge.holds(k, tolerance)) found.lam[k] = 0, idle = true;
        if (idle) off = judge.judge(found);
        return judge.loop.loses_objective() ? std::max(off, tolerance) : off;
    }

    // The active set: SOLVED or PRIMAL_INFEASIBLE, stored; MAX_ITERATIONS: neither.
    int32_t pivot(Answer& found) const {
        Answer end;
        const int32_t verdict = by_active_set(model, tolerance, iterations, end);
        const int pivots = end.iterations;
        if (verdict == PRIMAL_INFEASIBLE && !g.closest) {
            Attempt<double> prover(model, 0);
            prover.judge(end);
            if (!prover.proves(proof, most)) return MAX_ITERATIONS;
            end = prover.answer();
        } else if (verdict != SOLVED || error(end) > tolerance * Tuning<double>::enough) {
            return MAX_ITERATIONS;
        }
        scaled.store(end, verdict == PRIMAL_INFEASIBLE);
        found = end, found.iterations = pivots;
        return verdict;
    }
    template <class V> int32_t climb(Answer& found) const {
        // Where the first starting point is too near the boundary for its residuals, the next ones are far from it.
        int count = 0;
        double off = inf;
        const auto take = [&](Answer now) {
            count += now.iterations;
            const double error_now = error(now);
            if (found.z.empty() || error_now < off) found = now, off = error_now;
        };
        const auto damped = [&](double curvature, double soft) {
            const Model near = curved(model, curvature);
            Attempt<V> attempt(near, soft, soft);
            attempt.solve(tolerance, iterations);
            take(attempt.answer());
        };
        if (g.single && std::is_same<V, double>::value) {
            damped(blurred, blurred);
            if (off <= tolerance) return scaled.store(found, false), SOLVED;
        }
        int32_t verdict = MAX_ITERATIONS;
        for (double spread : {1.0, 1e3, 1e6}) {
            Attempt<V> attempt(model, 0);
            attempt.solve(tolerance, iterations, spread);
            take(attempt.answer());
            if (off <= tolerance * Tuning<double>::enough) break;
            if (spread > 1) continue;
            if (attempt.proves(proof, most) && !g.closest) {
                found = attempt.answer(), verdict = PRIMAL_INFEASIBLE;
                scaled.store(found, true);
            } else if (off >= tolerance) {
                Answer other;
                verdict = settle<V>(other);
                if (verdict != MAX_ITERATIONS) found = other;
                else damped(ridge, 0);  // of solutions without end, the one of least norm
            }
            if (verdict != MAX_ITERATIONS) break;
        }
        found.iterations = count;
        if (verdict != MAX_ITERATIONS || off > tolerance) return verdict;
        scaled.store(found, false);
        return off <= tolerance * Tuning<double>::enough ? SOLVED : ROUGH;
    }

    // Why there may be no answer; MAX_ITERATIONS: it is not known.
    template <class V> int32_t settle(Answer& found) const {
        const Model least = violation_of(model);
        Attempt<V> soft(least, 1);
        const bool fine = soft.solve(1e-12, iterations);
        Answer point = soft.violations(model);
        const double violated = violation(point);
        if (violated > tolerance && !g.closest && contradiction<V>(soft, point, found)) return PRIMAL_INFEASIBLE;
        if (fine && violated > tolerance) {
            if (g.closest) return closest<V>(point, found) ? CLOSEST : MAX_ITERATIONS;
            if (std::is_same<V, double>::value && affords_twofold()) return settle<Twofold>(found);  // small beside the data: rounded away
        } else if (fine && violated > 1e-14) {  // near the tolerance one is as right as the other
            if (closest<V>(point, found) && error(found) <= tolerance) return scaled.store(found, false), SOLVED;
            if (violated > 0.01 * tolerance && !g.closest && contradiction<V>(soft, point, found)) return PRIMAL_INFEASIBLE;
        } else if (!fine && !g.closest) {  // rows that meet nowhere, or so far out that rounding lets them: not near to zero
            const Model near = curved(least, ridge);
            Attempt<V> damped(near, 1);
            damped.solve(1e-12, iterations);
            point = damped.violations(model);
            if (violation(point) > tolerance && contradiction<V>(damped, point, found)) return PRIMAL_INFEASIBLE;
            if (closest<V>(point, found) && error(found) <= tolerance) return scaled.store(found, false), SOLVED;
        }
        const Model directions = recession_of(model);
        Attempt<V> ray(directions, 0);
        ray.solve(1e-12, iterations);
        Attempt<V> prover(model, 0);
        if (prover.falls(ray.answer().z, proof, g.single ? 1e-3 : 0)) {
            scaled.store_ray(prover.answer().z);
            return DUAL_INFEASIBLE;
        }
        return MAX_ITERATIONS;
    }

    // Whether least violation proves that nothing is feasible; the proof is stored.
    template <class V> bool contradiction(Attempt<V>& soft, Answer point, Answer& found) const {
        Attempt<V> prover(model, 0);
        for (int round = 0; round < 3; ++round) {
            prover.judge(point);
            if (prover.proves(proof, 1 / (1e-3 * tolerance))) {
                found = prover.answer();
                scaled.store(found, true);
                return true;
            }
            balance(soft, point);
        }
        return false;
    }
    // The multipliers y of least violation, nearer to C'y = 0: where the violation is small beside the data, z in double holds
    // few of its digits. With w from the equations of least violation, C'C w = C'y, they are y − C w.
    template <class V> void balance(Attempt<V>& soft, Answer& point) const {
        const int n = model.n, m = model.m;
        std::vector<Twofold> sum(n, Twofold(0));
        const auto add = [&](int j, double entry, double multiplier) { sum[j] = fma(Twofold(entry), Twofold(multiplier), sum[j]); };
        const auto add_row = [&](const double* row, double multiplier) {
            for (int j = 0; j < n; ++j) add(j, row[j], multiplier);
        };
        Numbers force(n), weight(model.sides(), 0.0);
        for (int i = 0; i < m; ++i) add_row(model.A.data() + size_t(i) * n, point.nu[i]);
        for (int k = 0; k < model.sides(); ++k) {
            if (!(point.lam[k] > 0)) continue;
            const int row = model.row_of(k);
            weight[k] = inf;
            if (row < model.p) add_row(model.G.data() + size_t(row) * n, model.sign(k) * point.lam[k]);
            else add(row - model.p, 1, model.sign(k) * point.lam[k]);
        }
        for (int j = 0; j < n; ++j) force[j] = double(sum[j]);
        Answer w;
        soft.equations(force, {}, Numbers(model.sides(), 0.0), weight, w);
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < n; ++j) point.nu[i] = std::fma(-model.A[size_t(i) * n + j], w.z[j], point.nu[i]);
        for (int k = 0; k < model.sides(); ++k) point.lam[k] = std::max(point.lam[k] - w.lam[k], 0.0);
    }

    // The largest violation of a row, relative to its terms.
    double violation(const Answer& point) const {
        double worst = 0, size = 0;  // what is far below the largest variable is rounding
        for (double z : point.z) size = std::max(size, std::abs(z));
        for (double b : model.b) size = std::max(size, std::abs(b));
        const auto of = [&](const double* row, double over, double side) {
            double terms = std::abs(side);
            for (int j = 0; j < model.n; ++j) terms += std::abs(row[j] * point.z[j]);
            over = std::max(std::abs(over) - 1e-14 * size, 0.0);
            worst = std::max(worst, std::abs(over) / (terms > 0 ? terms : 1));
        };
        for (int i = 0; i < model.p; ++i) {  // soft = 1: the multiplier is the violation
            const double* row = model.G.data() + size_t(i) * model.n;
            of(row, point.lam[i], model.h[i] < inf ? model.h[i] : 0);
            of(row, point.lam[model.p + i], model.h_lower[i] > -inf ? model.h_lower[i] : 0);
        }
        for (int i = 0; i < model.m; ++i) of(model.A.data() + size_t(i) * model.n, point.nu[i], model.b[i]);
        return worst;
    }

    // What least violation fixes: rows of the model with their values, as equalities behind those it has.
    struct Fixed {
        std::vector<int> sides;  // that press: rows violated, bounds with a multiplier
        Model model;
    };
    Fixed fix(const Answer& point) const {
        Fixed f;
        f.model = model;
        double top = 0;
        for (double x : point.lam) top = std::max(top, x);
        for (double x : point.nu) top = std::max(top, std::abs(x));
        const int n = model.n, p = model.p;
        for (int i = 0; i < model.m; ++i) f.model.b[i] += point.nu[i];  // A z = b + t
        for (int k = 0; k < model.sides(); ++k) {
            if (!(point.lam[k] > 1e-12 * top)) continue;
            f.sides.push_back(k);
            const int row = model.row_of(k);
            const bool bound = row >= p;
            const double violated = bound ? 0 : point.lam[k];
            for (int j = 0; j < n; ++j) f.model.A.push_back(bound ? double(j == row - p) : model.G[size_t(row) * n + j]);
            f.model.b.push_back(model.sign(k) * (model.side(k) + violated));
            ++f.model.m;
            if (bound) f.model.lb[row - p] = -inf, f.model.ub[row - p] = inf;
            else f.model.h[row] = inf, f.model.h_lower[row] = -inf;
        }
        return f;
    }
    // The second stage: f.model without the variables that bounds fix, whose multipliers follow from stationarity.
    template <class V> bool best_of(const Fixed& f, Answer& found) const {
        const int n = model.n, p = model.p;
        Numbers pinned(n, inf);  // values of fixed variables
        for (int k : f.sides)
            if (model.row_of(k) >= p) pinned[model.row_of(k) - p] = model.sign(k) * model.side(k);
        std::vector<int> free;
        for (int j = 0; j < n; ++j)
            if (!(pinned[j] < inf)) free.push_back(j);
        const int left = int(free.size());
        found.z = pinned, found.nu.assign(f.model.m, 0), found.lam.assign(model.sides(), 0), found.iterations = 0;
        Model r;
        r.n = left;
        const auto known = [&](const double* row) {  // what the fixed variables contribute
            double sum = 0;
            for (int j = 0; j < n; ++j)
                if (pinned[j] < inf) sum = std::fma(row[j], pinned[j], sum);
            return sum;
        };
        const auto part = [&](Numbers& to, const double* row) {
            for (int j : free) to.push_back(row[j]);
            return std::any_of(to.end() - left, to.end(), [](double x) { return x != 0; });
        };
        for (int j : free) {
            const double* row = f.model.Q.data() + size_t(j) * n;
            part(r.Q, row), r.q.push_back(f.model.q[j] + known(row));
            r.lb.push_back(f.model.lb[j]), r.ub.push_back(f.model.ub[j]);
        }
        std::vector<int> equalities;  // of f.model that are left
        for (int i = 0; i < f.model.m; ++i) {
            const double* row = f.model.A.data() + size_t(i) * n;
            if (!part(r.A, row)) {
                r.A.resize(r.A.size() - left);
                continue;
            }
            equalities.push_back(i), r.b.push_back(f.model.b[i] - known(row));
        }
        for (int i = 0; i < p; ++i) {
            const double *row = f.model.G.data() + size_t(i) * n, there = known(row);
            part(r.G, row), r.h.push_back(f.model.h[i] - there), r.h_lower.push_back(f.model.h_lower[i] - there);
        }
        r.m = int(equalities.size()), r.p = p;
        if (left > 0) {
            Attempt<V> attempt(r, 0);
            if (!attempt.solve(1e-9, iterations)) return false;
            const Answer best = attempt.answer();
            found.iterations = best.iterations;
            for (int c = 0; c < left; ++c) {
                found.z[free[c]] = best.z[c];
                for (bool upper : {false, true}) found.lam[2 * p + upper * n + free[c]] = best.lam[2 * p + upper * left + c];
            }
            for (int i = 0; i < r.m; ++i) found.nu[equalities[i]] = best.nu[i];
            std::copy_n(best.lam.begin(), 2 * p, found.lam.begin());
        }
        for (size_t s = 0; s < f.sides.size(); ++s) {  // of the fixed variables
            const int k = f.sides[s], j = model.row_of(k) - p;
            if (j < 0) continue;
            double force = model.q[j];
            for (int l = 0; l < n; ++l) force = std::fma(model.Q[size_t(j) * n + l], found.z[l], force);
            for (int i : equalities) force = std::fma(f.model.A[size_t(i) * n + j], found.nu[i], force);
            for (int i = 0; i < p; ++i) force = std::fma(model.G[size_t(i) * n + j], found.lam[i] - found.lam[p + i], force);
            found.nu[model.m + s] = -force;
        }
        return true;
    }
    template <class V> bool closest(const Answer& point, Answer& found) const {
        const Fixed f = fix(point);
        if (!best_of<V>(f, found)) return false;
        for (size_t s = 0; s < f.sides.size(); ++s)  // may be negative where a row is violated
            found.lam[f.sides[s]] = model.sign(f.sides[s]) * found.nu[model.m + s];
        found.nu.resize(model.m);
        scaled.store(found, false);
        return true;
    }
};

// CLOSEST, in two stages (top of this file). With S the rows whose values u least violation gives and B the bounds it presses
// against, the second stage is a QP with C_S z = u and z_B = bound; its adjoint is v. The first, min ½|C_S z − d|² with
// z_B = bound, gives u = C_S z; its adjoint is w = K₁⁻¹ C_S'v_S. So grad_d = C_S w, grad C_S = −(nu_S v_z' + (C_S w) z' + τ w')
// with τ = C_S z − d, and bounds in B get the multipliers of both.
template <class V> bool derive_closest(const Rung& rung, const Scaled& scaled) {
    const Model& model = rung.model;
    const int n = model.n, m = model.m, p = model.p;
    const Model least = violation_of(model);
    Attempt<V> soft(least, 1);
    soft.solve(1e-12, rung.iterations);
    const Answer point = soft.violations(model);
    const Rung::Fixed f = rung.fix(point);
    Attempt<V> second(f.model, 0);
    Answer best;
    if (!rung.best_of<V>(f, best)) return false;

    Numbers rz, rnu, rk, weight(model.sides(), 0.0);
    scaled.load_rhs(rz, rnu, rk);
    for (int k : f.sides) rnu.push_back(model.sign(k) * rk[k]), rk[k] = 0;
    for (int k = 0; k < model.sides(); ++k) weight[k] = best.lam[k] > 0 || second.idle_equality(k, best) ? inf : 0;
    for (int j = 0; j < n; ++j)  // the middle between bounds that cross moves with both
        if (scaled.crossed(j)) weight[2 * p + j] = weight[2 * p + n + j] = inf;
    Answer v;
    bool fine = second.equations(rz, rnu, rk, weight, v);

    Model first = least;  // Q = C_S'C_S, z_B fixed
    std::fill(first.h.begin(), first.h.end(), inf), std::fill(first.h_lower.begin(), first.h_lower.end(), -inf);
    Numbers force(n, 0.0);
    std::vector<int> bounds;  // of f.sides
    const auto add = [&](const double* row, double multiplier, bool curvature) {
        for (int j = 0; j < n; ++j) {
            force[j] += row[j] * multiplier;
            for (int l = 0; curvature && l < n; ++l) first.Q[size_t(j) * n + l] += row[j] * row[l];
        }
    };
    for (int i = 0; i < m; ++i) add(model.A.data() + size_t(i) * n, v.nu[i], false);  // (violation_of has their curvature)
    for (size_t s = 0; s < f.sides.size(); ++s) {
        const int row = model.row_of(f.sides[s]);
        if (row < p) {
            add(model.G.data() + size_t(row) * n, v.nu[m + s], true);
        } else {
            bounds.push_back(int(s)), ++first.m, first.b.push_back(0);
            for (int j = 0; j < n; ++j) first.A.push_back(double(j == row - p));
        }
    }
    Attempt<V> stage(first, 0);
    Answer w;
    fine &= stage.equations(force, Numbers(first.m, 0.0), Numbers(model.sides(), 0.0), Numbers(model.sides(), 0.0), w);
    const auto along = [&](const double* row) {
        double sum = 0;
        for (int j = 0; j < n; ++j) sum += row[j] * w.z[j];
        return sum;
    };
    Numbers tau(p + m, 0.0);
    Answer out = v;
    out.nu.resize(m);
    for (int i = 0; i < m; ++i) out.nu[i] = along(model.A.data() + size_t(i) * n), tau[p + i] = point.nu[i];
    for (size_t s = 0; s < f.sides.size(); ++s) {
        const int k = f.sides[s], row = model.row_of(k);
        if (row >= p) continue;
        out.lam[k] = model.sign(k) * along(model.G.data() + size_t(row) * n), tau[row] = model.sign(k) * point.lam[k];
    }
    for (size_t i = 0; i < bounds.size(); ++i) {
        const int k = f.sides[bounds[i]];
        out.lam[k] = model.sign(k) * (v.nu[m + bounds[i]] + w.nu[i]);
    }
    scaled.store_derivative(out);
    scaled.store_least(w.z, tau);
    return fine;
}

struct DerivativeOf {  // of a solved member: right-hand side, and the inverse of what each side gives, infinite: nothing
    Numbers rz, rnu, rk, weight;

    DerivativeOf(const Args& g, const Scaled& scaled) : weight(scaled.model.sides(), 0.0) {
        scaled.load_rhs(rz, rnu, rk);
        const Answer point = scaled.recall();
        Attempt<double> attempt(scaled.model, 0);
        for (int k = 0; k < scaled.model.sides(); ++k) {
            if (g.smoothing == 0 && attempt.idle_equality(k, point)) weight[k] = inf;
            if (!(point.lam[k] > 0)) continue;
            weight[k] = inf;
            if (g.smoothing > 0) weight[k] = point.lam[k] * point.lam[k] / (g.smoothing * scaled.objective);  // lam/s with lam s = κ
        }
    }
};
template <class V> bool derive(const Scaled& scaled, const DerivativeOf& of) {
    Attempt<V> attempt(scaled.model, 0);
    Answer v;
    const bool fine = attempt.equations(of.rz, of.rnu, of.rk, of.weight, v);
    scaled.store_derivative(v);
    return fine;
}
// The same by the whole matrix, of least norm, where solution or multipliers are not unique:
//     [Q A' S'; A 0 0; S 0 -1/weight],  S the active sides.
bool derive_of_least_norm(const Args& g, const Scaled& scaled, const DerivativeOf& of) {
    const Model& model = scaled.model;
    std::vector<int> active;
    for (int k = 0; k < model.sides(); ++k)
        if (of.weight[k] > 0) active.push_back(k);
    const int n = model.n, m = model.m, p = model.p, N = n + m + int(active.size());
    if (N > most_of_least_norm) return false;
    Numbers K(size_t(N) * N), b(N), x(N);
    const auto unit = [&](int k) { return std::min(1.0, std::sqrt(of.weight[k])); };  // so that no entry is larger than one
    const auto put = [&](int i, int j, double value) { K[size_t(i) * N + j] = K[size_t(j) * N + i] = value; };
    for (int i = 0; i < n; ++i) {
        b[i] = of.rz[i];
        for (int j = 0; j <= i; ++j) put(i, j, model.Q[size_t(i) * n + j]);
    }
    for (int i = 0; i < m; ++i) {
        b[n + i] = of.rnu[i];
        for (int j = 0; j < n; ++j) put(n + i, j, model.A[size_t(i) * n + j]);
    }
    for (size_t s = 0; s < active.size(); ++s) {
        const int k = active[s], row = model.row_of(k), at = n + m + int(s);
        const double c = unit(k) * model.sign(k);
        b[at] = unit(k) * of.rk[k], put(at, at, -unit(k) * unit(k) / of.weight[k]);
        if (row >= p) put(at, row - p, c);
        for (int j = 0; row < p && j < n; ++j) put(at, j, c * model.G[size_t(row) * n + j]);
    }
    const bool fine = least_norm(N, K.data(), b.data(), g.single && g.smoothing == 0 ? rounded_zero : zero_direction, x.data());
    Answer v;
    v.z.assign(x.begin(), x.begin() + n), v.nu.assign(x.begin() + n, x.begin() + n + m), v.lam.assign(model.sides(), 0);
    for (size_t s = 0; s < active.size(); ++s) v.lam[active[s]] = unit(active[s]) * x[n + m + s];
    scaled.store_derivative(v);
    return fine;
}

}  // namespace

bool rescale(const Args& g, int64_t k) {
    const Scaled scaled(g, k);
    if (scaled.contradicts(g.tolerance)) return false;
    Answer found;
    const int32_t verdict = Rung(g, scaled).pivot(found);
    if (verdict == MAX_ITERATIONS) return false;
    *(static_cast<int32_t*>(g.status.data) + k * g.status.stride) = verdict;
    scaled.finish(found.iterations);
    return true;
}

int32_t rescue(const Args& g, int64_t k, bool pivoted) {
    const Scaled scaled(g, k);
    int32_t& status = *(static_cast<int32_t*>(g.status.data) + k * g.status.stride);
    Answer found;
    found.iterations = 0;
    if (g.smoothing > 0) {
        Attempt<double> attempt(scaled.model, 0);
        const double aim = g.smoothing * scaled.objective;
        bool fine = attempt.relax(aim, g.max_iterations);
        found = attempt.answer();
        if (!fine) {
            Attempt<Twofold> careful(scaled.model, 0);
            fine = careful.relax(aim, g.max_iterations), found = careful.answer();
        }
        scaled.store(found, false);
        status = fine ? SOLVED : NUMERICAL_ERROR;
        double count = 0;
        for (int s = 0; s < scaled.model.sides(); ++s) count += scaled.model.side(s) < inf;
        scaled.finish(found.iterations, count * g.smoothing);
        return status;
    }
    const bool contradiction = scaled.contradicts(g.tolerance);
    if (contradiction && !g.closest) {
        status = PRIMAL_INFEASIBLE;
    } else {
        const Rung rung(g, scaled);
        const bool hopeless = g.closest && status == PRIMAL_INFEASIBLE;  // a rung before has proven it
        status = pivoted || contradiction ? MAX_ITERATIONS : rung.pivot(found);
        if (status == MAX_ITERATIONS) status = hopeless ? rung.settle<double>(found) : rung.climb<double>(found);
        if ((status == MAX_ITERATIONS || status == ROUGH) && rung.affords_twofold(status == ROUGH)) {
            Answer better;
            const int32_t again = rung.climb<Twofold>(better);
            if (again != MAX_ITERATIONS || status != ROUGH) status = again, found = better;
        }
        if (status == ROUGH) status = SOLVED;
        if (status == MAX_ITERATIONS) {
            scaled.store(found, false);
            if (found.iterations < g.max_iterations) status = NUMERICAL_ERROR;
        }
        if (contradiction && status == SOLVED) status = CLOSEST;
    }
    scaled.finish(found.iterations);
    return status;
}

void rescue_derivative(const Args& g, int64_t k) {
    const Scaled scaled(g, k);
    if (*(static_cast<const int32_t*>(g.status.data) + k * g.status.stride) == CLOSEST) {
        const Rung rung(g, scaled);
        if (!derive_closest<double>(rung, scaled)) derive_closest<Twofold>(rung, scaled);
        return;
    }
    const DerivativeOf of(g, scaled);
    if (derive_of_least_norm(g, scaled, of)) return;
    if (g.single || !Rung(g, scaled).affords_twofold()) derive<double>(scaled, of);
    else derive<Twofold>(scaled, of);
}

bool is_convex(const Args& g, int64_t k) {
    const int n = g.n;
    const double* Q = static_cast<const double*>(g.Q.data) + k * g.Q.stride;
    Numbers K(g.diagonal ? 0 : size_t(n) * n), inverse(n);
    for (int i = 0; i < n && !g.diagonal; ++i)
        for (int j = 0; j < n; ++j) K[size_t(i) * n + j] = 0.5 * Q[size_t(i) * n + j] + 0.5 * Q[size_t(j) * n + i];
    Data<double, double> a{};
    a.n = n, a.diagonal = g.diagonal, a.Q = g.diagonal ? Q : K.data();
    return is_convex(Solo<double>(), a, K.data(), inverse.data(), g.single ? double(Tuning<float>::convex) : Tuning<double>::convex);
}

}  // namespace optlayer

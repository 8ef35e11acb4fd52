// What the first rungs leave: problems that are badly scaled, dependent, nearly parallel, degenerate, infeasible, unbounded.
//
// A member is brought into units of its own (`Scaled`): powers of two, so that nothing is rounded, with rows that are bounds
// made bounds and zero rows settled. There it meets, until one of them ends it,
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

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "call.h"

namespace optlayer {
namespace {

using Numbers = std::vector<double>;
constexpr double inf = std::numeric_limits<double>::infinity();

// ---- a problem and its answer --------------------------------------------------------------------------------------

struct Model {  // rows of Q, G and A are contiguous
    int n = 0, m = 0, p = 0;
    Numbers Q, q, G, A, b, h, h_lower, lb, ub;  // infinite sides are none

    int sides() const { return 2 * p + 2 * n; }
    // Sides in the order of Sides: upper and lower sides of the rows, lower and upper bounds; each as σ c'z <= value.
    double side(int k) const { return k < p ? h[k] : k < 2 * p ? -h_lower[k - p] : k < 2 * p + n ? -lb[k - 2 * p] : ub[k - 2 * p - n]; }
    int row_of(int k) const { return k < p ? k : k < 2 * p ? k - p : k < 2 * p + n ? p + k - 2 * p : p + k - 2 * p - n; }
    double sign(int k) const { return k < p || k >= 2 * p + n ? 1 : -1; }
};

struct Answer {
    Numbers z, nu, lam;
    int iterations = 0;
};

// One problem in the hands of the interior point, in precision V.
template <class V> class Attempt {
  public:
    using Team = Solo<V>;
    using System = Normal<Team, V, double>;
    using Loop = Interior<Team, V, double, System>;

    Attempt(const Model& model, double soft, double soft_equality = 0) : model_(model), system(team, a, false), loop(team, a, system, x, out) {
        a.n = model.n, a.m = model.m, a.p = model.p, a.bounds = model.n, a.diagonal = false;
        a.Q = model.Q.data(), a.G = model.G.data(), a.A = model.A.data();
        x.p = x.below = x.base = model.p, x.lower = x.upper = model.n, x.soft = V(soft), x.soft_equality = system.soft = V(soft_equality), system.kappa = V(1), loop.equilibrated = true;
        Arena measure;
        place(measure);
        Arena arena(static_cast<char*>(room_.reserve(measure.used)));
        place(arena);
        for (int j = 0; j < model.n; ++j) q_[j] = V(model.q[j]);
        for (int i = 0; i < model.m; ++i) b_[i] = V(model.b[i]);
        for (int k = 0; k < model.sides(); ++k) {
            const double side = model.side(k);
            x.on[k] = V(side < inf), x.h[k] = side < inf ? V(side) : V(0), x.active[k] = V(0);
        }
        out.iterations = out.solved = V(0);
    }

    bool solve(double tolerance, int iterations, double spread = 1) {
        system.spread = spread;
        loop.run(V(tolerance), iterations, true);
        return out.solved > V(0);
    }
    // The relaxed problem lam∘s = aim.
    bool relax(double aim, int iterations) {
        loop.relax(V(aim), iterations);
        return out.solved > V(0);
    }
    Answer answer() const {
        Answer found;
        for (int j = 0; j < model_.n; ++j) found.z.push_back(double(out.z[j]));
        for (int i = 0; i < model_.m; ++i) found.nu.push_back(double(out.nu[i]));
        for (int k = 0; k < model_.sides(); ++k) found.lam.push_back(double(out.lam[k]));
        found.iterations = int(double(out.iterations));
        return found;
    }
    // Its answer to the problem of least violation of `original`, whose equalities have A z − b for multipliers.
    Answer violations(const Model& original) const {
        Answer found = answer();
        for (int i = 0; i < original.m; ++i) {
            V off = V(-original.b[i]);
            for (int j = 0; j < original.n; ++j) off = fma(V(original.A[size_t(i) * original.n + j]), out.z[j], off);
            found.nu.push_back(double(off));
        }
        return found;
    }
    // A given answer in place of a computed one, sides with a multiplier active; returns its largest relative residual.
    V judge(const Answer& given) {
        for (int j = 0; j < model_.n; ++j) out.z[j] = V(given.z[j]);
        for (int i = 0; i < model_.m; ++i) out.nu[i] = V(given.nu[i]);
        for (int i = 0; i < a.rows(); ++i) out.y[i] = V(0);
        x.each(team, [&](int k, int i, V sg) {
            out.lam[k] = V(given.lam[k]), x.active[k] = V(given.lam[k] > 0);
            out.y[i] = fma(sg, out.lam[k], out.y[i]);
        });
        keep_bounds(team, x, out, true);
        const V error = loop.judge();
        loop.measure();
        return error;
    }
    // Whether side k is an equality at the point that was judged, but for the tolerance and rounding.
    bool holds(int k, double tolerance) {
        const int row = model_.row_of(k);
        const V off = abs(V(model_.sign(k)) * x.v[row] - x.h[k]), terms = loop.a.row_size(row, out.z) + abs(x.h[k]);
        return off <= V(tolerance) * terms + loop.in_rows.usual * loop.a.row_size(row, loop.scale);
    }
    bool idle_equality(int k, const Answer& point) const { return x.idle_equality(k, point.lam.data()); }
    // Farkas' proof in y and nu, or a ray in z: both scaled, into `out`.
    bool proves(double tolerance, double most) { return loop.prove(true, out.y, out.nu, V(tolerance), V(most)); }
    bool falls(const Numbers& ray, double tolerance, double steep) {
        for (int j = 0; j < model_.n; ++j) system.w[j] = V(ray[j]);
        return loop.falls(system.w, V(tolerance), V(0), V(steep));
    }

    // Q vz + A'vnu + C'vy = rz,  A vz = rnu,  σ c'vz - (s/lam) vk = rk over the sides with weight > 0 (infinite: an equality),
    // vk = 0 on the others; from zero, so of least norm. False: refinement did not converge.
    bool equations(const Numbers& rz, const Numbers& rnu, const Numbers& rk, const Numbers& weight, Answer& v) {
        const int n = model_.n, m = model_.m, S = model_.sides();
        Numbers dz(n), dnu(m);
        system.find_unit();
        for (int i = 0; i < a.rows(); ++i) x.D[i] = V(0);
        x.each(team, [&](int k, int i, V) {
            const V hard = system.hard(i), soft = weight[k] < inf && weight[k] > 0 ? V(1) / V(weight[k]) : V(0);
            x.weight[k] = weight[k] > 0 ? hard / fma(soft + x.soft_side(k), hard, V(1)) : V(0);
            x.c[k] = soft + x.soft_side(k), x.D[i] = x.D[i] + x.weight[k], x.lam[k] = V(0);
        });
        system.factor(x.D);
        std::vector<V> vz(n, V(0)), vnu(m, V(0)), gz(n), gnu(m), dzv(n), dnuv(m);
        const auto size = [](const V* v, int count) {
            V top = V(0);
            for (int i = 0; i < count; ++i) top = max(top, abs(v[i]));
            return top;
        };
        constexpr int most = 30;  // rounds of refinement
        V force = V(0), move = V(0), before = V(1e300), left = V(1);
        for (int round = 0;; ++round) {
            for (int i = 0; i < a.rows(); ++i) out.y[i] = V(0);
            x.each(team, [&](int k, int i, V sg) { out.y[i] = fma(sg, x.lam[k], out.y[i]); });
            for (V& g : gz) g = V(0);
            a.add_Qz(team, vz.data(), gz.data());
            force = max(force, size(gz.data(), n));
            a.add_rows_t(team, out.y, gz.data()), a.add_At(team, vnu.data(), gz.data());
            for (int j = 0; j < n; ++j) gz[j] = V(rz[j]) - gz[j], force = max(force, abs(V(rz[j])));
            a.A_times(team, vz.data(), gnu.data());
            for (int i = 0; i < m; ++i) {
                move = max(move, max(abs(gnu[i]), abs(V(rnu[i]))));
                gnu[i] = V(rnu[i]) - fnma(x.soft_equality, vnu[i], gnu[i]);
            }
            a.rows_times(team, vz.data(), x.v);
            for (int i = 0; i < a.rows(); ++i) x.e[i] = V(0);
            V off = size(gnu.data(), m);
            x.each(team, [&](int k, int i, V sg) {
                const bool wanted = x.weight[k] > V(0);
                x.r[k] = wanted ? fma(x.c[k], x.lam[k], V(rk[k]) - sg * x.v[i]) : V(0);
                if (wanted) move = max(move, max(abs(x.v[i]), abs(V(rk[k])))), off = max(off, abs(x.r[k]));
                x.e[i] = fnma(sg * x.weight[k], x.r[k], x.e[i]);
            });
            const V now = max(Loop::relative(size(gz.data(), n), force), Loop::relative(off, move));
            left = now;
            if (now <= V(1e-15) || (round > 3 && !(now < V(0.5) * before)) || round == most) break;
            before = now;
            system.kkt(gz.data(), gnu.data(), x.e, dzv.data(), dnuv.data(), x.dy, x.dt);
            for (int j = 0; j < n; ++j) vz[j] = vz[j] + dzv[j];
            for (int i = 0; i < m; ++i) vnu[i] = vnu[i] + dnuv[i];
            x.each(team, [&](int k, int i, V sg) { x.lam[k] = fma(x.weight[k], sg * x.dt[i] - x.r[k], x.lam[k]); });
        }
        v.z.assign(n, 0), v.nu.assign(m, 0), v.lam.assign(S, 0);
        for (int j = 0; j < n; ++j) v.z[j] = double(vz[j]);
        for (int i = 0; i < m; ++i) v.nu[i] = double(vnu[i]);
        for (int k = 0; k < S; ++k) v.lam[k] = double(x.lam[k]);
        return left <= V(1e-11);
    }

  private:
    const Model& model_;
    Scratch room_;
    V *q_, *b_;
    Team team;
    Data<V, double> a{};
    Sides<V> x{};
    Point<V> out{};

  public:
    System system;
    Loop loop;

  private:
    void place(Arena& w) {
        q_ = w.take<V>(a.n), b_ = w.take<V>(a.m), a.q = q_, a.b = b_;
        x.place(w, w), out.place(w, a.n, a.m, a.rows(), x.total());
        system.place(w, w), loop.place(w);
    }
};

// The active set of the first rung for one problem: SOLVED, PRIMAL_INFEASIBLE with its proof for an answer, or neither.
int32_t by_active_set(const Model& model, double tolerance, int iterations, Answer& found) {
    const int n = model.n, m = model.m, p = model.p;
    const auto tensor = [](const Numbers& x) { return Tensor{const_cast<double*>(x.data()), 0}; };
    Numbers slacks(model.sides()), residuals(3);
    found.z.resize(n), found.nu.resize(m), found.lam.resize(model.sides());
    int32_t status = MAX_ITERATIONS;
    Args g{};
    g.n = n, g.m = m, g.p = p, g.batch = 1, g.tolerance = tolerance, g.max_iterations = iterations, g.polish = 1;
    g.Q = tensor(model.Q), g.q = tensor(model.q), g.G = tensor(model.G), g.h = tensor(model.h), g.h_lower = tensor(model.h_lower);
    g.A = tensor(model.A), g.b = tensor(model.b), g.lb = tensor(model.lb), g.ub = tensor(model.ub);
    double* lam = found.lam.data();
    g.z = tensor(found.z), g.nu = tensor(found.nu), g.s = tensor(slacks);
    g.lam = {lam, 0}, g.lam_lower = {lam + p, 0}, g.lam_lb = {lam + 2 * p, 0}, g.lam_ub = {lam + 2 * p + n, 0};
    g.status = {&status, 0}, g.iterations = {&found.iterations, 0};
    g.primal_residual = {&residuals[0], 0}, g.dual_residual = {&residuals[1], 0}, g.gap = {&residuals[2], 0};
    Plan plan{};
    plan.method = ACTIVE, plan.lanes = 1, plan.n = n, plan.m = m, plan.p = p, plan.bounds = n;
    plan.below = plan.lower = plan.upper = plan.whole = true;
    Scratch room;
    Arena kept, size, keep;
    run_group<double, double>(g, plan, nullptr, 0, kept, size, Task::SOLVE, nullptr);
    Arena work(static_cast<char*>(room.reserve(kept.used + size.used)));
    run_group<double, double>(g, plan, nullptr, 0, keep, work, Task::SOLVE, nullptr);
    return status;
}

// ---- a member in units of its own ------------------------------------------------------------------------------------

double power_of_two(double x) {  // near 1/sqrt(x)
    if (!(x > 0) || !(x < inf)) return 1;
    int exponent;
    std::frexp(x, &exponent);
    return std::ldexp(1.0, -(exponent >= 0 ? exponent / 2 : -((-exponent + 1) / 2)));
}

class Scaled {
  public:
    Model model;  // of the rows that are left, in the units below

    Scaled(const Args& args, int64_t member) : g(args), k(member), n(args.n) {
        load();
        settle_rows();
        equilibrate();
    }

    // Whether the data contradict themselves at the door: a zero row with a side beyond zero, or crossing bounds. The proof is
    // written.
    bool contradicts(double tolerance) const {
        if (bad_row >= 0) {
            nothing();
            if (bad_equality) *at(g.nu, bad_row) = -1 / user_b[bad_row];
            else if (user_h[bad_row] < 0) *at(g.lam, bad_row) = -1 / user_h[bad_row];
            else *at(g.lam_lower, bad_row) = 1 / user_below[bad_row];
            return true;
        }
        for (int j = 0; j < n; ++j) {
            const double over = low[j] - high[j];
            if (!(over > tolerance * (std::abs(low[j]) + std::abs(high[j])))) continue;
            if (g.closest) return true;
            nothing();
            if (g.z.data) *at(g.z, j) = low[j] / 2 + high[j] / 2;
            put_bound(j, false, 1 / over), put_bound(j, true, 1 / over);
            return true;
        }
        return false;
    }

    // The answer in the user's units; `proof`: multipliers are a proof, which has no unit of the objective.
    void store(const Answer& found, bool proof) const {
        nothing();
        const double c = proof ? 1 : objective;
        for (int j = 0; j < n; ++j) *at(g.z, j) = found.z[j] * D[j];
        for (int i = 0; i < model.m; ++i) put_equality(i, found.nu[i] < 0, multipliers(), found.nu[i] * F[i] / c);
        for (int i = 0; i < model.p; ++i) {
            *at(g.lam, rows[i]) = found.lam[i] * E[i] / c;
            if (g.lam_lower.data) *at(g.lam_lower, rows[i]) = found.lam[model.p + i] * E[i] / c;
        }
        for (int j = 0; j < n; ++j) {
            put_bound(j, false, found.lam[2 * model.p + j] / (c * D[j]));
            put_bound(j, true, found.lam[2 * model.p + n + j] / (c * D[j]));
            if (low[j] > high[j] || g.smoothing > 0) continue;
            double& z = *at(g.z, j);  // exactly at a bound that is active there (it may have been divided by a unit)
            if (found.lam[2 * model.p + j] > 0 || z < low[j]) z = 0.0 + low[j];
            else if (found.lam[2 * model.p + n + j] > 0 || z > high[j]) z = 0.0 + high[j];
        }
    }
    void store_ray(const Numbers& ray) const {
        nothing();
        for (int j = 0; j < n; ++j) *at(g.z, j) = ray[j] * D[j] * objective;
    }
    // Slacks, residuals and iterations of what is stored.
    void finish(int iterations, double relaxed_gap = 0) const {
        if (g.single == 2) round();
        double primal = 0, dual = 0, gap = 0;
        Numbers gradient(n), z(n);
        for (int j = 0; j < n; ++j) z[j] = *at(g.z, j), gradient[j] = user_q[j];
        for (int j = 0; j < n; ++j) {
            double Qz = 0;
            for (int i = 0; i < n; ++i) Qz += user_Q[size_t(j) * n + i] * z[i];
            gap += z[j] * (Qz + user_q[j]), gradient[j] += Qz;
        }
        for (int i = 0; i < g.p; ++i) {
            double value = 0, slack = inf;
            const double* row = user_G + size_t(i) * n;
            for (int j = 0; j < n; ++j) value += row[j] * z[j];
            const double lam = *at(g.lam, i), below = g.lam_lower.data ? *at(g.lam_lower, i) : 0;
            if (user_h[i] < inf) primal = std::max(primal, value - user_h[i]), gap += lam * user_h[i], slack = std::max(user_h[i] - value, 0.0);
            if (user_below[i] > -inf) primal = std::max(primal, user_below[i] - value), gap -= below * user_below[i];
            if (lam > 0 && relaxed_gap == 0) slack = 0;
            *at(g.s, i) = slack;
            for (int j = 0; j < n; ++j) gradient[j] += row[j] * (lam - below);
        }
        for (int i = 0; i < g.m; ++i) {
            double value = -user_b[i];
            const double* row = user_A + size_t(i) * n;
            for (int j = 0; j < n; ++j) value += row[j] * z[j], gradient[j] += row[j] * *at(g.nu, i);
            primal = std::max(primal, std::abs(value)), gap += user_b[i] * *at(g.nu, i);
        }
        for (int j = 0; j < n; ++j) {
            if (g.lb.data && *at(g.lb, j) > -inf) primal = std::max(primal, *at(g.lb, j) - z[j]), gap -= *at(g.lb, j) * *at(g.lam_lb, j);
            if (g.ub.data && *at(g.ub, j) < inf) primal = std::max(primal, z[j] - *at(g.ub, j)), gap += *at(g.ub, j) * *at(g.lam_ub, j);
            if (g.lam_lb.data) gradient[j] -= *at(g.lam_lb, j);
            if (g.lam_ub.data) gradient[j] += *at(g.lam_ub, j);
            dual = std::max(dual, std::abs(gradient[j]));
        }
        *at(g.primal_residual) = primal, *at(g.dual_residual) = dual, *at(g.gap) = std::abs(gap - relaxed_gap);
        *(static_cast<int32_t*>(g.iterations.data) + k * g.iterations.stride) = iterations;
    }

    // Multipliers of the point that is stored, in these units.
    Answer recall() const {
        Answer found;
        found.z.resize(n), found.nu.resize(model.m), found.lam.resize(model.sides());
        for (int j = 0; j < n; ++j) found.z[j] = *at(g.z, j) / D[j];
        for (int i = 0; i < model.m; ++i) {
            const Equality& e = equalities[i];
            const double nu = e.of_A ? *at(g.nu, e.row) : part(e.upper, true, 0, multipliers()) - part(e.lower, false, 0, multipliers());
            found.nu[i] = nu * objective / F[i];
        }
        for (int i = 0; i < model.p; ++i) {
            found.lam[i] = *at(g.lam, rows[i]) * objective / E[i];
            found.lam[model.p + i] = g.lam_lower.data ? *at(g.lam_lower, rows[i]) * objective / E[i] : 0;
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) found.lam[2 * model.p + upper * n + j] = bound(upper, j, multipliers()) * objective * D[j];
        return found;
    }
    // Right-hand sides of the derivative in these units, and its solution back in the user's.
    void load_rhs(Numbers& rz, Numbers& rnu, Numbers& rk) const {
        rz.assign(n, 0), rnu.assign(model.m, 0), rk.assign(model.sides(), 0);
        for (int j = 0; j < n && g.r_z.data; ++j) rz[j] = *at(g.r_z, j) * objective * D[j];
        const Homes right{&g.r_lam, &g.r_lower, &g.r_lb, &g.r_ub, &g.r_nu};
        for (int i = 0; i < model.m; ++i) rnu[i] = of_equality(i, right) * F[i];
        for (int i = 0; i < model.p; ++i) {
            if (g.r_lam.data) rk[i] = *at(g.r_lam, rows[i]) * E[i];
            if (g.r_lower.data) rk[model.p + i] = *at(g.r_lower, rows[i]) * E[i];
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) {
                const Owner& o = owner(upper, j);
                rk[2 * model.p + upper * n + j] = value(upper, j, right) / o.size() / D[j];
            }
    }
    void store_derivative(const Answer& v) const {
        const auto clear = [&](const Tensor& x, int count) {
            if (x.data) std::fill_n(at(x, 0), count, 0.0);
        };
        clear(g.v_lam, g.p), clear(g.v_lower, g.p), clear(g.v_nu, g.m), clear(g.v_lb, n), clear(g.v_ub, n);
        for (int j = 0; j < n; ++j) *at(g.v_z, j) = v.z[j] * D[j];
        const Homes answer{&g.v_lam, &g.v_lower, &g.v_lb, &g.v_ub, &g.v_nu};
        for (int i = 0; i < model.m; ++i) put_equality(i, pulls_down(i), answer, v.nu[i] * F[i] / objective);
        for (int i = 0; i < model.p; ++i) {
            *at(g.v_lam, rows[i]) = v.lam[i] * E[i] / objective;
            if (g.v_lower.data) *at(g.v_lower, rows[i]) = v.lam[model.p + i] * E[i] / objective;
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) put(upper, j, answer, v.lam[2 * model.p + upper * n + j] / (objective * D[j]));
    }

    bool crossed(int j) const { return low[j] > high[j]; }
    // w and τ in the user's units (rescue.h)
    void store_least(const Numbers& w, const Numbers& tau) const {
        if (!g.v_least.data) return;
        for (int j = 0; j < n; ++j) *at(g.v_least, j) = w[j] * D[j] / objective;
        for (int i = 0; i < model.p; ++i) *at(g.v_least, n + rows[i]) = tau[i] * E[i];
        for (int i = 0; i < model.m; ++i) {
            const Equality& e = equalities[i];
            const bool down = pulls_down(i);
            *at(g.v_least, n + (e.of_A ? g.p + e.row : e.side(down).row)) = tau[model.p + i] * F[i] / e.side(down).c;
        }
    }

    const Args& g;
    const int64_t k;
    const int n;
    double objective = 1;  // all of the objective is times this
    Numbers D, E, F;       // z = D ẑ; rows of G and A are times E, F

  private:
    struct Owner {  // of a side: the user's bound (row -1), or a side of a row of G that is this one times c
        int row = -1;
        double c = 1;
        double size() const { return std::abs(c); }
    };
    struct Homes { const Tensor *rows, *below, *lb, *ub, *nu; };
    struct Equality {  // a row of A, or a row of G that has no room between its sides, which may be those of parallel rows
        int row;
        bool of_A = true;
        double value = 0;
        Owner upper, lower;
        const Owner& side(bool down) const { return down ? lower : upper; }
    };
    std::vector<int> rows;  // of the user's G, that are rows of the model
    std::vector<Equality> equalities;
    std::vector<Owner> lower_owner, upper_owner;
    Numbers low, high;                  // bounds in the user's units
    Numbers user_Q, user_below;
    const double *user_q, *user_G, *user_h, *user_A, *user_b;
    int bad_row = -1;
    bool bad_equality = false;

    double* at(const Tensor& x, int64_t i = 0) const { return static_cast<double*>(x.data) + k * x.stride + i; }
    const Owner& owner(bool upper, int j) const { return (upper ? upper_owner : lower_owner)[j]; }
    Homes multipliers() const { return {&g.lam, &g.lam_lower, &g.lam_lb, &g.lam_ub, &g.nu}; }
    const Tensor& home(const Owner& o, bool upper, const Homes& of) const {
        return *(o.row < 0 ? (upper ? of.ub : of.lb) : upper == (o.c > 0) ? of.rows : of.below);
    }
    double value(const Owner& o, bool upper, int j, const Homes& of) const {
        const Tensor& x = home(o, upper, of);
        return x.data ? *at(x, o.row >= 0 ? o.row : j) : 0;
    }
    double part(const Owner& o, bool upper, int j, const Homes& of) const { return value(o, upper, j, of) * o.size(); }
    void put(const Owner& o, bool upper, int j, const Homes& to, double multiplier) const {
        const Tensor& x = home(o, upper, to);
        if (x.data) *at(x, o.row >= 0 ? o.row : j) = multiplier / o.size();
    }
    double value(bool upper, int j, const Homes& of) const { return value(owner(upper, j), upper, j, of); }
    double bound(bool upper, int j, const Homes& of) const { return part(owner(upper, j), upper, j, of); }
    void put(bool upper, int j, const Homes& to, double multiplier) const { put(owner(upper, j), upper, j, to, multiplier); }
    // Of the sides of an equality the one with a multiplier stands for it.
    bool pulls_down(int i) const { return !equalities[i].of_A && value(equalities[i].lower, false, 0, multipliers()) > 0; }
    double of_equality(int i, const Homes& of) const {
        const Equality& e = equalities[i];
        const bool down = pulls_down(i);
        if (!e.of_A) return (down ? -1 : 1) * value(e.side(down), !down, 0, of) / e.side(down).size();
        return of.nu->data ? *at(*of.nu, e.row) : 0;
    }
    void put_equality(int i, bool down, const Homes& to, double multiplier) const {
        const Equality& e = equalities[i];
        if (e.of_A) *at(*to.nu, e.row) = multiplier;
        else put(e.side(down), !down, 0, to, down ? -multiplier : multiplier);
    }
    void put_bound(int j, bool upper, double multiplier) const { put(upper, j, multipliers(), multiplier); }

    void load() {
        user_Q.resize(size_t(n) * n);
        const double* Q = at(g.Q);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < n; ++j) {
                double& to = user_Q[size_t(i) * n + j];
                to = g.diagonal ? (i == j ? Q[i] : 0) : 0.5 * Q[size_t(i) * n + j] + 0.5 * Q[size_t(j) * n + i];
            }
        user_q = at(g.q), user_G = at(g.G), user_h = at(g.h), user_A = at(g.A), user_b = at(g.b);
        user_below.assign(g.p, -inf);
        if (g.h_lower.data) std::copy_n(at(g.h_lower), g.p, user_below.begin());
    }
    // Zero rows go, rows of one entry become bounds where these are tighter, rows without room between their sides equalities.
    void settle_rows() {
        low.assign(n, -inf), high.assign(n, inf), lower_owner.resize(n), upper_owner.resize(n);
        if (g.lb.data) std::copy_n(at(g.lb), n, low.begin());
        if (g.ub.data) std::copy_n(at(g.ub), n, high.begin());
        const auto entries = [&](const double* row, int& last) {
            int count = 0;
            for (int j = 0; j < n; ++j)
                if (row[j] != 0) ++count, last = j;
            return count;
        };
        for (int i = 0; i < g.p; ++i) {
            int j = -1;
            const int count = entries(G_row(i), j);
            if (count == 0) {
                if (user_h[i] < 0 || user_below[i] > 0) bad_row = i;
            } else if (count == 1) {
                tighten(i, G_row(i)[j], low[j], high[j], lower_owner[j], upper_owner[j]);
            } else {
                rows.push_back(i);
            }
        }
        for (int i = 0; i < g.m; ++i) {
            int j = -1;
            if (entries(user_A + size_t(i) * n, j)) equalities.push_back({i, true, user_b[i], {}, {}});
            else if (user_b[i] != 0) bad_row = i, bad_equality = true;
        }
        if (!(g.smoothing > 0)) join_rows();  // (whose sides are to have slacks)
    }
    const double* G_row(int i) const { return user_G + size_t(i) * n; }
    // The sides of row i of G, which is `c` times what has these.
    void tighten(int i, double c, double& down, double& up, Owner& lower, Owner& upper) const {
        const double most = c > 0 ? user_h[i] / c : user_below[i] / c, least = c > 0 ? user_below[i] / c : user_h[i] / c;
        if (most < up) up = most, upper = {i, c};
        if (least > down) down = least, lower = {i, c};
    }
    // Rows that are parallel but for rounding, and of whose sides two leave no room but for rounding: an equality.
    void join_rows() {
        const double noise = Tuning<double>::noise(n);
        const auto ratio = [&](const double* x, const double* y) {  // of y to x, or 0
            double c = 0;
            for (int j = 0; j < n; ++j) {
                if ((x[j] != 0) != (y[j] != 0)) return 0.0;
                if (c == 0 && x[j] != 0) c = y[j] / x[j];
                if (std::abs(y[j] - c * x[j]) > Tuning<double>::parallel * std::abs(y[j])) return 0.0;
            }
            return c;
        };
        std::vector<int> left;
        std::vector<bool> joined(rows.size(), false);
        for (size_t k = 0; k < rows.size(); ++k) {
            if (joined[k]) continue;
            double down = -inf, up = inf;
            Equality e{rows[k], false, 0, {}, {}};
            std::vector<size_t> parallel;
            for (size_t l = k; l < rows.size(); ++l) {
                const double c = l == k ? 1 : joined[l] ? 0 : ratio(G_row(rows[k]), G_row(rows[l]));
                if (c != 0) parallel.push_back(l), tighten(rows[l], c, down, up, e.lower, e.upper);
            }
            const double over = down - up, size = std::abs(down) + std::abs(up);
            if (size < inf && over >= -noise * size && over <= g.tolerance * size) {
                e.value = down / 2 + up / 2;
                equalities.push_back(e);
                for (size_t l : parallel) joined[l] = true;
            } else {
                left.push_back(rows[k]);
            }
        }
        rows = left;
    }

    // Ruiz' scaling of the KKT matrix in powers of two: in every row and column the largest entry is near 1; and the objective
    // as a whole, so that Q or q is.
    void equilibrate() {
        const int m = int(equalities.size()), p = int(rows.size());
        model.n = n, model.m = m, model.p = p;
        model.Q = user_Q, model.q.assign(user_q, user_q + n);
        for (int i : rows) model.G.insert(model.G.end(), G_row(i), G_row(i) + n);
        for (const Equality& e : equalities) {
            const double* row = e.of_A ? user_A + size_t(e.row) * n : G_row(e.row);
            model.A.insert(model.A.end(), row, row + n);
        }
        D.assign(n, 1), E.assign(p, 1), F.assign(m, 1);
        Numbers columns(n), d(n);
        constexpr int sweeps = 12;  // each halves the spread of the exponents
        for (int sweep = 0; sweep < sweeps; ++sweep) {
            const auto scale_rows = [&](Numbers& M, Numbers& scales, int count) {
                for (int i = 0; i < count; ++i) {
                    double* row = M.data() + size_t(i) * n;
                    double top = 0;
                    for (int j = 0; j < n; ++j) top = std::max(top, std::abs(row[j])), columns[j] = std::max(columns[j], std::abs(row[j]));
                    const double e = power_of_two(top);
                    scales[i] *= e;
                    for (int j = 0; j < n; ++j) row[j] *= e;
                }
            };
            for (int j = 0; j < n; ++j) {
                columns[j] = 0;
                for (int i = 0; i < n; ++i) columns[j] = std::max(columns[j], std::abs(model.Q[size_t(j) * n + i]));
            }
            scale_rows(model.G, E, p), scale_rows(model.A, F, m);
            for (int j = 0; j < n; ++j) d[j] = power_of_two(columns[j]), D[j] *= d[j], model.q[j] *= d[j];
            for (int i = 0; i < n; ++i)
                for (int j = 0; j < n; ++j) model.Q[size_t(i) * n + j] *= d[i] * d[j];
            for (Numbers* M : {&model.G, &model.A})
                for (size_t i = 0; i < M->size(); ++i) (*M)[i] *= d[i % n];
            double top = 0;
            for (int j = 0; j < n; ++j) top = std::max(top, std::abs(model.q[j]));
            for (double x : model.Q) top = std::max(top, std::abs(x));
            const double c = power_of_two(top) * power_of_two(top);
            objective *= c;
            for (double& x : model.Q) x *= c;
            for (double& x : model.q) x *= c;
        }
        model.h.resize(p), model.h_lower.resize(p), model.b.resize(m), model.lb.resize(n), model.ub.resize(n);
        for (int i = 0; i < p; ++i) model.h[i] = user_h[rows[i]] * E[i], model.h_lower[i] = user_below[rows[i]] * E[i];
        for (int i = 0; i < m; ++i) model.b[i] = equalities[i].value * F[i];
        for (int j = 0; j < n; ++j) {  // between bounds that cross, the middle
            const double middle = low[j] / 2 + high[j] / 2;
            model.lb[j] = (crossed(j) ? middle : low[j]) / D[j], model.ub[j] = (crossed(j) ? middle : high[j]) / D[j];
        }
    }

    void nothing() const {
        const auto clear = [&](const Tensor& x, int count) {
            if (x.data) std::fill_n(at(x), count, 0.0);
        };
        clear(g.z, n), clear(g.lam, g.p), clear(g.lam_lower, g.p), clear(g.nu, g.m), clear(g.lam_lb, n), clear(g.lam_ub, n);
    }
    void round() const {
        const auto narrow = [&](const Tensor& x, int count) {
            for (int i = 0; x.data && i < count; ++i) *at(x, i) = double(float(*at(x, i)));
        };
        narrow(g.z, n), narrow(g.lam, g.p), narrow(g.lam_lower, g.p), narrow(g.nu, g.m), narrow(g.lam_lb, n), narrow(g.lam_ub, n);
    }
};

// ---- the rungs -------------------------------------------------------------------------------------------------------

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
// In a derivative, whose right-hand sides do not contradict each other by rounding, far less does that.
constexpr double blurred = 1e-8, blurred_derivative = 1e-11;
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

template <class V> bool derive(const Args& g, const Scaled& scaled) {
    const Model& model = scaled.model;
    Numbers rz, rnu, rk;
    scaled.load_rhs(rz, rnu, rk);
    const Answer point = scaled.recall();
    const double soft = g.single && std::is_same<V, double>::value ? blurred_derivative : 0;
    Attempt<V> attempt(model, soft, soft);
    Numbers weight(model.sides(), 0.0);
    for (int k = 0; k < model.sides(); ++k) {
        if (g.smoothing == 0 && attempt.idle_equality(k, point)) weight[k] = inf;
        if (!(point.lam[k] > 0)) continue;
        weight[k] = inf;
        if (g.smoothing > 0) weight[k] = point.lam[k] * point.lam[k] / (g.smoothing * scaled.objective);  // lam/s with lam s = κ
    }
    Answer v;
    const bool fine = attempt.equations(rz, rnu, rk, weight, v);
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
    if (!derive<double>(g, scaled) && !g.single && Rung(g, scaled).affords_twofold()) derive<Twofold>(g, scaled);
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

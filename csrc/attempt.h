// One problem (`Model`) in the hands of a method: the interior point in precision V, or the active set.
#pragma once
#include "scaled.h"

namespace optlayer {

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
                gnu[i] = V(rnu[i]) - gnu[i];
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
inline int32_t by_active_set(const Model& model, double tolerance, int iterations, Answer& found) {
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

}  // namespace optlayer

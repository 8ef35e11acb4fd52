// Every elimination and the active-set method, forward and for the derivative, over Solo and Scrambled: the answer
// meets the tolerance and does not depend on the order in which a team works. (Lanes: tests/test_core.py.)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/solver.h"
#include "room.h"

using namespace optlayer;

static int failures = 0;
static std::mt19937_64 generator(7);

static void expect(bool fine, const char* what, const char* where, int n, int m, int p) {
    if (fine) return;
    ++failures;
    std::printf("FAILED %s: %s, n=%d m=%d p=%d\n", what, where, n, m, p);
}

template <class T> std::vector<T> random(size_t count) {
    std::normal_distribution<double> normal;
    std::vector<T> values(count);
    for (T& x : values) x = T(normal(generator));
    return values;
}

// Data and answer of a batch with bounds, made feasible.
template <class T> struct Batch {
    int n, m, p, batch;
    std::vector<T> Q, q, G, h, A, b, lb, ub, z, s, lam, nu, lower, upper, primal, dual, gap, rz, vz, vlam, vnu, vlb, vub;
    std::vector<int32_t> status, iterations;
    std::vector<int> kept, rows;

    Batch(int n_, int m_, int p_, int batch_) : n(n_), m(m_), p(p_), batch(batch_) {
        const auto W = random<T>(size_t(batch) * n * n), z0 = random<T>(size_t(batch) * n);
        Q.assign(size_t(batch) * n * n, T(0)), q = random<T>(size_t(batch) * n);
        G = random<T>(size_t(batch) * p * n), A = random<T>(size_t(batch) * m * n);
        h.assign(size_t(batch) * p, T(0)), b.assign(size_t(batch) * m, T(0));
        lb = z0, ub = z0;
        for (int k = 0; k < batch; ++k) {
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < n; ++j) {
                    T sum = i == j ? T(n) : T(0);
                    for (int l = 0; l < n; ++l) sum += W[(size_t(k) * n + i) * n + l] * W[(size_t(k) * n + j) * n + l];
                    Q[(size_t(k) * n + i) * n + j] = sum;
                }
                lb[size_t(k) * n + i] -= T(0.1), ub[size_t(k) * n + i] += T(0.2);
            }
            for (int i = 0; i < p; ++i) {
                h[size_t(k) * p + i] = T(0.1);
                for (int j = 0; j < n; ++j) h[size_t(k) * p + i] += G[(size_t(k) * p + i) * n + j] * z0[size_t(k) * n + j];
            }
            for (int i = 0; i < m; ++i)
                for (int j = 0; j < n; ++j) b[size_t(k) * m + i] += A[(size_t(k) * m + i) * n + j] * z0[size_t(k) * n + j];
        }
        rz = random<T>(size_t(batch) * n);
        for (auto* x : {&z, &lower, &upper, &vz, &vlb, &vub}) x->assign(size_t(batch) * n, T(0));
        for (auto* x : {&s, &lam, &vlam}) x->assign(size_t(batch) * p, T(0));
        for (auto* x : {&nu, &vnu}) x->assign(size_t(batch) * m, T(0));
        for (auto* x : {&primal, &dual, &gap}) x->assign(batch, T(0));
        status.assign(batch, -1), iterations.assign(batch, 0);
        for (int i = 0; i < p; ++i) kept.push_back(i);
        rows.assign(n, -1);
    }
    // The same data in another precision.
    template <class U> Batch<U> as() const {
        Batch<U> other(n, m, p, 0);
        other.batch = batch;
        const auto copy = [](const std::vector<T>& from, std::vector<U>& to) { to.assign(from.begin(), from.end()); };
        copy(Q, other.Q), copy(q, other.q), copy(G, other.G), copy(h, other.h), copy(A, other.A), copy(b, other.b);
        copy(lb, other.lb), copy(ub, other.ub), copy(rz, other.rz);
        for (auto* x : {&other.z, &other.lower, &other.upper, &other.vz, &other.vlb, &other.vub}) x->assign(z.size(), U(0));
        for (auto* x : {&other.s, &other.lam, &other.vlam}) x->assign(s.size(), U(0));
        for (auto* x : {&other.nu, &other.vnu}) x->assign(nu.size(), U(0));
        for (auto* x : {&other.primal, &other.dual, &other.gap}) x->assign(batch, U(0));
        other.status.assign(batch, -1), other.iterations.assign(batch, 0);
        return other;
    }
    template <class X> static Tensor tensor(std::vector<X>& x, int width) { return {x.empty() ? nullptr : x.data(), width}; }
    Args args(bool bounded) {
        Args g{};
        g.n = n, g.m = m, g.p = p, g.batch = batch, g.single = sizeof(T) == 4, g.max_iterations = 60, g.polish = 1;
        g.tolerance = sizeof(T) == 4 ? 1e-5 : 1e-9;
        g.Q = tensor(Q, n * n), g.q = tensor(q, n), g.G = tensor(G, p * n), g.h = tensor(h, p);
        g.A = tensor(A, m * n), g.b = tensor(b, m), g.z = tensor(z, n), g.s = tensor(s, p), g.lam = tensor(lam, p);
        g.nu = tensor(nu, m), g.status = tensor(status, 1), g.iterations = tensor(iterations, 1);
        g.primal_residual = tensor(primal, 1), g.dual_residual = tensor(dual, 1), g.gap = tensor(gap, 1);
        g.r_z = tensor(rz, n), g.v_z = tensor(vz, n), g.v_lam = tensor(vlam, p), g.v_nu = tensor(vnu, m);
        if (bounded) {
            g.lb = tensor(lb, n), g.ub = tensor(ub, n), g.lam_lb = tensor(lower, n), g.lam_ub = tensor(upper, n);
            g.v_lb = tensor(vlb, n), g.v_ub = tensor(vub, n);
        }
        return g;
    }
};

// Solves and differentiates all members with one method over a team.
template <class V, class Tm, class T> void run(Batch<T>& data, const Args& g, Method method) {
    Plan plan{};
    plan.method = method, plan.n = g.n, plan.m = g.m, plan.p = g.p, plan.lanes = lanes_of<V>, plan.whole = true;
    plan.lower = plan.upper = g.lb.data != nullptr, plan.bounds = plan.lower ? g.n : 0;
    plan.kept = data.kept.data(), plan.lower_row = plan.upper_row = data.rows.data();
    Room kept_room, work_room;
    for (int first = 0; first < g.batch; first += lanes_of<V>)
        for (bool adjoint : {false, true}) {
            size_t keep_bytes = 0, work_bytes = 0;
            for (bool measure : {true, false}) {
                if (!measure) {
                    if (!adjoint) kept_room.reserve(keep_bytes);
                    work_room.reserve(work_bytes);
                }
                Group<V, V, Tm> group(g, plan);
                Arena keep(measure ? nullptr : kept_room.at()), work(measure ? nullptr : work_room.at());
                group.place_matrices(work, nullptr, nullptr, nullptr);
                group.place_sides(keep, work);
                if (!measure) {
                    group.choose_members(first);
                    group.load_matrices();
                    if (!adjoint) group.load_vectors(), group.load_sides();
                }
                auto bad = V(0) > V(1);
                const auto finish = [&](auto& system) {
                    if (adjoint) group.adjoint(system, work, false);
                    else group.solve(system, work, bad);
                };
                if (method == ACTIVE) {
                    ActiveFactors<V> f{};
                    f.place(keep, work, work, g.n, g.m, g.p, plan.bounds, false, true);
                    if (!measure && !adjoint) bad = f.prepare(group.t, group.a);
                    Active<Tm, V, V> system(group.t, group.a, f);
                    system.place(keep, work);
                    finish(system);
                } else if (method == SCHUR) {
                    SchurFactors<V> f{};
                    f.place(keep, g.n, g.m, g.p, false);
                    V* room = work.template take<V>(size_t(g.n) * (g.p + g.m));
                    if (!measure && !adjoint) bad = f.prepare(group.t, group.a, room);
                    Schur<Tm, V, V> system(group.t, group.a, f);
                    system.place(keep, work);
                    finish(system);
                } else {
                    Normal<Tm, V, V> system(group.t, group.a, false);
                    system.place(keep, work);
                    if (!measure && adjoint) system.find_unit();
                    finish(system);
                }
                keep_bytes = keep.used, work_bytes = work.used;
            }
        }
}

// Largest difference over the solved members, relative to the largest entry.
template <class T> double distance(const Batch<T>& a, const std::vector<T>& x, const std::vector<double>& y) {
    double most = 0, size = 1;
    const size_t width = x.size() / size_t(a.batch);
    for (size_t i = 0; i < x.size(); ++i) {
        if (a.status[i / width] != SOLVED) continue;
        const double difference = std::fabs(double(x[i]) - y[i]);
        if (!(difference <= most)) most = difference;  // NaN stays
        size = std::max(size, std::fabs(y[i]));
    }
    return most / size;
}

template <class Tm, class T> void compare(const char* where, int n, int m, int p, bool bounded) {
    const double close = sizeof(T) == 8 ? 1e-8 : 2e-4;
    const Batch<T> data(n, m, p, 5);
    auto truth = data.template as<double>();
    run<double, Solo<double>>(truth, truth.args(bounded), NORMAL);
    for (int32_t status : truth.status) expect(status == SOLVED, "normal equations", "double", n, m, p);
    for (Method method : {NORMAL, SCHUR, ACTIVE}) {
        if (method == SCHUR && (bounded || p == 0)) continue;
        Batch<T> copy = data;
        run<T, Tm>(copy, copy.args(bounded), method);
        const char* name = method == NORMAL ? "normal" : method == SCHUR ? "Schur" : "active";
        // in float the interior point may leave a member to double, which the caller asks next
        for (int32_t status : copy.status)
            expect(status == SOLVED || (sizeof(T) == 4 && method != ACTIVE), name, where, n, m, p);
        expect(distance(copy, copy.z, truth.z) < close, name, "z", n, m, p);
        expect(distance(copy, copy.lam, truth.lam) < 10 * close, name, "lam", n, m, p);
        expect(distance(copy, copy.lower, truth.lower) < 10 * close, name, "lam_lb", n, m, p);
        expect(distance(copy, copy.vz, truth.vz) < 10 * close, name, "v_z", n, m, p);
        expect(distance(copy, copy.vlam, truth.vlam) < 100 * close, name, "v_lam", n, m, p);
        expect(distance(copy, copy.vnu, truth.vnu) < 100 * close, name, "v_nu", n, m, p);
    }
}

template <class T> void test(const char* name) {
    const int sizes[][3] = {{1, 0, 1}, {3, 1, 4}, {8, 2, 0}, {10, 0, 10}, {17, 5, 20}, {40, 3, 30}};
    for (const auto& size : sizes)
        for (bool bounded : {false, true}) {
            compare<Solo<T>, T>(name, size[0], size[1], size[2], bounded);
            compare<Scrambled<T>, T>("Scrambled", size[0], size[1], size[2], bounded);
        }
    std::printf("%-7s %s\n", name, failures ? "FAILED" : "ok");
}

int main() {
    test<double>("double"), test<float>("float");
    return failures != 0;
}

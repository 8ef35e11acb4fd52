// The team of a GPU, emulated (emulator.h): its dense kernels against the CPU's, and whole solves and derivatives by the
// code of the kernels against the optimality conditions.
//   g++ -std=c++17 -O1 -g -fsanitize=thread -I src -I src/optlayer csrc/tests/test_block.cpp csrc/device.cpp -pthread
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "launches.h"

using namespace optlayer;

static int failures = 0;
static void expect(bool ok, const char* what, int a, int b, int c, double error) {
    if (!ok && ++failures < 40) std::printf("FAILED %s at %d %d %d: error %.2e\n", what, a, b, c, error);
}

static std::mt19937 generator(11);
static std::vector<double> normal(size_t count) {
    std::normal_distribution<double> d;
    std::vector<double> x(count);
    for (auto& v : x) v = d(generator);
    return x;
}
template <class T> static std::vector<T> as(const std::vector<double>& x) { return std::vector<T>(x.begin(), x.end()); }

// ---- dense kernels -------------------------------------------------------------------------------------------------

template <int threads, class F> void with_team(const F& f) {
    std::vector<double> room(Block<double, threads>::room);
    emulate(threads, [&] {
        Block<double, threads> team;
        team.shared = room.data();
        f(team);
    });
}
static double distance(const std::vector<double>& a, const std::vector<double>& b) {
    double most = 0;
    for (size_t i = 0; i < a.size(); ++i) most = std::fmax(most, std::fabs(a[i] - b[i]) / (1 + std::fabs(b[i])));
    return most;
}
static std::vector<double> lower_of(const std::vector<double>& a, int n, int ld) {
    std::vector<double> l;
    for (int j = 0; j < n; ++j)
        for (int i = j; i < n; ++i) l.push_back(a[size_t(j) * ld + i]);
    return l;
}

template <int threads> void test_dense(int n, int m) {
    const int ld = n + 3;
    std::vector<double> a = normal(size_t(ld) * n), x = normal(size_t(m) * n), v = normal(n), u = normal(m);
    std::vector<double> spd(size_t(ld) * n, 0);
    for (int i = 0; i < n; ++i) spd[size_t(i) * ld + i] = 1;
    Solo<double> solo;
    solo.update_lower(n, n, spd.data(), ld, a.data(), ld, a.data(), ld);  // I - A A'
    for (auto& e : spd) e = -e;
    for (int i = 0; i < n; ++i) spd[size_t(i) * ld + i] += 3;
    std::vector<double> ours = spd, theirs = spd, inv_o(n), inv_t(n), xo = x, xt = x, fo = v, ft = v, bo = v, bt = v;
    std::vector<double> go = u, gt = u, to = v, tt = v, so = v, st = v, po(size_t(m) * n, 1), pt = po, qo = spd, qt = spd;
    const double total = solo.sum(n, [&](int i) { return v[i]; }), most = solo.max(n, 0.0, [&](int i) { return v[i]; });
    std::vector<double> sums(threads), tops(threads), square(size_t(n) * n, 0), triangle(size_t(n) * n, 0);
    bool bad = true;
    with_team<threads>([&](auto& t) {
        const bool failed = t.cholesky(n, ours.data(), ld, inv_o.data(), 0.0);
        t.one([&] { bad = failed; });
        t.trsm_right(m, n, xo.data(), m, ours.data(), ld, inv_o.data());
        t.solve_lower(n, ours.data(), ld, inv_o.data(), fo.data());
        t.solve_lower_t(n, ours.data(), ld, inv_o.data(), bo.data());
        t.gemv(m, n, x.data(), m, v.data(), go.data(), -1);
        t.gemv_t(m, n, x.data(), m, u.data(), to.data());
        t.symv_lower(n, spd.data(), ld, v.data(), so.data());
        t.update(m, n, m, po.data(), m, x.data(), m, x.data(), n < m ? n : n);
        t.update_lower(n, m, qo.data(), ld, a.data(), ld, a.data(), ld);
        const double s = t.sum(n, [&](int i) { return v[i]; });
        sums[size_t(t.rank)] = s;
        tops[size_t(t.rank)] = t.max(n, 0.0, [&](int i) { return v[i]; });
        t.each_pair(n, n, [&](int i, int j) { square[size_t(j) * n + i] += 1; });
        t.each_lower(n, [&](int i, int j) { triangle[size_t(j) * n + i] += 1; });
    });
    solo.cholesky(n, theirs.data(), ld, inv_t.data(), 0.0);
    solo.trsm_right(m, n, xt.data(), m, theirs.data(), ld, inv_t.data());
    solo.solve_lower(n, theirs.data(), ld, inv_t.data(), ft.data());
    solo.solve_lower_t(n, theirs.data(), ld, inv_t.data(), bt.data());
    solo.gemv(m, n, x.data(), m, v.data(), gt.data(), -1);
    solo.gemv_t(m, n, x.data(), m, u.data(), tt.data());
    solo.symv_lower(n, spd.data(), ld, v.data(), st.data());
    solo.update(m, n, m, pt.data(), m, x.data(), m, x.data(), n);
    solo.update_lower(n, m, qt.data(), ld, a.data(), ld, a.data(), ld);
    const auto check = [&](const char* what, double error) { expect(error < 1e-10, what, threads, n, m, error); };
    expect(!bad, "a positive definite matrix", threads, n, m, 0);
    check("cholesky", distance(lower_of(ours, n, ld), lower_of(theirs, n, ld)));
    check("inverse diagonal", distance(inv_o, inv_t));
    check("trsm_right", distance(xo, xt)), check("solve_lower", distance(fo, ft)), check("solve_lower_t", distance(bo, bt));
    check("gemv", distance(go, gt)), check("gemv_t", distance(to, tt)), check("symv_lower", distance(so, st));
    check("update", distance(po, pt)), check("update_lower", distance(lower_of(qo, n, ld), lower_of(qt, n, ld)));
    for (int r = 0; r < threads; ++r) {
        expect(sums[size_t(r)] == sums[0] && tops[size_t(r)] == most, "every thread knows the same", threads, n, r, 0);
        expect(std::fabs(sums[size_t(r)] - total) < 1e-12 * n, "sum", threads, n, r, sums[size_t(r)] - total);
    }
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < n; ++i) {
            expect(square[size_t(j) * n + i] == 1, "each_pair", threads, i, j, 0);
            expect(triangle[size_t(j) * n + i] == (i >= j), "each_lower", threads, i, j, 0);
        }
    with_team<threads>([&](auto& t) {  // a pivot that is not positive is seen by all
        t.one([&] { ours = spd, ours[size_t(n - 1) * ld + n - 1] = -1e6; });
        if (!t.cholesky(n, ours.data(), ld, inv_o.data(), 0.0)) failures += 1000;
    });
}

// ---- whole problems ------------------------------------------------------------------------------------------------

template <class T> struct Batch {
    int n, m, p, batch, bounds;
    bool shared, diagonal;
    std::vector<T> Q, q, G, h, A, b, lb, ub;
    std::vector<T> z, s, lam, nu, lam_lb, lam_ub, primal, dual, gap, r_z, r_lam, r_nu, r_lb, r_ub, v_z, v_lam, v_nu, v_lb, v_ub;
    std::vector<int32_t> status, iterations;

    Batch(int n_, int m_, int p_, int batch_, int bounds_, bool shared_, bool diagonal_)
        : n(n_), m(m_), p(p_), batch(batch_), bounds(bounds_), shared(shared_), diagonal(diagonal_) {
        const int sets = shared ? 1 : batch;
        for (int k = 0; k < sets; ++k) {
            std::vector<double> L = normal(size_t(n) * n);
            if (diagonal)
                for (int i = 0; i < n; ++i) Q.push_back(T(0.1 + L[i] * L[i]));
            else
                for (int i = 0; i < n; ++i)
                    for (int j = 0; j < n; ++j) {
                        double e = i == j ? 0.1 : 0;
                        for (int l = 0; l < n; ++l) e += L[size_t(i) * n + l] * L[size_t(j) * n + l] / n;
                        Q.push_back(T(e));
                    }
        }
        G = as<T>(normal(size_t(sets) * p * n)), A = as<T>(normal(size_t(sets) * m * n)), q = as<T>(normal(size_t(batch) * n));
        std::uniform_real_distribution<double> uniform(0, 1);
        for (int k = 0; k < batch; ++k) {
            const std::vector<double> z0 = normal(n);
            const T *Gk = G.data() + (shared ? 0 : size_t(k) * p * n), *Ak = A.data() + (shared ? 0 : size_t(k) * m * n);
            for (int i = 0; i < p; ++i) {
                double e = uniform(generator);
                for (int j = 0; j < n; ++j) e += double(Gk[size_t(i) * n + j]) * z0[j];
                h.push_back(T(e));
            }
            for (int i = 0; i < m; ++i) {
                double e = 0;
                for (int j = 0; j < n; ++j) e += double(Ak[size_t(i) * n + j]) * z0[j];
                b.push_back(T(e));
            }
            for (int j = 0; j < n; ++j) lb.push_back(T(z0[j] - uniform(generator))), ub.push_back(T(z0[j] + uniform(generator)));
        }
        if (p) h[0] = std::numeric_limits<T>::infinity();  // no constraint
        const auto make = [&](std::vector<T>& x, int size, double value) { x.assign(size_t(batch) * size, T(value)); };
        const double poison = std::nan("");
        make(z, n, poison), make(s, p, poison), make(lam, p, poison), make(nu, m, poison), make(lam_lb, n, poison);
        make(lam_ub, n, poison), make(primal, 1, poison), make(dual, 1, poison), make(gap, 1, poison);
        make(v_z, n, poison), make(v_lam, p, poison), make(v_nu, m, poison), make(v_lb, n, poison), make(v_ub, n, poison);
        r_z = as<T>(normal(z.size())), r_lam = as<T>(normal(s.size())), r_nu = as<T>(normal(nu.size()));
        r_lb = as<T>(normal(z.size())), r_ub = as<T>(normal(z.size()));
        status.assign(batch, -1), iterations.assign(batch, -1);
    }
    Args args(int method, bool keep) {
        Args g{};
        g.n = n, g.m = m, g.p = p, g.batch = batch, g.single = sizeof(T) == 4, g.diagonal = diagonal, g.method = method;
        g.max_iterations = 60, g.polish = 1, g.keep = keep, g.tolerance = sizeof(T) == 8 ? 1e-9 : 1e-5;
        const auto put = [&](Tensor& t, auto& x, bool own) {
            if (x.size()) t.data = x.data(), t.stride = own ? int64_t(x.size()) / batch : 0;
        };
        put(g.Q, Q, !shared), put(g.G, G, !shared), put(g.A, A, !shared), put(g.q, q, true), put(g.h, h, true), put(g.b, b, true);
        if (bounds & 1) put(g.lb, lb, true), put(g.lam_lb, lam_lb, true), put(g.r_lb, r_lb, true), put(g.v_lb, v_lb, true);
        if (bounds & 2) put(g.ub, ub, true), put(g.lam_ub, lam_ub, true), put(g.r_ub, r_ub, true), put(g.v_ub, v_ub, true);
        put(g.z, z, true), put(g.s, s, true), put(g.lam, lam, true), put(g.nu, nu, true);
        put(g.status, status, true), put(g.iterations, iterations, true);
        put(g.primal_residual, primal, true), put(g.dual_residual, dual, true), put(g.gap, gap, true);
        put(g.r_z, r_z, true), put(g.r_lam, r_lam, true), put(g.r_nu, r_nu, true);
        put(g.v_z, v_z, true), put(g.v_lam, v_lam, true), put(g.v_nu, v_nu, true);
        return g;
    }

    // Largest residual of the optimality conditions, and of the derivative's system.
    double residual(int k, bool derivative) const {
        const auto of = [&](const std::vector<T>& x, int size, bool own = true) { return x.data() + (own ? size_t(k) * size : 0); };
        const T *Qk = of(Q, diagonal ? n : n * n, !shared), *Gk = of(G, n * p, !shared), *Ak = of(A, n * m, !shared);
        const T *zk = derivative ? of(v_z, n) : of(z, n), *lk = derivative ? of(v_lam, p) : of(lam, p);
        const T *nk = derivative ? of(v_nu, m) : of(nu, m), *lo = derivative ? of(v_lb, n) : of(lam_lb, n);
        const T *up = derivative ? of(v_ub, n) : of(lam_ub, n);
        double most = 0;
        const auto worst = [&](double e) { most = !(std::fabs(e) <= most) ? std::fabs(e) : most; };
        for (int i = 0; i < n; ++i) {
            double e = derivative ? -double(of(r_z, n)[i]) : double(of(q, n)[i]);
            if (diagonal) e += double(Qk[i]) * zk[i];
            else
                for (int j = 0; j < n; ++j) e += double(Qk[size_t(i) * n + j]) * zk[j];
            for (int r = 0; r < p; ++r) e += double(Gk[size_t(r) * n + i]) * lk[r];
            for (int r = 0; r < m; ++r) e += double(Ak[size_t(r) * n + i]) * nk[r];
            if (bounds & 1) e -= lo[i];
            if (bounds & 2) e += up[i];
            worst(e);
        }
        for (int r = 0; r < m; ++r) {
            double e = -double(derivative ? of(r_nu, m)[r] : of(b, m)[r]);
            for (int j = 0; j < n; ++j) e += double(Ak[size_t(r) * n + j]) * zk[j];
            worst(e);
        }
        const auto side = [&](double Cz, double bound, double multiplier, double v, double right) {
            const double slack = bound - Cz;
            if (!derivative) {
                if (std::isinf(bound)) return worst(multiplier);
                worst(std::fmin(slack, multiplier));
            } else if (multiplier > 1e-6) {
                worst(Cz - right);  // the row is an equality
            } else {
                worst(v);
            }
        };
        for (int r = 0; r < p; ++r) {
            double Cz = 0;
            for (int j = 0; j < n; ++j) Cz += double(Gk[size_t(r) * n + j]) * zk[j];
            side(Cz, of(h, p)[r], of(lam, p)[r], lk[r], of(r_lam, p)[r]);
        }
        for (int j = 0; j < n; ++j) {
            if (bounds & 1) side(-double(zk[j]), -double(of(lb, n)[j]), of(lam_lb, n)[j], lo[j], of(r_lb, n)[j]);
            if (bounds & 2) side(zk[j], of(ub, n)[j], of(lam_ub, n)[j], up[j], of(r_ub, n)[j]);
        }
        return most;
    }
};

template <class T, int threads>
void test_problem(int n, int m, int p, int bounds, bool shared, bool diagonal, int method, bool keep, int64_t fast) {
    Batch<T> batch(n, m, p, 2, bounds, shared, diagonal);
    Args g = batch.args(method, keep);
    Launches<T, threads> launches(g, fast);
    launches.solve(), launches.adjoint();
    for (int k = 0; k < batch.batch; ++k) {
        const double tolerance = sizeof(T) == 8 ? 1e-7 : 2e-2;
        expect(batch.status[k] == SOLVED, "status", threads, n, method, batch.status[k]);
        if (batch.status[k] != SOLVED) continue;
        const double error = batch.residual(k, false), slope = batch.residual(k, true);
        expect(error < tolerance, "solve", threads, n, method, error);
        expect(slope < 100 * tolerance, keep ? "derivative from the kept factor" : "derivative", threads, n, method, slope);
    }
}

template <int threads> void test_problems() {
    const int64_t plenty = 1 << 20, little = 6000;
    for (int64_t fast : {plenty, little}) {
        test_problem<double, threads>(5, 0, 7, 0, false, false, SCHUR, true, fast);
        test_problem<double, threads>(9, 3, 12, 0, true, false, SCHUR, true, fast);
        test_problem<double, threads>(9, 3, 6, 0, false, true, SCHUR, false, fast);
        test_problem<double, threads>(6, 2, 5, 3, false, false, NORMAL, true, fast);
        test_problem<double, threads>(12, 4, 0, 1, true, true, NORMAL, true, fast);
        test_problem<double, threads>(12, 4, 3, 2, false, true, DIAGONAL, true, fast);
        test_problem<float, threads>(6, 2, 5, 0, false, false, AUTO, true, fast);
    }
}

// Problems without a solution, and data that are none.
template <int threads> void test_verdicts() {
    const auto verdict = [](Batch<double>& batch) {
        Args g = batch.args(AUTO, false);
        Launches<double, threads>(g, 1 << 20).solve();
        return batch.status[0];
    };
    Batch<double> infeasible(4, 0, 6, 1, 0, false, false);  // row 2 = -row 1, and the two sides do not meet
    for (int j = 0; j < 4; ++j) infeasible.G[8 + j] = -infeasible.G[4 + j];
    infeasible.h[1] = -1, infeasible.h[2] = -1;
    expect(verdict(infeasible) == PRIMAL_INFEASIBLE, "primal infeasible", threads, infeasible.status[0], 0, 0);
    Batch<double> unbounded(3, 0, 1, 1, 0, false, false);
    for (auto& e : unbounded.Q) e = 0;
    unbounded.h[0] = 1;
    for (int j = 0; j < 3; ++j) unbounded.G[j] = unbounded.q[j] = 1;
    expect(verdict(unbounded) == DUAL_INFEASIBLE, "dual infeasible", threads, unbounded.status[0], 0, 0);
    Batch<double> invalid(4, 0, 6, 1, 0, false, false);
    invalid.h[3] = std::nan("");
    expect(verdict(invalid) == INVALID_INPUT, "invalid input", threads, invalid.status[0], 0, 0);
    Batch<double> concave(4, 0, 6, 1, 3, true, false);
    concave.Q[0] = -1;
    expect(verdict(concave) == NOT_CONVEX, "not convex", threads, concave.status[0], 0, 0);
}

int main() {
    for (int n : {1, 3, 4, 5, 8, 13, 33}) test_dense<8>(n, n), test_dense<16>(n, n), test_dense<32>(n, n);
    std::printf("dense kernels: %d failures\n", failures);
    test_problems<1>(), test_problems<8>(), test_problems<16>();
    std::printf("problems: %d failures\n", failures);
    test_verdicts<1>(), test_verdicts<16>();
    std::printf("%s\n", failures ? "FAILED" : "all passed");
    return failures != 0;
}

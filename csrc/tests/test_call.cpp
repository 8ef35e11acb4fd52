// Whole calls: batches of mixed difficulty, shared or not, in lanes or alone, by one thread and by three; in float32 against
// float64, with and without a kept factor. What may go wrong here is memory: run it under the sanitizers.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../calls.h"
#include "../memory.h"

using namespace optlayer;

static int failures = 0;
static void expect(bool fine, const char* what, int n, bool shared, int threads) {
    if (fine) return;
    ++failures;
    std::printf("FAILED %s, n=%d%s, %d threads\n", what, n, shared ? ", shared" : "", threads);
}

// Q of every second member (or the shared one, if hard) has a condition of about 1e8: too much for float32.
template <class T> struct Batch {
    int n, m, p, batch;
    bool shared;
    std::vector<T> Q, q, G, h, A, b, lb, z, s, lam, nu, lower, residuals, rz, vz, vlam, vnu, vlb;
    std::vector<int32_t> status, iterations;

    Batch(int n_, int m_, int p_, int batch_, bool shared_, bool hard) : n(n_), m(m_), p(p_), batch(batch_), shared(shared_) {
        std::mt19937 generator(unsigned(n + 2 * shared + 4 * hard));
        std::normal_distribution<float> normal;
        const auto draw = [&](std::vector<T>& x, int count) {
            for (int i = 0; i < count; ++i) x.push_back(T(normal(generator)));
        };
        const int matrices = shared ? 1 : batch;
        draw(G, matrices * p * n), draw(A, matrices * m * n), draw(q, batch * n), draw(rz, batch * n);
        for (int k = 0; k < matrices; ++k)
            for (int i = 0; i < n; ++i)
                for (int j = 0; j < n; ++j) {
                    const double weak = shared ? hard : k % 2, d = (i + j) * weak * 4.0 / n;
                    Q.push_back(T(float((i == j ? 1.0 : 0.5 / n) * std::pow(10.0, -d))));
                }
        h.assign(size_t(batch) * p, T(1)), b.assign(size_t(batch) * m, T(0.25)), lb.assign(size_t(batch) * n, T(-2));
        for (auto* x : {&z, &lower, &vz, &vlb}) x->assign(size_t(batch) * n, T(0));
        for (auto* x : {&s, &lam, &vlam}) x->assign(size_t(batch) * p, T(0));
        for (auto* x : {&nu, &vnu}) x->assign(size_t(batch) * m, T(0));
        residuals.assign(size_t(batch) * 3, T(0)), status.assign(batch, -1), iterations.assign(batch, 0);
    }
    Args args(int threads) {
        const auto tensor = [](std::vector<T>& x, int width) { return Tensor{x.empty() ? nullptr : x.data(), width}; };
        const auto matrix = [&](std::vector<T>& x, int width) { return tensor(x, shared ? 0 : width); };
        Args g{};
        g.n = n, g.m = m, g.p = p, g.batch = batch, g.single = sizeof(T) == 4, g.threads = threads;
        g.max_iterations = 60, g.polish = 1, g.keep = 1, g.tolerance = sizeof(T) == 4 ? 1e-5 : 1e-9;
        g.Q = matrix(Q, n * n), g.G = matrix(G, p * n), g.A = matrix(A, m * n);
        g.q = tensor(q, n), g.h = tensor(h, p), g.b = tensor(b, m), g.lb = tensor(lb, n);
        g.z = tensor(z, n), g.s = tensor(s, p), g.lam = tensor(lam, p), g.nu = tensor(nu, m), g.lam_lb = tensor(lower, n);
        g.status = {status.data(), 1}, g.iterations = {iterations.data(), 1};
        g.primal_residual = {residuals.data(), 3}, g.dual_residual = {residuals.data() + 1, 3}, g.gap = {residuals.data() + 2, 3};
        g.r_z = tensor(rz, n), g.v_z = tensor(vz, n), g.v_lam = tensor(vlam, p), g.v_nu = tensor(vnu, m), g.v_lb = tensor(vlb, n);
        return g;
    }
    int solve(int threads, bool keep) {
        Args g = args(threads);
        const auto solving = sizeof(T) == 4 ? solve_float : solve_double;
        const auto differentiating = sizeof(T) == 4 ? kkt_solve_float : kkt_solve_double;
        int left = solving(g);
        Args back = args(threads);
        if (keep) back.factor = g.factor;
        left += differentiating(back);
        Blocks::give(g.factor.data);
        return left;
    }
};

static double distance(const std::vector<float>& x, const std::vector<double>& y) {
    double most = 0, size = 1;
    for (size_t i = 0; i < x.size(); ++i) {
        const double difference = std::fabs(double(x[i]) - y[i]);
        if (!(difference <= most)) most = difference;  // NaN stays
        size = std::max(size, std::fabs(y[i]));
    }
    return most / size;
}

int main() {
    const int sizes[][3] = {{1, 0, 1}, {4, 1, 6}, {12, 3, 8}, {24, 0, 20}, {40, 5, 30}};
    for (const auto& size : sizes)
        for (bool shared : {false, true})
            for (bool hard : {false, true})
                for (int threads : {1, 3})
                    for (bool keep : {true, false}) {
                        const int n = size[0];
                        Batch<double> truth(n, size[1], size[2], 21, shared, hard);
                        expect(truth.solve(threads, true) == 0, "double: members are left", n, shared, threads);
                        Batch<float> single(n, size[1], size[2], 21, shared, hard);
                        expect(single.solve(threads, keep) == 0, "float: members are left", n, shared, threads);
                        expect(distance(single.z, truth.z) < 1e-3, "z", n, shared, threads);
                        expect(distance(single.vz, truth.vz) < 1e-2, "v_z", n, shared, threads);
                    }
    std::printf(failures ? "%d failures\n" : "all passed\n", failures);
    return failures != 0;
}

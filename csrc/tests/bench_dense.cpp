// Times of the dense kernels on one thread, and of the same LAPACK or BLAS call when a library is given (OpenBLAS as
// in the wheels of SciPy, whose names begin with scipy_):
//   g++ -std=c++17 -O3 -march=native -ffp-contract=off -I src csrc/tests/bench_dense.cpp -ldl -o bench_dense
//   ./bench_dense [.venv/lib/python3.11/site-packages/scipy.libs/libscipy_openblas-*.so]
// A time is the least of 15 rounds; kernels and LAPACK take turns, so that they see the same machine.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "optlayer/kernels/dense.h"

using namespace optlayer;

static void* library = nullptr;
template <class F> F* symbol(const char* name) {
    return library ? reinterpret_cast<F*>(dlsym(library, (std::string("scipy_") + name).c_str())) : nullptr;
}
using Potrf = void(const char*, int*, void*, int*, int*);
using Trsv = void(const char*, const char*, const char*, int*, const void*, int*, void*, int*);
using Gemv = void(const char*, int*, int*, const double*, const void*, int*, const void*, int*, const double*, void*, int*);
using Symv = void(const char*, int*, const double*, const void*, int*, const void*, int*, const double*, void*, int*);
using Syrk = void(const char*, const char*, int*, int*, const double*, const void*, int*, const double*, void*, int*);
using Trsm = void(const char*, const char*, const char*, const char*, int*, int*, const double*, const void*, int*, void*, int*);

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// Seconds for one call of `work`; `prepare` (restoring what work overwrites) is timed by itself and subtracted.
struct Job {
    std::function<void()> prepare, work;
    double best = 1e9, best_prepare = 1e9;
};
static void measure(std::vector<Job*> jobs) {
    for (Job* job : jobs) {
        double start = seconds();
        int repeat = 0;
        while (seconds() - start < 1e-3) job->prepare(), job->work(), ++repeat;
        for (int round = 0; round < 15; ++round) {
            double t0 = seconds();
            for (int i = 0; i < repeat; ++i) job->prepare();
            double t1 = seconds();
            for (int i = 0; i < repeat; ++i) job->prepare(), job->work();
            double t2 = seconds();
            job->best_prepare = std::min(job->best_prepare, (t1 - t0) / repeat);
            job->best = std::min(job->best, (t2 - t1) / repeat);
        }
        job->best -= job->best_prepare;
    }
}

template <class V> const char* name() {
    static char text[40];
    std::snprintf(text, sizeof text, "%s x %d", sizeof(scalar_of<V>) == 8 ? "double" : "float", lanes_of<V>);
    return text;
}

template <class V> void bench(int n, int ld, const char* only) {
    using T = scalar_of<V>;
    std::vector<V> A(long(ld) * n), L(A.size()), C(A.size()), x(n), y(n), b(n), inv(n), d(n);
    std::vector<T> S(A.size());
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < n; ++i) {
            T value = T(i == j ? n + 1 : ((i * 31 + j * 17) % 13) / 13.0 - 0.4);
            A[j * ld + i] = V(value), S[j * ld + i] = value;
        }
    for (int i = 0; i < n; ++i) b[i] = V(T(1 + i % 3)), d[i] = V(T(1)), y[i] = V(T(0));
    L = A;
    cholesky<V>(n, L.data(), ld, inv.data(), V(T(0)));
    const double lanes = lanes_of<V>, n3 = double(n) * n * n, n2 = double(n) * n;
    const double one = 1, minus = -1;
    int N = n, LD = ld, unit = 1, info = 0;
    std::vector<double> M(long(ld) * n), P(M.size()), v(n);  // for LAPACK, double only

    auto report = [&](const char* what, double fma, std::function<void()> prepare, std::function<void()> work,
                      std::function<void()> prepare_blas = nullptr, std::function<void()> blas = nullptr) {
        if (only && !std::strstr(what, only)) return;
        Job mine{prepare, work}, theirs{prepare_blas, blas};
        measure(blas ? std::vector<Job*>{&mine, &theirs} : std::vector<Job*>{&mine});
        std::printf("%-18s %4d  %-11s %10.3f us %8.2f GFMA/s", what, n, name<V>(), mine.best * 1e6, fma * lanes / mine.best * 1e-9);
        if (blas) std::printf("   BLAS %10.3f us", theirs.best * 1e6);
        std::printf("\n");
    };
    constexpr bool is_double = std::is_same<V, double>::value, is_single = std::is_same<V, float>::value;
    auto nothing = [] {};
    auto potrf = symbol<Potrf>(is_single ? "spotrf_" : "dpotrf_");
    auto trsv = symbol<Trsv>("dtrsv_");
    auto gemv_ = symbol<Gemv>("dgemv_");
    auto symv = symbol<Symv>("dsymv_");
    auto syrk = symbol<Syrk>("dsyrk_");
    auto trsm = symbol<Trsm>("dtrsm_");
    auto copy = [&](void* to, const void* from) { std::memcpy(to, from, sizeof(V) * ld * n); };
    if (is_double) copy(M.data(), L.data());
    auto if_double = [&](auto* f, std::function<void()> g) { return is_double && f ? g : std::function<void()>(); };

    auto restore = [&] { copy(C.data(), A.data()); };
    auto restore_blas = [&] { copy(P.data(), A.data()); };
    std::function<void()> lapack = [&] { potrf("L", &N, P.data(), &LD, &info); };
    report("cholesky", n3 / 6, restore, [&] { cholesky<V>(n, C.data(), ld, inv.data(), V(T(0))); }, restore_blas,
           (is_double || is_single) && potrf ? lapack : nullptr);
    report("trsm_right", n3 / 2, restore, [&] { trsm_right<V>(n, n, C.data(), ld, L.data(), ld, inv.data()); }, restore_blas,
           if_double(trsm, [&] { trsm("R", "L", "T", "N", &N, &N, &one, M.data(), &LD, P.data(), &LD); }));
    report("update_lower", n3 / 2, nothing, [&] { update_lower<V>(n, n, C.data(), ld, A.data(), ld, A.data(), ld); }, nothing,
           if_double(syrk, [&] { syrk("L", "N", &N, &N, &minus, P.data(), &LD, &one, M.data(), &LD); }));
    report("add_lower d", n3 / 2, nothing, [&] { add_lower<V>(n, n, C.data(), ld, A.data(), ld, d.data(), A.data(), ld); });
    report("add_lower shared d", n3 / 2, nothing, [&] { add_lower<V>(n, n, C.data(), ld, S.data(), ld, d.data(), S.data(), ld); });
    if (is_double) copy(M.data(), L.data());
    auto restore_x = [&] { std::memcpy(x.data(), b.data(), sizeof(V) * n); };
    auto restore_v = [&] { std::memcpy(v.data(), b.data(), 8 * n); };
    report("solve_lower", n2 / 2, restore_x, [&] { solve_lower<V>(n, L.data(), ld, inv.data(), x.data()); }, restore_v,
           if_double(trsv, [&] { trsv("L", "N", "N", &N, M.data(), &LD, v.data(), &unit); }));
    report("solve_lower_t", n2 / 2, restore_x, [&] { solve_lower_t<V>(n, L.data(), ld, inv.data(), x.data()); }, restore_v,
           if_double(trsv, [&] { trsv("L", "T", "N", &N, M.data(), &LD, v.data(), &unit); }));
    report("gemv", n2, nothing, [&] { gemv<V>(n, n, A.data(), ld, b.data(), y.data(), 1); }, nothing,
           if_double(gemv_, [&] { gemv_("N", &N, &N, &one, M.data(), &LD, b.data(), &unit, &one, v.data(), &unit); }));
    report("gemv_t", n2, nothing, [&] { gemv_t<V>(n, n, A.data(), ld, b.data(), y.data(), 1); }, nothing,
           if_double(gemv_, [&] { gemv_("T", &N, &N, &one, M.data(), &LD, b.data(), &unit, &one, v.data(), &unit); }));
    report("gemv shared", n2, nothing, [&] { gemv<V>(n, n, S.data(), ld, b.data(), y.data(), 1); });
    report("gemv_t shared", n2, nothing, [&] { gemv_t<V>(n, n, S.data(), ld, b.data(), y.data(), 1); });
    report("symv_lower", n2, nothing, [&] { symv_lower<V>(n, A.data(), ld, b.data(), y.data()); }, nothing,
           if_double(symv, [&] { symv("L", &N, &one, M.data(), &LD, b.data(), &unit, &one, v.data(), &unit); }));
}

int main(int argc, char** argv) {
    const char* only = nullptr;
    std::vector<int> sizes;
    for (int i = 1; i < argc; ++i) {
        if (std::strstr(argv[i], ".so")) library = dlopen(argv[i], RTLD_NOW);
        else if (std::atoi(argv[i]) > 0) sizes.push_back(std::atoi(argv[i]));
        else only = argv[i];
    }
    if (auto threads = symbol<void(int)>("openblas_set_num_threads")) threads(1);
    auto run = [&](std::vector<int> all, auto value) {
        for (int n : all)
            if (sizes.empty() || std::find(sizes.begin(), sizes.end(), n) != sizes.end()) bench<decltype(value)>(n, n, only);
    };
    run({10, 16, 25, 50, 32, 64, 100, 200, 256, 300, 500, 1000}, double());
    run({10, 16, 25, 32, 50, 100, 200, 500}, float());
    run({5, 10, 16, 25, 32, 50, 64}, Pack<double, native_width<double>>());
    run({5, 10, 16, 25, 32, 50, 64}, Pack<float, native_width<float>>());
}

// The dense kernels against plain loops, and every lane of a pack against the same problem solved alone (same bits).
//   g++ -std=c++17 -O2 -ffp-contract=off [-mavx2 -mfma | -march=x86-64-v4] [-fsanitize=address,undefined]
//       -I src csrc/tests/test_dense.cpp -o test_dense && ./test_dense
// Arrays are allocated to the element, so that the address sanitizer sees any access outside of the matrix.
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "optlayer/kernels/dense.h"

using namespace optlayer;

static int failures = 0;

template <class V> struct Array {
    using T = scalar_of<V>;
    long size;
    std::unique_ptr<V[]> at;
    explicit Array(long n) : size(n < 0 ? 0 : n), at(new V[size]) {}
    Array(const Array& other) : Array(other.size) {
        for (long i = 0; i < size; ++i) at[i] = other.at[i];
    }
    operator V*() const { return at.get(); }
    Array<T> lane_of(int w) const {
        Array<T> alone(size);
        for (long i = 0; i < size; ++i) alone[i] = lane(at[i], w);
        return alone;
    }
};

static std::mt19937 generator(7);
template <class V> Array<V> random_array(long size) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    Array<V> a(size);
    for (long i = 0; i < a.size; ++i)
        for (int w = 0; w < lanes_of<V>; ++w) set_lane(a[i], w, scalar_of<V>(uniform(generator)));
    return a;
}
static long extent(int rows, int columns, int ld) { return columns == 0 ? 0 : long(ld) * (columns - 1) + rows; }

template <class V> const char* name() {
    static char text[40];
    std::snprintf(text, sizeof text, "%s x %d", sizeof(scalar_of<V>) == 8 ? "double" : "float", lanes_of<V>);
    return text;
}
static void expect(bool ok, const char* what, const char* type, int m, int n, int k, int i, int j) {
    if (!ok && ++failures < 20) std::printf("FAILED %s (%s), m %d n %d k %d, at (%d, %d)\n", what, type, m, n, k, i, j);
}
template <class T> bool same_bits(T a, T b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// found(i,j) within `units` rounding errors of the sum that makes it, whose terms' magnitudes add up to `size`.
template <class T> bool close(T found, double exact, double size, double units) {
    return std::fabs(found - exact) <= units * std::numeric_limits<T>::epsilon() * (size + 1e-30);
}
template <class V> double at(const V& x, int w) { return double(lane(x, w)); }

// ---- products ------------------------------------------------------------------------------------------------------

template <class V, class A, class B> void test_products(int m, int n, int k) {
    using T = scalar_of<V>;
    const int ldc = m + 1, lda = m + 2, ldb = n + 3;
    auto C = random_array<V>(extent(m, n, ldc)), d = random_array<V>(k);
    auto a = random_array<A>(extent(m, k, lda));
    auto b = random_array<B>(extent(n, k, ldb));
    for (int scaled = 0; scaled < 2; ++scaled)
        for (int lower = 0; lower < 2; ++lower) {
            if (lower && m != n) continue;
            auto found = C;
            if (scaled && lower) add_lower(n, k, +found, ldc, +a, lda, +d, +b, ldb);
            else if (scaled) add(m, n, k, +found, ldc, +a, lda, +d, +b, ldb);
            else if (lower) update_lower(n, k, +found, ldc, +a, lda, +b, ldb);
            else update(m, n, k, +found, ldc, +a, lda, +b, ldb);
            for (int w = 0; w < lanes_of<V>; w += n > 12 ? 5 : 1) {
                auto alone = C.lane_of(w);  // one QP by itself
                auto a1 = a.lane_of(is_pack<A> ? w : 0);
                auto b1 = b.lane_of(is_pack<B> ? w : 0);
                auto d1 = d.lane_of(w);
                for (int j = 0; j < n; ++j)
                    for (int i = lower ? j : 0; i < m; ++i) {
                        T c = alone[j * ldc + i];  // the promised order, and an accurate sum
                        double exact = c, size = std::fabs(exact);
                        for (int l = 0; l < k; ++l) {
                            T x = a1[l * lda + i], y = b1[l * ldb + j];
                            if (scaled) x = x * d1[l];
                            c = scaled ? optlayer::fma(x, y, c) : fnma(x, y, c);
                            exact += (scaled ? 1 : -1) * double(x) * y;
                            size += std::fabs(double(x) * y);
                        }
                        T f = lane(found[j * ldc + i], w);
                        expect(same_bits(f, c), "product: order", name<V>(), m, n, k, i, j);
                        expect(close(f, exact, size, k + 2), "product: value", name<V>(), m, n, k, i, j);
                    }
                for (int j = 0; lower && j < n; ++j)  // far above the diagonal nothing is written
                    for (int i = 0; i < j - j % 8; ++i)
                        expect(same_bits(lane(found[j * ldc + i], w), alone[j * ldc + i]), "product: above the diagonal",
                               name<V>(), m, n, k, i, j);
            }
        }
}

// ---- factors and solves --------------------------------------------------------------------------------------------

template <class V> Array<V> random_definite(int n, int ld) {
    auto a = random_array<V>(extent(n, n, ld));
    auto x = random_array<V>(long(n) * n);
    for (int j = 0; j < n; ++j)
        for (int i = j; i < n; ++i) {
            V sum(i == j ? scalar_of<V>(0.1 * n) : scalar_of<V>(0));
            for (int k = 0; k < n; ++k) sum += x[k * n + i] * x[k * n + j];
            a[j * ld + i] = sum;
        }
    for (int j = 0; j < n; ++j)  // what is above the diagonal must not matter
        for (int i = 0; i < j; ++i) a[j * ld + i] = V(std::numeric_limits<scalar_of<V>>::quiet_NaN());
    return a;
}

template <class T> bool plain_cholesky(int n, T* a, int ld, T* inv, T floor) {
    bool failed = false;
    for (int j = 0; j < n; ++j)
        for (int i = j; i < n; ++i) {
            T c = a[j * ld + i];
            for (int k = 0; k < j; ++k) c = fnma(a[k * ld + i], a[k * ld + j], c);
            if (i == j) {
                if (!(c > floor)) failed = true, c = T(sizeof(T) == 8 ? 1e128 : 1e30);
                a[j * ld + j] = std::sqrt(c);
                inv[j] = T(1) / a[j * ld + j];
            } else {
                a[j * ld + i] = c * inv[j];
            }
        }
    return failed;
}

template <class V> void test_cholesky(int n) {
    using T = scalar_of<V>;
    const int ld = n + 1;
    auto A = random_definite<V>(n, ld), inv = random_array<V>(n);
    const int broken = n / 2;  // in lane 0: a negative pivot, or a NaN
    if (n > 2) set_lane(A[broken * ld + broken], 0, n % 2 ? T(-1) : std::numeric_limits<T>::quiet_NaN());
    auto L = A;
    auto failed = cholesky<V>(n, L, ld, inv, V(T(1e-5)));
    for (int w = 0; w < lanes_of<V>; w += n > 12 ? 5 : 1) {
        auto alone = A.lane_of(w), inv1 = random_array<T>(n);
        bool failed1 = plain_cholesky<T>(n, alone, ld, inv1, T(1e-5));
        expect(lane(failed, w) == failed1 && failed1 == (n > 2 && w == 0), "cholesky: mask", name<V>(), n, n, 0, w, 0);
        for (int j = 0; j < n; ++j) {
            expect(same_bits(lane(inv[j], w), inv1[j]), "cholesky: inv_diag", name<V>(), n, n, 0, j, j);
            for (int i = j; i < n; ++i) {
                expect(same_bits(lane(L[j * ld + i], w), alone[j * ld + i]), "cholesky: order", name<V>(), n, n, 0, i, j);
                if (failed1) continue;
                double sum = 0;
                for (int k = 0; k <= j; ++k) sum += at(L[k * ld + i], w) * at(L[k * ld + j], w);
                expect(close(T(sum), at(A[j * ld + i], w), n, n + 2), "cholesky: L Lt", name<V>(), n, n, 0, i, j);
            }
        }
    }
    expect(any(failed) == (n > 2) && all(failed) == (n > 2 && lanes_of<V> == 1), "cholesky: any, all", name<V>(), n, 0, 0, 0, 0);
}

// L with a good diagonal and NaN above it.
template <class L> Array<L> random_lower(int n, int ld, L* inv) {
    auto l = random_array<L>(extent(n, n, ld));
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < n; ++i) {
            L& x = l[j * ld + i];
            if (i < j) x = L(std::numeric_limits<scalar_of<L>>::quiet_NaN());
            else if (i == j) x = abs(x) + L(1), inv[j] = L(1) / x;
            else x = x / L(scalar_of<L>(n));
        }
    return l;
}

template <class V, class U> void test_solves(int m, int n) {
    using T = scalar_of<V>;
    const int ld = n + 2, ldx = m + 1;
    auto inv = random_array<U>(n);
    auto l = random_lower<U>(n, ld, inv);
    auto X = random_array<V>(extent(m, n, ldx)), Y = X;
    auto b = random_array<V>(n), forward = b, backward = b;
    trsm_right<V>(m, n, Y, ldx, +l, ld, +inv);
    solve_lower<V>(n, +l, ld, +inv, forward);
    solve_lower_t<V>(n, +l, ld, +inv, backward);
    for (int w = 0; w < lanes_of<V>; w += n > 12 ? 5 : 1) {
        auto l1 = l.lane_of(is_pack<U> ? w : 0), inv1 = inv.lane_of(is_pack<U> ? w : 0);
        auto X1 = X.lane_of(w), f1 = b.lane_of(w), b1 = b.lane_of(w);
        trsm_right<T>(m, n, X1, ldx, +l1, ld, +inv1);
        solve_lower<T>(n, +l1, ld, +inv1, f1);
        solve_lower_t<T>(n, +l1, ld, +inv1, b1);
        for (int j = 0; j < n; ++j) {
            expect(same_bits(lane(forward[j], w), f1[j]), "solve_lower: lanes", name<V>(), 1, n, 0, j, w);
            expect(same_bits(lane(backward[j], w), b1[j]), "solve_lower_t: lanes", name<V>(), 1, n, 0, j, w);
            double sum = 0, size = 0, sum_t = 0, size_t_ = 0;
            for (int k = 0; k <= j; ++k) sum += double(l1[k * ld + j]) * f1[k], size += std::fabs(double(l1[k * ld + j]) * f1[k]);
            for (int k = j; k < n; ++k) sum_t += double(l1[j * ld + k]) * b1[k], size_t_ += std::fabs(double(l1[j * ld + k]) * b1[k]);
            expect(close(T(sum), at(b[j], w), size + 1, n + 3), "solve_lower: residual", name<V>(), 1, n, 0, j, w);
            expect(close(T(sum_t), at(b[j], w), size_t_ + 1, n + 3), "solve_lower_t: residual", name<V>(), 1, n, 0, j, w);
            for (int i = 0; i < m; ++i) {
                expect(same_bits(lane(Y[j * ldx + i], w), X1[j * ldx + i]), "trsm_right: lanes", name<V>(), m, n, 0, i, j);
                double row = 0, row_size = 0;
                for (int k = 0; k <= j; ++k) {
                    double term = double(X1[k * ldx + i]) * l1[k * ld + j];
                    row += term, row_size += std::fabs(term);
                }
                expect(close(T(row), at(X[j * ldx + i], w), row_size + 1, n + 3), "trsm_right: residual", name<V>(), m, n, 0, i, j);
            }
        }
    }
}

// ---- matrix times vector -------------------------------------------------------------------------------------------

template <class V, class A> void test_vectors(int m, int n) {
    using T = scalar_of<V>;
    const int ld = m + 1;
    auto a = random_array<A>(extent(m, n, ld));
    auto x = random_array<V>(n), xt = random_array<V>(m), y = random_array<V>(m), yt = random_array<V>(n);
    auto s = a;  // symmetric, lower triangle only
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < j && i < m; ++i) s[j * ld + i] = A(std::numeric_limits<T>::quiet_NaN());
    for (int sign = -1; sign <= 1; sign += 2) {
        auto g = y, gt = yt, sy = y;
        gemv<V>(m, n, +a, ld, +x, +g, sign);
        gemv_t<V>(m, n, +a, ld, +xt, +gt, sign);
        if (m == n) symv_lower<V>(n, +s, ld, +x, +sy);
        for (int w = 0; w < lanes_of<V>; w += n > 12 ? 5 : 1) {
            auto a1 = a.lane_of(is_pack<A> ? w : 0), s1 = s.lane_of(is_pack<A> ? w : 0);
            auto x1 = x.lane_of(w), xt1 = xt.lane_of(w), g1 = y.lane_of(w), gt1 = yt.lane_of(w), sy1 = y.lane_of(w);
            gemv<T>(m, n, +a1, ld, +x1, +g1, sign);
            gemv_t<T>(m, n, +a1, ld, +xt1, +gt1, sign);
            if (m == n) symv_lower<T>(n, +s1, ld, +x1, +sy1);
            for (int i = 0; i < m; ++i) {
                expect(same_bits(lane(g[i], w), g1[i]), "gemv: lanes", name<V>(), m, n, sign, i, w);
                double sum = at(y[i], w), size = std::fabs(sum);
                for (int j = 0; j < n; ++j) sum += sign * double(a1[j * ld + i]) * x1[j], size += std::fabs(double(a1[j * ld + i]) * x1[j]);
                expect(close(g1[i], sum, size, n + 3), "gemv: value", name<V>(), m, n, sign, i, w);
                if (m != n) continue;
                expect(same_bits(lane(sy[i], w), sy1[i]), "symv_lower: lanes", name<V>(), m, n, 0, i, w);
                sum = at(y[i], w), size = std::fabs(sum);
                for (int j = 0; j < n; ++j) {
                    double term = double(i >= j ? a1[j * ld + i] : a1[i * ld + j]) * x1[j];
                    sum += term, size += std::fabs(term);
                }
                expect(close(sy1[i], sum, size, n + 3), "symv_lower: value", name<V>(), m, n, 0, i, w);
            }
            for (int j = 0; j < n; ++j) {
                expect(same_bits(lane(gt[j], w), gt1[j]), "gemv_t: lanes", name<V>(), m, n, sign, j, w);
                double sum = at(yt[j], w), size = std::fabs(sum);
                for (int i = 0; i < m; ++i) sum += sign * double(a1[j * ld + i]) * xt1[i], size += std::fabs(double(a1[j * ld + i]) * xt1[i]);
                expect(close(gt1[j], sum, size, m + 3), "gemv_t: value", name<V>(), m, n, sign, j, w);
            }
        }
    }
}

// Some columns of a matrix are a matrix: the same bits as after copying them.
template <class T> void test_chosen(int m, int n) {
    const int ld = m + 2, count = n / 2;
    auto a = random_array<T>(extent(m, n, ld)), chosen = random_array<T>(extent(m, count, m));
    auto x = random_array<T>(count), xt = random_array<T>(m), y = random_array<T>(m), yt = random_array<T>(count);
    Array<int> which(count);
    for (int j = 0; j < count; ++j) {
        which[j] = (j * 7 + 3) % n;
        for (int i = 0; i < m; ++i) chosen[j * m + i] = a[which[j] * ld + i];
    }
    for (int sign = -1; sign <= 1; sign += 2) {
        auto g = y, gt = yt, wanted = y, wanted_t = yt;
        gemv<T>(m, count, +a, ld, +which, +x, +g, sign), gemv<T>(m, count, +chosen, m, +x, +wanted, sign);
        gemv_t<T>(m, count, +a, ld, +which, +xt, +gt, sign), gemv_t<T>(m, count, +chosen, m, +xt, +wanted_t, sign);
        for (int i = 0; i < m; ++i) expect(same_bits(g[i], wanted[i]), "gemv, chosen columns", name<T>(), m, n, sign, i, 0);
        for (int j = 0; j < count; ++j)
            expect(same_bits(gt[j], wanted_t[j]), "gemv_t, chosen columns", name<T>(), m, n, sign, j, 0);
    }
}

template <class V> void test_transpose(int m, int n) {
    const int lda = m + 3, ldb = n + 1;
    auto a = random_array<V>(extent(m, n, lda)), b = random_array<V>(extent(n, m, ldb)), before = b;
    transpose<V>(m, n, +a, lda, +b, ldb);
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < ldb && i * ldb + j < b.size; ++j) {
            const V wanted = j < n ? a[j * lda + i] : before[i * ldb + j];  // what lies between the columns is left
            for (int w = 0; w < lanes_of<V>; ++w)
                expect(same_bits(lane(b[i * ldb + j], w), lane(wanted, w)), "transpose", name<V>(), m, n, 0, i, j);
        }
}

// ---- packs ---------------------------------------------------------------------------------------------------------

template <class V> void test_pack() {
    using T = scalar_of<V>;
    auto a = random_array<V>(1), b = random_array<V>(1), c = random_array<V>(1);
    const V x = a[0], y = b[0], z = c[0];
    const mask_of<V> less = x < y;
    bool some = false, every = true;
    for (int w = 0; w < lanes_of<V>; ++w) {
        const T p = lane(x, w), q = lane(y, w), r = lane(z, w);
        auto check = [&](V value, T wanted, const char* what) { expect(same_bits(lane(value, w), wanted), what, name<V>(), 0, 0, 0, w, 0); };
        check(x + y, p + q, "+"), check(x - y, p - q, "-"), check(x * y, p * q, "*"), check(x / y, p / q, "/");
        check(-x, -p, "negation"), check(fnma(-x, y, z), optlayer::fma(p, q, r), "fma");
        check(fnma(x, y, z), optlayer::fma(-p, q, r), "fnma"), check(sqrt(abs(x)), std::sqrt(std::fabs(p)), "sqrt abs");
        check(min(x, y), p < q ? p : q, "min"), check(max(x, y), p > q ? p : q, "max");
        check(select(less, x, y), p < q ? p : q, "select"), check(abs(V(T(-0.0))), T(0), "abs(-0)");
        check(V(T(-0.0)), T(-0.0), "broadcast of -0");
        expect(lane(x < y, w) == (p < q) && lane(x >= y, w) == (p >= q) && lane(x == x, w) && !lane(x != x, w) &&
                   lane(x > y, w) == (p > q) && lane(x <= y, w) == (p <= q) && lane(!less, w) == !(p < q),
               "comparison", name<V>(), 0, 0, 0, w, 0);
        some |= p < q, every &= p < q;
    }
    expect(any(less) == some && all(less) == every, "any, all", name<V>(), 0, 0, 0, 0, 0);
    expect(all(mask_of<V>(true)) && !any(mask_of<V>(false)), "constant masks", name<V>(), 0, 0, 0, 0, 0);
    if constexpr (is_pack<V>)
        for (int count = 0; count <= lanes_of<V>; ++count) {
            auto from = random_array<T>(count), to = random_array<T>(count);
            V loaded = V::load_first(from, count);
            loaded.store_first(to, count);
            for (int w = 0; w < lanes_of<V>; ++w)
                expect(same_bits(lane(loaded, w), w < count ? from[w] : T(0)) && (w >= count || same_bits(to[w], from[w])),
                       "load_first, store_first", name<V>(), 0, 0, 0, count, w);
        }
}

template <class V> void test(int largest) {
    using T = scalar_of<V>;
    for (int i = 0; i < 20; ++i) test_pack<V>();
    for (int n = 0; n <= largest; n = n < 70 ? n + 1 : n == 70 ? 100 : n + 30) {
        const int step = n > 40 ? 29 : n > 20 ? 11 : 5, m = (n * 7 + 3) % 53;
        for (int k = 0; k <= 70; k += step) {
            test_products<V, V, V>(n, n, k);
            test_products<V, V, T>(m, n, k);
            test_products<V, T, V>(n, m, k);
            test_products<V, T, T>(n, n, k);
        }
        test_cholesky<V>(n);
        test_solves<V, V>(m, n), test_solves<V, T>(n, n);
        test_chosen<T>(m, n), test_transpose<V>(m, n), test_transpose<V>(n, m);
        test_vectors<V, V>(n, n), test_vectors<V, T>(n, n), test_vectors<V, V>(m, n), test_vectors<V, T>(n, m);
    }
    std::printf("%-12s %s\n", name<V>(), failures ? "FAILED" : "ok");
}

int main(int argc, char**) {
    const int largest = argc > 1 ? 300 : 130;
    test<double>(largest), test<float>(largest);
    test<Pack<double, native_width<double>>>(100), test<Pack<float, native_width<float>>>(100);
    test<Pack<double, 8>>(40), test<Pack<float, 8>>(40);
    return failures != 0;
}

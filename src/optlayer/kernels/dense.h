// Dense linear algebra over a value type V (pack.h): float or double, or a pack of them, one QP in each lane.
//
// Matrices are column-major: element (i, j) is a[j * ld + i]. Operands may be of type V, or of scalar_of<V>: shared by
// all lanes. Only the lower triangle of a symmetric or triangular matrix is read. A product of a matrix and a vector of
// double may have a matrix of float.
//
// One micro-kernel carries everything of order n³: a tile of C stays in registers while k runs,
//     C(i,j) -= a(i,k) b(j,k),       one fma for each k, in ascending order, on top of the old C(i,j).
// So an element's rounding depends neither on the tile that holds it nor on how k is cut into blocks, nor on whether
// a register holds eight rows of one QP or one row of eight QPs: a QP's result is the same bits in a lane and alone.
#pragma once
#include "tuning.h"

namespace optlayer {
namespace detail {

using Index = std::ptrdiff_t;

// How registers hold a piece of a column: `step` consecutive rows of a scalar V, or one row of a pack V.
// A tile has at most `rows` registers by `columns`, which leaves some registers for the operands.
template <class V, bool = in_rows<V>> struct Registers {
    using R = Pack<V, native_width<V>>;
    static constexpr int step = native_width<V>, rows = 3, columns = vector_registers == 32 ? 8 : 4;
    template <bool cut, class U> static OPTLAYER_INLINE R load(const U* p, int count) {
        return cut ? R::load_first(p, count) : R::load(p);
    }
    template <bool cut> static OPTLAYER_INLINE void store(V* p, R x, int count) {
        cut ? x.store_first(p, count) : x.store(p);
    }
    // element (i, j) of a tile, in every place
    template <int M, int N> static OPTLAYER_INLINE V element(const R (&tile)[N][M], int i, int j) {
        return tile[j][i / step][i % step];
    }
};
template <class V> struct Registers<V, true> {
    using R = V;
    static constexpr int step = 1, rows = vector_registers == 32 ? 4 : 3, columns = 4;
    template <bool cut, class U> static OPTLAYER_INLINE R load(const U* p, int) { return R(*p); }
    template <bool cut> static OPTLAYER_INLINE void store(V* p, R x, int) { *p = x; }
    template <int M, int N> static OPTLAYER_INLINE V element(const R (&tile)[N][M], int i, int j) { return tile[j][i]; }
};

// The operands of a product C -= a bᵀ or C += a diag(d) bᵀ; from(i, j) is that of the block of C that starts there.
struct One {};  // the type of d where there is none
template <int sign_, class A, class D, class B> struct Product {
    static constexpr int sign = sign_;
    int k;
    const A* a;
    Index lda;
    const D* d;
    const B* b;
    Index ldb;
    Product from(Index i, Index j) const { return {k, a + i, lda, d, b + j, ldb}; }
};
// Of a, only the columns `which`, one for each k.
template <class A> struct Chosen {
    const A* a;
    Index ld;
    const int* which;
    const A* operator+(Index i) const { return a + *which * ld + i; }
    void operator+=(Index count) { which += count; }
};
template <int sign_, class A, class B> struct ChosenProduct {
    static constexpr int sign = sign_;
    int k;
    Chosen<A> a;
    const B* b;
    const One* d = nullptr;
    Index lda = 1, ldb = 1;
    ChosenProduct from(Index i, Index j) const { return {k, {a.a + i, a.ld, a.which}, b + j}; }
};
template <class R, class D> OPTLAYER_INLINE R scaled(R x, const D* d, Index k) { return x * R(d[k]); }
template <class R> OPTLAYER_INLINE R scaled(R x, const One*, Index) { return x; }

// What happens to a tile between the product and the store.
struct Plain {};
template <class L> struct Solve {  // X := X L⁻ᵀ for the diagonal block at l
    const L* l;
    Index ld;
    const L* inv_diag;
};
template <class V> struct Factor {  // the diagonal block of a Cholesky factorisation, and any rows below it
    V* inv_diag;
    V pivot_floor;
    mask_of<V>* failed;
};

template <class V, class R, int N, int M> OPTLAYER_INLINE void finish(R (&)[N][M], const Plain&, V*) {}

template <class V, class R, int N, int M, class L>
OPTLAYER_INLINE void finish(R (&x)[N][M], const Solve<L>& s, V*) {
    OPTLAYER_UNROLL
    for (int j = 0; j < N; ++j) {
        const R inv = R(s.inv_diag[j]);
        OPTLAYER_UNROLL
        for (int r = 0; r < M; ++r) x[j][r] = x[j][r] * inv;
        OPTLAYER_UNROLL
        for (int i = j + 1; i < N; ++i) {
            const R l = R(s.l[j * s.ld + i]);
            OPTLAYER_UNROLL
            for (int r = 0; r < M; ++r) x[i][r] = fnma(x[j][r], l, x[i][r]);
        }
    }
}

template <class V, class R, int N, int M>
OPTLAYER_INLINE void finish(R (&x)[N][M], const Factor<V>& f, V* diagonal) {
    const V huge = scalar_of<V>(Tuning<scalar_of<V>>::huge_pivot);
    OPTLAYER_UNROLL
    for (int j = 0; j < N; ++j) {
        const V pivot = Registers<V>::element(x, j, j);
        const mask_of<V> good = pivot > f.pivot_floor;
        *f.failed = *f.failed | !good;
        const V root = sqrt(select(good, pivot, huge)), inv = V(1) / root;
        f.inv_diag[j] = inv;
        diagonal[j] = root;
        OPTLAYER_UNROLL
        for (int r = 0; r < M; ++r) x[j][r] = x[j][r] * R(inv);
        OPTLAYER_UNROLL
        for (int i = j + 1; i < N; ++i) {
            const R l = R(Registers<V>::element(x, i, j));
            OPTLAYER_UNROLL
            for (int r = 0; r < M; ++r) x[i][r] = fnma(x[j][r], l, x[i][r]);
        }
    }
}

// The micro-kernel: M registers of rows (`last` rows in the last one if cut) by N columns.
template <int M, int N, bool cut, class V, class P, class F>
OPTLAYER_NOINLINE void tile(V* C, Index ldc, const P& product, const F& after, int last) {
    using T = Registers<V>;
    using R = typename T::R;
    R c[N][M];
    OPTLAYER_UNROLL
    for (int j = 0; j < N; ++j) {
        OPTLAYER_UNROLL
        for (int r = 0; r < M - 1; ++r) c[j][r] = T::template load<false>(C + j * ldc + r * T::step, 0);
        c[j][M - 1] = T::template load<cut>(C + j * ldc + (M - 1) * T::step, last);
    }
    auto a = product.a;
    auto b = product.b;
    for (Index k = 0; k < product.k; ++k, a += product.lda, b += product.ldb) {
        R x[M];
        OPTLAYER_UNROLL
        for (int r = 0; r < M - 1; ++r) x[r] = scaled(T::template load<false>(a + r * T::step, 0), product.d, k);
        x[M - 1] = scaled(T::template load<cut>(a + (M - 1) * T::step, last), product.d, k);
        OPTLAYER_UNROLL
        for (int j = 0; j < N; ++j) {
            const R y = R(b[j]);
            OPTLAYER_UNROLL
            for (int r = 0; r < M; ++r) c[j][r] = P::sign > 0 ? fma(x[r], y, c[j][r]) : fnma(x[r], y, c[j][r]);
        }
    }
    V diagonal[N];
    finish(c, after, diagonal);
    OPTLAYER_UNROLL
    for (int j = 0; j < N; ++j) {
        OPTLAYER_UNROLL
        for (int r = 0; r < M - 1; ++r) T::template store<false>(C + j * ldc + r * T::step, c[j][r], 0);
        T::template store<cut>(C + j * ldc + (M - 1) * T::step, c[j][M - 1], last);
    }
    if constexpr (std::is_same<F, Factor<V>>::value)
        for (int j = 0; j < N; ++j) C[j * ldc + j] = diagonal[j];
}

// All m rows of N columns; M registers at a time, fewer for the last rows.
template <int M, int N, class V, class P, class F>
OPTLAYER_INLINE void last_rows(int m, V* C, Index ldc, const P& product, const F& after) {
    constexpr int step = Registers<V>::step;
    if constexpr (M > 0) {
        if (m > (M - 1) * step) tile<M, N, (step > 1)>(C, ldc, product, after, m - (M - 1) * step);
        else last_rows<M - 1, N>(m, C, ldc, product, after);
    }
}
template <int M, int N, class V, class P, class F>
OPTLAYER_INLINE void rows(int m, V* C, Index ldc, const P& product, const F& after) {
    constexpr int height = M * Registers<V>::step;
    int i = 0;
    for (; i + height <= m; i += height) tile<M, N, false>(C + i, ldc, product.from(i, 0), after, 0);
    last_rows<M, N>(m - i, C + i, ldc, product.from(i, 0), after);
}

// Calls f(j, width) for the blocks of columns 0 … n: as many of width N as there are, then N/2, …, 1.
template <int N, class F> OPTLAYER_INLINE void columns(int n, const F& f, int j = 0) {
    for (; j + N <= n; j += N) f(j, std::integral_constant<int, N>());
    if constexpr (N > 1) columns<N / 2>(n, f, j);
}

template <bool lower, class V, class P> void multiply(int m, int n, V* C, Index ldc, const P& product) {
    columns<Registers<V>::columns>(n, [=](int j, auto width) {
        const int i = lower ? j : 0;
        rows<Registers<V>::rows, width>(m - i, C + j * ldc + i, ldc, product.from(i, j), Plain());
    });
}

}  // namespace detail

// ---- transposition -------------------------------------------------------------------------------------------------

namespace detail {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && defined(OPTLAYER_VECTORS)
#define OPTLAYER_SHUFFLES 1
#endif
#endif
#ifdef OPTLAYER_SHUFFLES
// Exchanges the blocks off the diagonal of [a; b], in blocks of s.
template <int s, int W, class R, int... c>
OPTLAYER_INLINE void exchange(R& a, R& b, std::integer_sequence<int, c...>) {
    const auto x = a.v, y = b.v;
    a.v = __builtin_shufflevector(x, y, (c & s ? W + c - s : c)...);
    b.v = __builtin_shufflevector(x, y, (c & s ? W + c : c + s)...);
}
template <int s, class R, int W> OPTLAYER_INLINE void exchange_all(R (&x)[W]) {
    if constexpr (s < W) {
        OPTLAYER_UNROLL
        for (int i = 0; i < W; ++i)
            if (!(i & s)) exchange<s, W>(x[i], x[i + s], std::make_integer_sequence<int, W>());
        exchange_all<2 * s>(x);
    }
}
#endif
}  // namespace detail

// B = Aᵀ, A of m x n.
template <class V> void transpose(int m, int n, const V* a, int lda, V* b, int ldb) {
    using detail::Index;
    const auto block = [=](int i, int j, int rows, int columns) {
        for (int c = j; c < j + columns; ++c)
            for (int r = i; r < i + rows; ++r) b[r * Index(ldb) + c] = a[c * Index(lda) + r];
    };
    int done = 0;  // columns of A
#ifdef OPTLAYER_SHUFFLES
    if constexpr (!is_pack<V>) {
        constexpr int W = native_width<V>;
        const int even = m / W * W;
        for (; done + W <= n; done += W) {
            for (int i = 0; i < even; i += W) {
                Pack<V, W> x[W];
                OPTLAYER_UNROLL
                for (int c = 0; c < W; ++c) x[c] = Pack<V, W>::load(a + (done + c) * Index(lda) + i);
                detail::exchange_all<1>(x);
                OPTLAYER_UNROLL
                for (int c = 0; c < W; ++c) x[c].store(b + (i + c) * Index(ldb) + done);
            }
            block(even, done, m - even, W);
        }
    }
#endif
    block(0, done, m, n - done);
}

// C(i,j) -= sum_k a(i,k) b(j,k), or += sum_k a(i,k) d(k) b(j,k), in m x n; or in the lower triangle of n x n, where
// the entries above the diagonal inside of the diagonal blocks (of up to 8 x 8) get the same update, others are left.
template <class V, class A, class B>
void update(int m, int n, int k, V* C, int ldc, const A* a, int lda, const B* b, int ldb) {
    detail::multiply<false>(m, n, C, ldc, detail::Product<-1, A, detail::One, B>{k, a, lda, nullptr, b, ldb});
}
template <class V, class A, class B>
void update_lower(int n, int k, V* C, int ldc, const A* a, int lda, const B* b, int ldb) {
    detail::multiply<true>(n, n, C, ldc, detail::Product<-1, A, detail::One, B>{k, a, lda, nullptr, b, ldb});
}
template <class V, class A, class D, class B>
void add(int m, int n, int k, V* C, int ldc, const A* a, int lda, const D* d, const B* b, int ldb) {
    detail::multiply<false>(m, n, C, ldc, detail::Product<1, A, D, B>{k, a, lda, d, b, ldb});
}
template <class V, class A, class D, class B>
void add_lower(int n, int k, V* C, int ldc, const A* a, int lda, const D* d, const B* b, int ldb) {
    detail::multiply<true>(n, n, C, ldc, detail::Product<1, A, D, B>{k, a, lda, d, b, ldb});
}

// A = L Lᵀ in place of the lower triangle; inv_diag(j) = 1 / L(j,j). A pivot not above the floor (or NaN) is replaced
// by a huge one, so that its row and column drop out of every solve; the lanes where that happened are returned.
// Left-looking; entries above the diagonal inside of the diagonal blocks are clobbered.
template <class V> mask_of<V> cholesky(int n, V* A, int lda, V* inv_diag, V pivot_floor) {
    using namespace detail;
    mask_of<V> failed(false);
    const Index ld = lda;
    columns<Registers<V>::columns>(n, [&](int j, auto width) {
        constexpr int M = (width + Registers<V>::step - 1) / Registers<V>::step, head = M * Registers<V>::step;
        const Product<-1, V, One, V> left{j, A + j, ld, nullptr, A + j, ld};
        V* block = A + j * ld + j;
        const int below = n - j - head, last = (below < 0 ? n - j : head) - (M - 1) * Registers<V>::step;
        tile<M, width, (Registers<V>::step > 1)>(block, ld, left, Factor<V>{inv_diag + j, pivot_floor, &failed}, last);
        if (below > 0)
            rows<Registers<V>::rows, width>(below, block + head, ld, left.from(head, 0),
                                            Solve<V>{block, ld, inv_diag + j});
    });
    return failed;
}

// X := X L⁻ᵀ, X of m x n.
template <class V, class L> void trsm_right(int m, int n, V* X, int ldx, const L* l, int ldl, const L* inv_diag) {
    using namespace detail;
    const Index ld = ldl;
    columns<Registers<V>::columns>(n, [=](int j, auto width) {
        rows<Registers<V>::rows, width>(m, X + Index(ldx) * j, ldx, Product<-1, V, One, L>{j, X, ldx, nullptr, l + j, ld},
                                        Solve<L>{l + j * ld + j, ld, inv_diag + j});
    });
}

// ---- vectors -------------------------------------------------------------------------------------------------------

namespace detail {

// Eight consecutive elements of a column, in `count` registers. Dot products are eight partial sums, of the terms
// i mod 8, added as a tree: enough to fill the registers of one QP, and the lanes of many do the same.
template <class V, bool = in_rows<V>> struct Chunk {
    static constexpr int width = native_width<V> < 8 ? native_width<V> : 8, count = 8 / width;
    static constexpr int columns = width;  // so many columns share the loads of x, with eight accumulators in all
    using R = Pack<V, width>;
    template <class U> static OPTLAYER_INLINE R load(const U* p, int q, int rows) {
        const int left = rows - q * width;
        return rows >= 8 ? R::load(p + q * width) : R::load_first(p + q * width, left < width ? left : width);
    }
    template <int W> static OPTLAYER_INLINE V sum(Pack<V, W> x) {
        if constexpr (W == 2) {
            return x[0] + x[1];
        } else {
            V each[W];
            x.store(each);
            return sum(Pack<V, W / 2>::load(each) + Pack<V, W / 2>::load(each + W / 2));
        }
    }
};
template <class V> struct Chunk<V, true> {
    static constexpr int width = 1, count = 8, columns = vector_registers == 32 ? 2 : 1;
    using R = V;
    template <class U> static OPTLAYER_INLINE R load(const U* p, int q, int) { return R(p[q]); }
    static OPTLAYER_INLINE V sum(V x) { return x; }
};
template <class V, class R, int count> OPTLAYER_INLINE V total(R (&partial)[count]) {
    OPTLAYER_UNROLL
    for (int half = count / 2; half > 0; half /= 2)
        OPTLAYER_UNROLL
        for (int q = 0; q < half; ++q) partial[q] = partial[q] + partial[q + half];
    return Chunk<V>::sum(partial[0]);
}

// y(c) += sign sum_i a(i,c) x(i) for N columns, which column(c) gives.
template <int N, class V, class F>
OPTLAYER_INLINE void dots(int m, const F& column, const V* x, V* y, int sign) {
    using K = Chunk<V>;
    typename K::R partial[N][K::count];
    decltype(column(0)) a[N];
    OPTLAYER_UNROLL
    for (int c = 0; c < N; ++c) a[c] = column(c);
    OPTLAYER_UNROLL
    for (int c = 0; c < N; ++c)
        OPTLAYER_UNROLL
        for (int q = 0; q < K::count; ++q) partial[c][q] = typename K::R(scalar_of<V>(0));
    auto add_rows = [&](int i, int rows) {
        OPTLAYER_UNROLL
        for (int q = 0; q < K::count; ++q) {
            if (q * K::width >= rows) break;
            const auto xi = K::load(x + i, q, rows);
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) partial[c][q] = fma(K::load(a[c] + i, q, rows), xi, partial[c][q]);
        }
    };
    int i = 0;
    for (; i + 8 <= m; i += 8) add_rows(i, 8);
    if (i < m) add_rows(i, m - i);
    OPTLAYER_UNROLL
    for (int c = 0; c < N; ++c) {
        const V sum = total<V>(partial[c]);
        y[c] = sign > 0 ? y[c] + sum : y[c] - sum;
    }
}

// The same for columns so short that one sum after the other is faster than the tree (for every V, so that all agree).
constexpr int few = 24;
template <int N, class V, class F>
OPTLAYER_INLINE void few_dots(int m, const F& column, const V* x, V* y, int sign) {
    V sum[N];
    decltype(column(0)) a[N];
    OPTLAYER_UNROLL
    for (int c = 0; c < N; ++c) a[c] = column(c), sum[c] = V(0);
    for (int i = 0; i < m; ++i)
        OPTLAYER_UNROLL
        for (int c = 0; c < N; ++c) sum[c] = fma(V(a[c][i]), x[i], sum[c]);
    OPTLAYER_UNROLL
    for (int c = 0; c < N; ++c) y[c] = sign > 0 ? y[c] + sum[c] : y[c] - sum[c];
}

// Calls f with n as a constant, 1 <= n <= N.
template <int N, class F> OPTLAYER_INLINE void constant(int n, const F& f) {
    if constexpr (N > 1)
        if (n < N) return constant<N - 1>(n, f);
    f(std::integral_constant<int, N>());
}

}  // namespace detail

// y += sign A x, A of m x n.
template <class V, class A> void gemv(int m, int n, const A* a, int lda, const V* x, V* y, int sign = 1) {
    using namespace detail;
    if (sign > 0) rows<8, 1>(m, y, 0, Product<1, A, One, V>{n, a, lda, nullptr, x, 1}, Plain());
    else rows<8, 1>(m, y, 0, Product<-1, A, One, V>{n, a, lda, nullptr, x, 1}, Plain());
}

// y += sign A x, of A only the n columns `which`.
template <class V, class A> void gemv(int m, int n, const A* a, int lda, const int* which, const V* x, V* y, int sign = 1) {
    using namespace detail;
    if (sign > 0) rows<8, 1>(m, y, 0, ChosenProduct<1, A, V>{n, {a, lda, which}, x}, Plain());
    else rows<8, 1>(m, y, 0, ChosenProduct<-1, A, V>{n, {a, lda, which}, x}, Plain());
}

namespace detail {
// y(j) += sign (column(j))'x, j < n
template <class V, class F> OPTLAYER_INLINE void all_dots(int m, int n, const F& column, const V* x, V* y, int sign) {
    const auto from = [&](int j) { return [&column, j](int c) { return column(j + c); }; };
    if (m <= few) return columns<8>(n, [&](int j, auto width) { few_dots<width>(m, from(j), x, y + j, sign); });
    columns<Chunk<V>::columns>(n, [&](int j, auto width) { dots<width>(m, from(j), x, y + j, sign); });
}
}  // namespace detail

// y += sign Aᵀ x, A of m x n; or of A only the n columns `which`.
template <class V, class A> void gemv_t(int m, int n, const A* a, int lda, const V* x, V* y, int sign = 1) {
    const detail::Index ld = lda;
    detail::all_dots(m, n, [=](int j) { return a + j * ld; }, x, y, sign);
}
template <class V, class A> void gemv_t(int m, int n, const A* a, int lda, const int* which, const V* x, V* y, int sign = 1) {
    const detail::Index ld = lda;
    detail::all_dots(m, n, [=](int j) { return a + which[j] * ld; }, x, y, sign);
}

// y += A x, from the lower triangle of a symmetric A; eight columns at a time, which stay in the first cache.
template <class V, class A> void symv_lower(int n, const A* a, int lda, const V* x, V* y) {
    using namespace detail;
    for (int j = 0; j < n; j += 8) {
        const A* block = a + j * Index(lda) + j;
        constant<8>(n - j < 8 ? n - j : 8, [=](auto width) {
            constexpr int N = width;
            V u[N], above[N];
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) u[c] = y[j + c], above[c] = V(0);
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c)
                OPTLAYER_UNROLL
                for (int i = c; i < N; ++i) {
                    const V here(block[c * Index(lda) + i]);
                    u[i] = fma(here, x[j + c], u[i]);
                    if (i > c) above[c] = fma(here, x[j + i], above[c]);
                }
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) y[j + c] = u[c] + above[c];
        });
        if (j + 8 >= n) break;
        gemv(n - j - 8, 8, block + 8, lda, x + j, y + j + 8);
        gemv_t(n - j - 8, 8, block + 8, lda, x + j + 8, y + j);
    }
}

// x := L⁻¹ x; eight unknowns, then the rows below them.
template <class V, class L> void solve_lower(int n, const L* l, int ld, const L* inv_diag, V* x) {
    using namespace detail;
    for (int j = 0; j < n; j += 8) {
        const L* block = l + j * Index(ld) + j;
        constant<8>(n - j < 8 ? n - j : 8, [=](auto width) {
            constexpr int N = width;
            V u[N];
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) u[c] = x[j + c];
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) {
                u[c] = u[c] * V(inv_diag[j + c]);
                OPTLAYER_UNROLL
                for (int i = c + 1; i < N; ++i) u[i] = fnma(V(block[c * Index(ld) + i]), u[c], u[i]);
            }
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) x[j + c] = u[c];
        });
        if (j + 8 < n) rows<8, 1>(n - j - 8, x + j + 8, 0, Product<-1, L, One, V>{8, block + 8, ld, nullptr, x + j, 1}, Plain());
    }
}

// x := L⁻ᵀ x; the rows below eight unknowns, then these.
template <class V, class L> void solve_lower_t(int n, const L* l, int ld, const L* inv_diag, V* x) {
    using namespace detail;
    for (int j = (n + 7) / 8 * 8 - 8; j >= 0; j -= 8) {
        const L* block = l + j * Index(ld) + j;
        if (j + 8 < n) gemv_t(n - j - 8, 8, block + 8, ld, x + j + 8, x + j, -1);
        constant<8>(n - j < 8 ? n - j : 8, [=](auto width) {
            constexpr int N = width;
            V u[N];
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) u[c] = x[j + c];
            OPTLAYER_UNROLL
            for (int c = N - 1; c >= 0; --c) {
                u[c] = u[c] * V(inv_diag[j + c]);
                OPTLAYER_UNROLL
                for (int i = 0; i < c; ++i) u[i] = fnma(V(block[i * Index(ld) + c]), u[c], u[i]);
            }
            OPTLAYER_UNROLL
            for (int c = 0; c < N; ++c) x[j + c] = u[c];
        });
    }
}

}  // namespace optlayer

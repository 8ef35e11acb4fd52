// Dense linear algebra over a value type V (pack.h). Matrices are column-major: element (i, j) is a[j * ld + i].
// Operands of type U may be V (own to each lane) or scalar_of<V> (shared by the lanes).
#pragma once
#include "pack.h"

namespace optlayer {

namespace detail {
template <int sign, class V> OPTLAYER_INLINE V plus(V a, V b, V c) { return sign > 0 ? fma(a, b, c) : fnma(a, b, c); }
struct One {};  // stands for d = (1, 1, …)
template <class V, class A> OPTLAYER_INLINE V scaled(V a, const A* d, int k) { return a * V(d[k]); }
template <class V> OPTLAYER_INLINE V scaled(V a, const One*, int) { return a; }

template <int sign, bool lower, class V, class A, class D, class B>
void product(int m, int n, int k, V* C, int ldc, const A* a, int lda, const D* d, const B* b, int ldb) {
    for (int j = 0; j < n; ++j)
        for (int l = 0; l < k; ++l)
            for (int i = lower ? j : 0; i < m; ++i)
                C[j * ldc + i] = plus<sign, V>(scaled(V(a[l * lda + i]), d, l), V(b[l * ldb + j]), C[j * ldc + i]);
}
}  // namespace detail

// C(i,j) -= sum_k a(i,k) b(j,k), or += sum_k a(i,k) d(k) b(j,k); m x n, or the lower triangle of n x n.
// In the triangle's case the entries above the diagonal may be clobbered.
template <class V, class A, class B>
void update(int m, int n, int k, V* C, int ldc, const A* a, int lda, const B* b, int ldb) {
    detail::product<-1, false>(m, n, k, C, ldc, a, lda, static_cast<const detail::One*>(nullptr), b, ldb);
}
template <class V, class A, class B>
void update_lower(int n, int k, V* C, int ldc, const A* a, int lda, const B* b, int ldb) {
    detail::product<-1, true>(n, n, k, C, ldc, a, lda, static_cast<const detail::One*>(nullptr), b, ldb);
}
template <class V, class A, class D, class B>
void add(int m, int n, int k, V* C, int ldc, const A* a, int lda, const D* d, const B* b, int ldb) {
    detail::product<1, false>(m, n, k, C, ldc, a, lda, d, b, ldb);
}
template <class V, class A, class D, class B>
void add_lower(int n, int k, V* C, int ldc, const A* a, int lda, const D* d, const B* b, int ldb) {
    detail::product<1, true>(n, n, k, C, ldc, a, lda, d, b, ldb);
}

// A = L L^T in place of the lower triangle; inv_diag(j) = 1 / L(j,j). A pivot not above the floor (or NaN) is replaced
// by a huge one, so that its row and column drop out of every solve; the lanes where that happened are returned.
template <class V> mask_of<V> cholesky(int n, V* A, int lda, V* inv_diag, V pivot_floor) {
    mask_of<V> failed(false);
    const V huge = scalar_of<V>(sizeof(scalar_of<V>) == 8 ? 1e128 : 1e30);
    for (int j = 0; j < n; ++j) {
        for (int k = 0; k < j; ++k)
            for (int i = j; i < n; ++i) A[j * lda + i] = fnma(A[k * lda + i], A[k * lda + j], A[j * lda + i]);
        mask_of<V> good = A[j * lda + j] > pivot_floor;
        failed = failed | !good;
        V pivot = sqrt(select(good, A[j * lda + j], huge));
        inv_diag[j] = V(1) / pivot;
        A[j * lda + j] = pivot;
        for (int i = j + 1; i < n; ++i) A[j * lda + i] = A[j * lda + i] * inv_diag[j];
    }
    return failed;
}

// X := X L^-T, X of m x n.
template <class V, class L> void trsm_right(int m, int n, V* X, int ldx, const L* l, int ldl, const L* inv_diag) {
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            V x = X[j * ldx + i];
            for (int k = 0; k < j; ++k) x = fnma(X[k * ldx + i], V(l[k * ldl + j]), x);
            X[j * ldx + i] = x * V(inv_diag[j]);
        }
}

// x := L^-1 x
template <class V, class L> void solve_lower(int n, const L* l, int ld, const L* inv_diag, V* x) {
    for (int j = 0; j < n; ++j) {
        x[j] = x[j] * V(inv_diag[j]);
        for (int i = j + 1; i < n; ++i) x[i] = fnma(V(l[j * ld + i]), x[j], x[i]);
    }
}

// x := L^-T x
template <class V, class L> void solve_lower_t(int n, const L* l, int ld, const L* inv_diag, V* x) {
    for (int j = n - 1; j >= 0; --j) {
        for (int i = j + 1; i < n; ++i) x[j] = fnma(V(l[j * ld + i]), x[i], x[j]);
        x[j] = x[j] * V(inv_diag[j]);
    }
}

// y += sign A x, A of m x n
template <class V, class A> void gemv(int m, int n, const A* a, int lda, const V* x, V* y, int sign = 1) {
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) y[i] = fma(V(a[j * lda + i]), sign > 0 ? x[j] : -x[j], y[i]);
}

// y += sign A^T x, A of m x n
template <class V, class A> void gemv_t(int m, int n, const A* a, int lda, const V* x, V* y, int sign = 1) {
    for (int j = 0; j < n; ++j) {
        V sum(0);
        for (int i = 0; i < m; ++i) sum = fma(V(a[j * lda + i]), x[i], sum);
        y[j] = sign > 0 ? y[j] + sum : y[j] - sum;
    }
}

// y += A x, from the lower triangle of a symmetric A
template <class V, class A> void symv_lower(int n, const A* a, int lda, const V* x, V* y) {
    for (int j = 0; j < n; ++j) {
        V sum(0);
        y[j] = fma(V(a[j * lda + j]), x[j], y[j]);
        for (int i = j + 1; i < n; ++i) {
            y[i] = fma(V(a[j * lda + i]), x[j], y[i]);
            sum = fma(V(a[j * lda + i]), x[i], sum);
        }
        y[j] = y[j] + sum;
    }
}

}  // namespace optlayer

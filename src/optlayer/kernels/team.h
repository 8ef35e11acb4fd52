// A team works on one QP (or, with a Pack as value, on one QP per SIMD lane).
// Algorithms are written over `each` and the reductions alone: they hold no barrier and no thread index,
// and scalars that steer control flow come only from reductions, so that all threads agree.
// A scalar that the body of `each` accumulates is each thread's own: `total`, `largest`, `smallest` join it after.
#pragma once
#include "dense.h"

namespace optlayer {

// (`max` and `min` under names that the teams' reductions do not hide)
template <class V>
V larger(V a, V b) { return max(a, b); }
template <class V>
V smaller(V a, V b) { return min(a, b); }

// One thread of a CPU.
template <class Value>
struct Solo {
    using V = Value;
    static constexpr bool by_rows = false;  // Sides::each: rows, then lower, then upper bounds
    using Wide = typename detail::Rows<Value>::Unit;  // Sides::strips: a register

    template <class F>
    void each(int n, F&& f) const {
        for (int i = 0; i < n; ++i) f(i);
    }
    template <class F>
    V sum(int n, F&& f) const {
        V r = V(0);
        for (int i = 0; i < n; ++i) r = r + f(i);
        return r;
    }
    template <class F>
    V max(int n, V r, F&& f) const {
        for (int i = 0; i < n; ++i) r = larger(r, V(f(i)));
        return r;
    }
    template <class F>
    V min(int n, V r, F&& f) const {
        for (int i = 0; i < n; ++i) r = smaller(r, V(f(i)));
        return r;
    }
    template <class F>
    void one(F&& f) const { f(); }
    template <class F>
    void each_pair(int rows, int columns, F&& f) const {  // f(i, j)
        for (int j = 0; j < columns; ++j)
            for (int i = 0; i < rows; ++i) f(i, j);
    }
    template <class F>
    void each_lower(int n, F&& f) const {  // f(i, j) for i >= j
        for (int j = 0; j < n; ++j)
            for (int i = j; i < n; ++i) f(i, j);
    }
    void total(V&) const {}
    void largest(V&) const {}
    void smallest(V&) const {}

    // Dense kernels (dense.h), column-major.
    template <class W, class A, class B>
    void update_lower(int n, int k, W* c, int ldc, const A* a, int lda, const B* b, int ldb) const {
        optlayer::update_lower(n, k, c, ldc, a, lda, b, ldb);
    }
    template <class W, class A, class B>
    void update(int m, int n, int k, W* c, int ldc, const A* a, int lda, const B* b, int ldb) const {
        optlayer::update(m, n, k, c, ldc, a, lda, b, ldb);
    }
    template <class W>
    auto cholesky(int n, W* a, int lda, W* inv, W floor) const {
        return optlayer::cholesky(n, a, lda, inv, floor);
    }
    template <class W, class L>
    void trsm_right(int m, int n, W* x, int ldx, const L* l, int ldl, const L* inv) const {
        optlayer::trsm_right(m, n, x, ldx, l, ldl, inv);
    }
    template <class W, class L>
    void solve_lower(int n, const L* l, int ld, const L* inv, W* x) const {
        optlayer::solve_lower(n, l, ld, inv, x);
    }
    template <class W, class L>
    void solve_lower_t(int n, const L* l, int ld, const L* inv, W* x) const {
        optlayer::solve_lower_t(n, l, ld, inv, x);
    }
    template <class W, class A>
    void gemv(int m, int n, const A* a, int lda, const W* x, W* y, int sign = 1) const {
        optlayer::gemv(m, n, a, lda, x, y, sign);
    }
    template <class W, class A>
    void gemv_t(int m, int n, const A* a, int lda, const W* x, W* y, int sign = 1) const {
        optlayer::gemv_t(m, n, a, lda, x, y, sign);
    }
    template <class W, class A>
    void gemv(int m, int n, const A* a, int lda, const int* which, const W* x, W* y, int sign = 1) const {
        optlayer::gemv(m, n, a, lda, which, x, y, sign);
    }
    template <class W, class A>
    void gemv_t(int m, int n, const A* a, int lda, const int* which, const W* x, W* y, int sign = 1) const {
        optlayer::gemv_t(m, n, a, lda, which, x, y, sign);
    }
    template <class W>
    void transpose(int m, int n, const W* a, int lda, W* b, int ldb) const {
        optlayer::transpose(m, n, a, lda, b, ldb);
    }
    template <class W, class A>
    void symv_lower(int n, const A* a, int lda, const W* x, W* y) const {
        optlayer::symv_lower(n, a, lda, x, y);
    }
};

// One thread that takes every `each` in a random order: what depends on the order would be a race on a GPU.
template <class Value>
struct Scrambled : Solo<Value> {
    using V = Value;
    using Wide = Value;
    mutable unsigned state = 1;

    template <class F>
    void each(int n, F&& f) const {  // start + i·stride mod n, the stride prime to n
        if (n < 1) return;
        state = state * 1664525u + 1013904223u;
        const int start = int((state >> 8) % unsigned(n));
        int stride = 1 + int((state >> 16) % unsigned(n));
        while (divisor(stride, n) > 1) ++stride;
        for (int i = 0; i < n; ++i) f(int((start + int64_t(i) * stride) % n));
    }
    template <class F>
    void each_pair(int rows, int columns, F&& f) const {
        each(rows * columns, [&](int k) { f(k % rows, k / rows); });
    }
    template <class F>
    void each_lower(int n, F&& f) const {
        each(n * n, [&](int k) { if (k % n >= k / n) f(k % n, k / n); });
    }

  private:
    static int divisor(int a, int b) { return b ? divisor(b, a % b) : a; }
};

}  // namespace optlayer

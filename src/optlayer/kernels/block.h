// The team of a GPU: one QP for `threads` threads, a warp (several QPs to a block, none waits for another) or a block.
// Same names and meaning as Solo (team.h); every method is called by all threads and ends synchronised.
//
// Dense kernels work on blocks of `side` columns. cholesky() leaves the inverse W = L⁻¹ of each diagonal block in the
// block's upper triangle, W(i, c) at row c and column i, and 1/L(i, i) in inv: so triangular solves have products in
// place of chains of dependent divisions. What reads such an L must come from cholesky() of the same team.
#pragma once
#include "machine.h"
#include "team.h"

namespace optlayer {

// The team of one thread, for QPs so small that a warp would idle: plain loops, nothing blocked, nothing unrolled.
template <class Value>
struct Thread {
    using V = Value;
    static constexpr bool by_rows = true;
    template <class F> void each(int n, F&& f) const {
        OPTLAYER_ROLLED
        for (int i = 0; i < n; ++i) f(i);
    }
    template <class F> void each_pair(int rows, int columns, F&& f) const {
        OPTLAYER_ROLLED
        for (int j = 0; j < columns; ++j) {
            OPTLAYER_ROLLED
            for (int i = 0; i < rows; ++i) f(i, j);
        }
    }
    template <class F> void each_lower(int n, F&& f) const {
        OPTLAYER_ROLLED
        for (int j = 0; j < n; ++j) {
            OPTLAYER_ROLLED
            for (int i = j; i < n; ++i) f(i, j);
        }
    }
    template <class F> void one(F&& f) const { f(); }
    template <class F> V sum(int n, F&& f) const {
        V r = V(0);
        OPTLAYER_ROLLED
        for (int i = 0; i < n; ++i) r = r + f(i);
        return r;
    }
    template <class F> V max(int n, V r, F&& f) const {
        OPTLAYER_ROLLED
        for (int i = 0; i < n; ++i) r = larger(r, V(f(i)));
        return r;
    }
    template <class F> V min(int n, V r, F&& f) const {
        OPTLAYER_ROLLED
        for (int i = 0; i < n; ++i) r = smaller(r, V(f(i)));
        return r;
    }
    void total(V&) const {}
    void largest(V&) const {}
    void smallest(V&) const {}

    OPTLAYER_CALL void update_lower(int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        for (int j = 0; j < n; ++j)
            for (int i = j; i < n; ++i) c[j * ldc + i] = c[j * ldc + i] - dot(k, a + i, lda, b + j, ldb);
    }
    OPTLAYER_CALL void update(int m, int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) c[j * ldc + i] = c[j * ldc + i] - dot(k, a + i, lda, b + j, ldb);
    }
    OPTLAYER_CALL bool cholesky(int n, V* a, int lda, V* inv, V floor) const {
        bool failed = false;
        for (int j = 0; j < n; ++j) {
            V pivot = a[j * lda + j] - dot(j, a + j, lda, a + j, lda);
            if (!(pivot > floor)) failed = true, pivot = V(sizeof(V) == 8 ? 1e128 : 1e30);
            inv[j] = machine::rsqrt(pivot);
            a[j * lda + j] = pivot * inv[j];
            for (int i = j + 1; i < n; ++i) a[j * lda + i] = (a[j * lda + i] - dot(j, a + i, lda, a + j, lda)) * inv[j];
        }
        return failed;
    }
    OPTLAYER_CALL void trsm_right(int m, int n, V* x, int ldx, const V* l, int ldl, const V* inv) const {
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) x[j * ldx + i] = (x[j * ldx + i] - dot(j, x + i, ldx, l + j, ldl)) * inv[j];
    }
    OPTLAYER_CALL void solve_lower(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = 0; j < n; ++j) {
            const V y = x[j] * inv[j];
            x[j] = y;
            for (int i = j + 1; i < n; ++i) x[i] = fnma(l[j * ld + i], y, x[i]);
        }
    }
    OPTLAYER_CALL void solve_lower_t(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = n - 1; j >= 0; --j) {
            V y = x[j];
            for (int i = j + 1; i < n; ++i) y = fnma(l[j * ld + i], x[i], y);
            x[j] = y * inv[j];
        }
    }
    OPTLAYER_CALL void gemv(int m, int n, const V* a, int lda, const V* x, V* y, int sign = 1) const {
        for (int j = 0; j < n; ++j) {
            const V xj = sign > 0 ? x[j] : -x[j];
            for (int i = 0; i < m; ++i) y[i] = fma(a[j * lda + i], xj, y[i]);
        }
    }
    OPTLAYER_CALL void gemv_t(int m, int n, const V* a, int lda, const V* x, V* y, int sign = 1) const {
        for (int j = 0; j < n; ++j) {
            const V sum = dot(m, a + j * lda, 1, x, 1);
            y[j] = sign > 0 ? y[j] + sum : y[j] - sum;
        }
    }
    OPTLAYER_CALL void symv_lower(int n, const V* a, int lda, const V* x, V* y) const {
        for (int j = 0; j < n; ++j) {
            V sum = a[j * lda + j] * x[j];
            for (int i = j + 1; i < n; ++i) {
                sum = fma(a[j * lda + i], x[i], sum);
                y[i] = fma(a[j * lda + i], x[j], y[i]);
            }
            y[j] = y[j] + sum;
        }
    }

  private:
    static V dot(int k, const V* a, int lda, const V* b, int ldb) {
        V sum = V(0);
        for (int l = 0; l < k; ++l) sum = fma(a[l * lda], b[l * ldb], sum);
        return sum;
    }
};

template <class Value, int threads>
struct Block {
    using V = Value;
    static constexpr bool by_rows = true;
    static constexpr int warp = machine::warp, warps = threads / warp;
    static constexpr int side = warp / 4;                         // columns of a diagonal block; a lane holds a row
    static constexpr int octet = warp / 4, octets = threads / octet;  // lanes that share a dot product
    static_assert(threads % warp == 0, "a team has whole warps");

    // Room that all threads of the team see: joined[2][warps] for reductions, then partial[threads] for sums.
    static constexpr int room = 2 * warps + threads;
    V* shared;
    int rank = machine::thread() % threads;
    mutable int turn = 0;

    int lane() const { return rank % warp; }
    void sync() const {
        if (threads > warp) machine::sync_block();
        else machine::sync_warp();
    }

    // ---- loops -------------------------------------------------------------------------------------------------
    template <class F> void each(int n, F&& f) const {
        if (n <= 0) return;
        OPTLAYER_ROLLED
        for (int i = rank; i < n; i += threads) f(i);
        sync();
    }
    template <class F> void each_pair(int rows, int columns, F&& f) const {
        if (rows <= 0 || columns <= 0) return;
        OPTLAYER_ROLLED
        for (int e = rank; e < rows * columns; e += threads) {
            const int j = e / rows;
            f(e - j * rows, j);
        }
        sync();
    }
    // Columns j and n-1-j of the triangle have n+1 entries together: a rectangle.
    template <class F> void each_lower(int n, F&& f) const {
        const int rows = n + 1, columns = (n + 1) / 2;
        OPTLAYER_ROLLED
        for (int e = rank; e < rows * columns; e += threads) {
            const int j = e / rows, r = e - j * rows, mirror = n - 1 - j;
            if (r < n - j) f(j + r, j);
            else if (mirror != j) f(mirror + (r - (n - j)), mirror);
        }
        sync();
    }
    template <class F> void one(F&& f) const {
        if (rank == 0) f();
        sync();
    }

    // ---- reductions: every thread gets the same bits ---------------------------------------------------------------
    template <class Op> OPTLAYER_CALL V join(V x, Op op) const {
        for (int o = warp / 2; o > 0; o /= 2) x = op(x, machine::shuffle_xor(x, o));
        if (warps == 1) return machine::shuffle(x, 0);  // min and max of NaN depend on the order
        V* at = shared + turn * warps;  // two rooms in turn: nobody still reads the one before last
        turn ^= 1;
        if (lane() == 0) at[rank / warp] = x;
        sync();
        x = at[0];
        for (int w = 1; w < warps; ++w) x = op(x, at[w]);
        return x;
    }
    struct Plus { V operator()(V a, V b) const { return a + b; } };
    struct Larger { V operator()(V a, V b) const { return larger(a, b); } };
    struct Smaller { V operator()(V a, V b) const { return smaller(a, b); } };
    void total(V& x) const { x = join(x, Plus()); }
    void largest(V& x) const { x = join(x, Larger()); }
    void smallest(V& x) const { x = join(x, Smaller()); }
    template <class F> V sum(int n, F&& f) const {
        V r = V(0);
        OPTLAYER_ROLLED
        for (int i = rank; i < n; i += threads) r = r + f(i);
        total(r);
        return r;
    }
    template <class F> V max(int n, V r, F&& f) const {
        OPTLAYER_ROLLED
        for (int i = rank; i < n; i += threads) r = larger(r, V(f(i)));
        largest(r);
        return r;
    }
    template <class F> V min(int n, V r, F&& f) const {
        OPTLAYER_ROLLED
        for (int i = rank; i < n; i += threads) r = smaller(r, V(f(i)));
        smallest(r);
        return r;
    }

    // ---- products --------------------------------------------------------------------------------------------------
    void update_lower(int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        product<true>(n, n, k, c, ldc, a, lda, b, ldb);
        sync();
    }
    void update(int m, int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        product<false>(m, n, k, c, ldc, a, lda, b, ldb);
        sync();
    }

    // ---- triangular ------------------------------------------------------------------------------------------------
    // A = L L' in place; whether a pivot was not above the floor (it is replaced by a huge one).
    OPTLAYER_CALL bool cholesky(int n, V* a, int lda, V* inv, V floor) const {
        V failed = V(0);
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side, rest = n - j - nb;
            V* block = a + size_t(j) * lda + j;
            if (rank < warp) factor_block(nb, block, lda, inv + j, floor, failed);
            sync();
            if (rest > 0) {
                solve_rows(rest, nb, block + nb, lda, block, lda, inv + j);
                sync();
                product<true>(rest, rest, nb, block + size_t(nb) * lda + nb, lda, block + nb, lda, block + nb, lda);
                sync();
            }
        }
        largest(failed);
        return failed > V(0);
    }

    // X := X L⁻', X of m x n.
    OPTLAYER_CALL void trsm_right(int m, int n, V* x, int ldx, const V* l, int ldl, const V* inv) const {
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side, rest = n - j - nb;
            const V* block = l + size_t(j) * ldl + j;
            solve_rows(m, nb, x + size_t(j) * ldx, ldx, block, ldl, inv + j);
            sync();
            if (rest > 0) {
                product<false>(m, rest, nb, x + size_t(j + nb) * ldx, ldx, x + size_t(j) * ldx, ldx, block + nb, ldl);
                sync();
            }
        }
    }

    // x := L⁻¹ x
    OPTLAYER_CALL void solve_lower(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side;
            const V* block = l + size_t(j) * ld + j;
            if (rank < warp) {
                const int i = rank;
                V y = V(0);
                if (i < nb) {
                    y = inv[j + i] * x[j + i];
                    for (int c = 0; c < i; ++c) y = fma(block[size_t(i) * ld + c], x[j + c], y);
                }
                machine::sync_warp();
                if (i < nb) x[j + i] = y;
            }
            sync();
            if (j + nb >= n) break;
            for (int i = j + nb + rank; i < n; i += threads) {
                V y = x[i];
                OPTLAYER_UNROLL
                for (int c = 0; c < side; ++c) y = fnma(l[size_t(j + c) * ld + i], x[j + c], y);  // a full block
                x[i] = y;
            }
            sync();
        }
    }

    // x := L⁻' x
    OPTLAYER_CALL void solve_lower_t(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = (n - 1) / side * side; j >= 0; j -= side) {
            const int nb = n - j < side ? n - j : side, rest = n - j - nb;
            const V* block = l + size_t(j) * ld + j;
            if (rest > 0) {
                columns<false>(rest, nb, block + nb, ld, x + j + nb, x + j, -1);
                sync();
            }
            if (rank < warp) {
                const int c = rank;
                V y = V(0);
                if (c < nb) {
                    y = inv[j + c] * x[j + c];
                    for (int i = c + 1; i < nb; ++i) y = fma(block[size_t(i) * ld + c], x[j + i], y);
                }
                machine::sync_warp();
                if (c < nb) x[j + c] = y;
            }
            sync();
        }
    }

    // ---- matrix times vector ---------------------------------------------------------------------------------------
    // y += sign A x, A of m x n.
    void gemv(int m, int n, const V* a, int lda, const V* x, V* y, int sign = 1) const {
        rows<false>(m, n, a, lda, x, y, sign);
        sync();
    }
    // y += sign A' x, A of m x n.
    void gemv_t(int m, int n, const V* a, int lda, const V* x, V* y, int sign = 1) const {
        columns<false>(m, n, a, lda, x, y, sign);
        sync();
    }
    // y += A x, from the lower triangle of a symmetric A.
    void symv_lower(int n, const V* a, int lda, const V* x, V* y) const {
        rows<true>(n, n, a, lda, x, y, 1);
        sync();
        columns<true>(n, n, a, lda, x, y, 1);
        sync();
    }

  private:
    // C -= a b', in the lower triangle or everywhere. A warp takes a tile of 4 octets by 16, a thread every octet-th row
    // and every fourth column of it: neighbours read neighbours, so that loads neither scatter nor meet in one bank.
    template <bool lower>
    OPTLAYER_CALL void product(int m, int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        constexpr int R = 4, C = 4, height = R * octet, width = C * 4;
        const int row = lane() % octet, column = lane() / octet, down = (m + height - 1) / height;
        int mine = rank / warp;  // tiles until the next one of this warp
        for (int j0 = 0; j0 < n; j0 += width)
            for (int t = lower ? j0 / height : 0; t < down; ++t) {
                if (mine-- > 0) continue;
                mine = warps - 1;
                const int i0 = t * height;
                V sum[C][R] = {};
                const V *x[R], *y[C];  // beyond the edge the last one is read, and nothing is written
                OPTLAYER_UNROLL
                for (int r = 0; r < R; ++r) x[r] = a + least(i0 + row + r * octet, m - 1);
                OPTLAYER_UNROLL
                for (int s = 0; s < C; ++s) y[s] = b + least(j0 + column + 4 * s, n - 1);
                for (int l = 0; l < k; ++l) {
                    V xr[R], yc[C];
                    OPTLAYER_UNROLL
                    for (int r = 0; r < R; ++r) xr[r] = x[r][size_t(l) * lda];
                    OPTLAYER_UNROLL
                    for (int s = 0; s < C; ++s) yc[s] = y[s][size_t(l) * ldb];
                    OPTLAYER_UNROLL
                    for (int s = 0; s < C; ++s)
                        OPTLAYER_UNROLL
                        for (int r = 0; r < R; ++r) sum[s][r] = fma(xr[r], yc[s], sum[s][r]);
                }
                OPTLAYER_UNROLL
                for (int s = 0; s < C; ++s)
                    OPTLAYER_UNROLL
                    for (int r = 0; r < R; ++r) {
                        const int i = i0 + row + r * octet, j = j0 + column + 4 * s;
                        if (i < m && j < n && (!lower || i >= j)) c[size_t(j) * ldc + i] = c[size_t(j) * ldc + i] - sum[s][r];
                    }
            }
    }
    static int least(int a, int b) { return a < b ? a : b; }

    // One warp factors a diagonal block in registers: lane i holds row i, padded by the identity.
    OPTLAYER_CALL void factor_block(int nb, V* a, int ld, V* inv, V floor, V& failed) const {
        const int i = lane();
        const V huge = V(sizeof(V) == 8 ? 1e128 : 1e30);
        V row[side], mine = V(1);
        OPTLAYER_UNROLL
        for (int k = 0; k < side; ++k) row[k] = i < nb && k <= i && k < nb ? a[size_t(k) * ld + i] : V(i == k);
        OPTLAYER_UNROLL
        for (int c = 0; c < side; ++c) {
            V pivot = machine::shuffle(row[c], c);
            if (!(pivot > floor) && c < nb) failed = V(1), pivot = huge;
            const V d = machine::rsqrt(pivot);
            row[c] = i == c ? pivot * d : row[c] * d;
            mine = i == c ? d : mine;
            OPTLAYER_UNROLL
            for (int k = c + 1; k < side; ++k) row[k] = fnma(row[c], machine::shuffle(row[c], k), row[k]);
        }
        OPTLAYER_UNROLL
        for (int k = 0; k < side; ++k)
            if (i < nb && k <= i) a[size_t(k) * ld + i] = row[k];
        if (i < nb) inv[i] = mine;
        machine::sync_warp();
        V w[side];  // column i of L⁻¹
        OPTLAYER_UNROLL
        for (int k = 0; k < side; ++k) w[k] = V(i == k);
        OPTLAYER_UNROLL
        for (int c = 0; c < side; ++c) {
            if (c >= nb) break;
            w[c] = w[c] * inv[c];
            OPTLAYER_UNROLL
            for (int k = c + 1; k < side; ++k)
                if (k < nb) w[k] = fnma(a[size_t(c) * ld + k], w[c], w[k]);
        }
        OPTLAYER_UNROLL
        for (int k = 0; k < side; ++k)
            if (k > i && k < nb) a[size_t(k) * ld + i] = w[k];
    }

    // X := X L⁻' for one diagonal block: a row is a thread's.
    OPTLAYER_CALL void solve_rows(int m, int nb, V* x, int ldx, const V* block, int ld, const V* inv) const {
        OPTLAYER_ROLLED
        for (int i = rank; i < m; i += threads) {
            V row[side];
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) row[c] = c < nb ? x[size_t(c) * ldx + i] : V(0);
            OPTLAYER_UNROLL
            for (int j = side - 1; j >= 0; --j) {
                if (j >= nb) continue;
                V y = row[j] * inv[j];
                OPTLAYER_UNROLL
                for (int c = 0; c < j; ++c) y = fma(row[c], block[size_t(j) * ld + c], y);
                x[size_t(j) * ldx + i] = y;
            }
        }
    }

    // y += sign A x, or with the lower triangle of A alone. A row is a thread's; spare threads share out the columns.
    template <bool lower>
    OPTLAYER_CALL void rows(int m, int n, const V* a, int lda, const V* x, V* y, int sign) const {
        const int padded = (m + warp - 1) / warp * warp;
        const int parts = least(threads / padded, n);  // more than one only if all rows have a thread
        if (parts < 2) {
            OPTLAYER_ROLLED
            for (int i = rank; i < m; i += threads) {
                V sum = V(0);
                const int end = lower ? i + 1 : n;
                for (int c = 0; c < end; ++c) sum = fma(a[size_t(c) * lda + i], x[c], sum);
                y[i] = sign > 0 ? y[i] + sum : y[i] - sum;
            }
            return;
        }
        V* partial = shared + 2 * warps;
        const int part = rank / padded, i = rank - part * padded;
        if (part < parts && i < m) {
            V sum = V(0);
            const int end = lower ? i + 1 : n;
            for (int c = part; c < end; c += parts) sum = fma(a[size_t(c) * lda + i], x[c], sum);
            partial[rank] = sum;
        }
        sync();
        if (rank < m) {
            V sum = partial[rank];
            for (int k = 1; k < parts; ++k) sum = sum + partial[rank + k * padded];
            y[rank] = sign > 0 ? y[rank] + sum : y[rank] - sum;
        }
    }

    // y += sign A' x, or with the strict lower triangle alone. A column is an octet's.
    template <bool lower>
    OPTLAYER_CALL void columns(int m, int n, const V* a, int lda, const V* x, V* y, int sign) const {
        const int mine = rank / octet, first = rank % octet;
        for (int start = 0; start < n; start += octets) {  // all threads go round as often: they shuffle
            const int j = start + mine;
            V sum = V(0);
            if (j < n) {
                const V* column = a + size_t(j) * lda;
                for (int i = (lower ? j + 1 : 0) + first; i < m; i += octet) sum = fma(column[i], x[i], sum);
            }
            for (int o = octet / 2; o > 0; o /= 2) sum = sum + machine::shuffle_xor(sum, o);
            if (j < n && first == 0) y[j] = sign > 0 ? y[j] + sum : y[j] - sum;
        }
    }
};

}  // namespace optlayer

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
    using Wide = V;
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
    using Wide = V;
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
    // A column is a warp's; short columns are dealt out entry by entry.
    template <class F> void each_pair(int rows, int columns, F&& f) const {
        if (rows <= 0 || columns <= 0) return;
        if (2 * rows >= warp) {
            for (int j = rank / warp; j < columns; j += warps) {
                OPTLAYER_ROLLED
                for (int i = lane(); i < rows; i += warp) f(i, j);
            }
        } else {
            OPTLAYER_ROLLED
            for (int e = rank; e < rows * columns; e += threads) {
                const int j = e / rows;
                f(e - j * rows, j);
            }
        }
        sync();
    }
    template <class F> void each_lower(int n, F&& f) const {
        if (2 * n < warp) return each_pair(n, n, [&](int i, int j) { if (i >= j) f(i, j); });
        for (int j = rank / warp; j < n; j += warps) {
            OPTLAYER_ROLLED
            for (int i = j + lane(); i < n; i += warp) f(i, j);
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
        OPTLAYER_UNROLL
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
        product<true, 0>(n, n, k, c, ldc, a, lda, b, ldb);
        sync();
    }
    void update(int m, int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        product<false, 0>(m, n, k, c, ldc, a, lda, b, ldb);
        sync();
    }

    // ---- triangular ------------------------------------------------------------------------------------------------
    // A = L L' in place; whether a pivot was not above the floor (it is replaced by a huge one).
    OPTLAYER_CALL bool cholesky(int n, V* a, int lda, V* inv, V floor) const {
        V failed = V(0);
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side, rest = n - j - nb;
            V* block = a + size_t(j) * lda + j;
            Factor l;
            const bool writer = rank >= threads - warp;
            if (rank < rest || writer) {  // no warp waits for another's factor: each has its own, in registers
                l.load(nb, block, lda);
                l.factor(nb, floor, failed);
                solve_rows(rest, nb, block + nb, lda, l);
            }
            sync();
            if (writer) l.store(lane(), nb, block, lda, inv + j);
            if (rest > 0) product<true, side>(rest, rest, side, block + size_t(side) * lda + side, lda, block + side, lda, block + side, lda);
            sync();
        }
        largest(failed);
        return failed > V(0);
    }

    // X := X L⁻', X of m x n.
    OPTLAYER_CALL void trsm_right(int m, int n, V* x, int ldx, const V* l, int ldl, const V* inv) const {
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side, rest = n - j - nb;
            const V* block = l + size_t(j) * ldl + j;
            Factor own;
            if (rank < m) {
                own.load(nb, block, ldl);
                own.take_pivots(nb, inv + j);
                solve_rows(m, nb, x + size_t(j) * ldx, ldx, own);
            }
            sync();
            if (rest > 0) product<false, side>(m, rest, side, x + size_t(j + side) * ldx, ldx, x + size_t(j) * ldx, ldx, block + side, ldl);
            sync();
        }
    }

    // x := L⁻¹ x. A row is a thread's, and no other one reads it but in its block's solution: one barrier to a block.
    OPTLAYER_CALL void solve_lower(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = 0; j < n; j += side) {
            const int nb = n - j < side ? n - j : side;
            const V* block = l + size_t(j) * ld + j;
            solve_block(j, nb, inv, x, [&](int i, int c) { return select(c < i, block[size_t(i) * ld + c], V(0)); });
            if (j + nb >= n) break;
            const int from = rank + (j + nb > rank ? (j + nb - rank + threads - 1) / threads * threads : 0);
            subtract_block(j, from, n, inv, x, [&](int i, int c) { return l[size_t(j + c) * ld + i]; });
        }
        sync();
    }

    // x := L⁻' x. The last block may be narrow: its rows are subtracted one by one.
    OPTLAYER_CALL void solve_lower_t(int n, const V* l, int ld, const V* inv, V* x) const {
        for (int j = (n - 1) / side * side; j >= 0; j -= side) {
            const int nb = n - j < side ? n - j : side;
            const V* block = l + size_t(j) * ld + j;
            solve_block(j, nb, inv, x, [&](int i, int c) { return select(c > i, block[size_t(c) * ld + i], V(0)); });
            if (!j) break;
            const auto row = [&](int i, int c) { return l[size_t(i) * ld + j + least(c, nb - 1)]; };
            if (nb == side) {
                subtract_block(j, rank, j, inv, x, row);
                continue;
            }
            sync();
            for (int i = rank; i < j; i += threads) {
                V y = x[i];
                for (int c = 0; c < nb; ++c) y = fnma(row(i, c), x[j + c], y);
                x[i] = y;
            }
        }
        sync();
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
    // A diagonal block in the registers of one thread: all indices are constants.
    struct Factor {
        V l[side][side], pivot[side];  // L, and 1/L(c, c)

        // Padded by the identity. What lies beyond is read all the same, from inside: a load under a condition waits.
        void load(int nb, const V* a, int ld) {
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c)
                OPTLAYER_UNROLL
                for (int i = c; i < side; ++i) {
                    const V entry = a[size_t(least(c, nb - 1)) * ld + least(i, nb - 1)];
                    l[i][c] = i < nb ? entry : V(i == c);
                }
        }
        void take_pivots(int nb, const V* inv) {
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) {
                const V entry = inv[least(c, nb - 1)];
                pivot[c] = c < nb ? entry : V(1);
            }
        }
        void factor(int nb, V floor, V& failed) {
            const V huge = V(sizeof(V) == 8 ? 1e128 : 1e30);
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) {
                V d = l[c][c];
                if (!(d > floor) && c < nb) failed = V(1), d = huge;
                pivot[c] = machine::rsqrt(d);
                l[c][c] = d * pivot[c];
                OPTLAYER_UNROLL
                for (int i = c + 1; i < side; ++i) l[i][c] = l[i][c] * pivot[c];
                OPTLAYER_UNROLL
                for (int k = c + 1; k < side; ++k)
                    OPTLAYER_UNROLL
                    for (int i = k; i < side; ++i) l[i][k] = fnma(l[i][c], l[k][c], l[i][k]);
            }
        }
        // Lane i writes row i of L, column i of L⁻¹ and its pivot.
        void store(int i, int nb, V* a, int ld, V* inv) const {
            V w[side];
            OPTLAYER_UNROLL
            for (int k = 0; k < side; ++k) w[k] = V(k == i);
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) {
                w[c] = w[c] * pivot[c];
                OPTLAYER_UNROLL
                for (int k = c + 1; k < side; ++k) w[k] = fnma(l[k][c], w[c], w[k]);
            }
            if (i >= nb) return;
            OPTLAYER_UNROLL
            for (int k = 0; k < side; ++k) {
                if (k > i && k < nb) a[size_t(k) * ld + i] = w[k];
                if (k == i) inv[i] = pivot[k];
                OPTLAYER_UNROLL
                for (int c = 0; c <= k; ++c)
                    if (k == i) a[size_t(c) * ld + k] = l[k][c];
            }
        }
    };

    // X := X L⁻' for one diagonal block: a row is a thread's.
    static_assert(side <= warp, "a block's rows are in one warp");
    void solve_rows(int m, int nb, V* x, int ldx, const Factor& f) const {
        OPTLAYER_ROLLED
        for (int i = rank; i < m; i += threads) {
            V row[side];
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) row[c] = x[size_t(least(c, nb - 1)) * ldx + i];
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) {
                row[c] = row[c] * f.pivot[c];
                OPTLAYER_UNROLL
                for (int k = c + 1; k < side; ++k) row[k] = fnma(f.l[k][c], row[c], row[k]);
            }
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c)
                if (c < nb) x[size_t(c) * ldx + i] = row[c];
        }
    }

    // The warp that owns rows j … j+nb multiplies them by the inverse of their diagonal block, whose entry beside the
    // diagonal is w(i, c).
    template <class F> void solve_block(int j, int nb, const V* inv, V* x, const F& w) const {
        const int first = j % threads;
        if (rank / warp != first / warp) return;
        const int i = rank - first;
        const bool mine = i >= 0 && i < nb;
        const int at = mine ? i : 0;
        const V own = *(mine ? x + j + i : inv + j), pivot = inv[j + at];  // (others read what nobody writes)
        V row[side];
        OPTLAYER_UNROLL
        for (int c = 0; c < side; ++c) {
            const V entry = w(at, least(c, nb - 1));
            row[c] = c == at ? pivot : c < nb ? entry : V(0);
        }
        V even = V(0), odd = V(0);
        OPTLAYER_UNROLL
        for (int c = 0; c < side; c += 2) {
            even = fma(row[c], machine::shuffle(own, first % warp + c), even);
            odd = fma(row[c + 1], machine::shuffle(own, first % warp + c + 1), odd);
        }
        if (mine) x[j + i] = even + odd;
    }
    // Then x_i -= Σ_c l(i, c) x_{j+c} for rows `from`, from + threads, … below `to`, of which some may be read beyond; the
    // first entries are under way before the barrier.
    template <class F> void subtract_block(int j, int from, int to, const V* inv, V* x, const F& l) const {
        const int first = from < to ? from : to - 1;
        V row[side], by[side];
        OPTLAYER_UNROLL
        for (int c = 0; c < side; ++c) row[c] = l(first, c);
        V even = *(from < to ? x + from : inv), odd = V(0);
        sync();
        OPTLAYER_UNROLL
        for (int c = 0; c < side; ++c) by[c] = x[j + c];
        OPTLAYER_UNROLL
        for (int c = 0; c < side; c += 2) even = fnma(row[c], by[c], even), odd = fnma(row[c + 1], by[c + 1], odd);
        if (from < to) x[from] = even + odd;
        for (int i = from + threads; i < to; i += threads) {
            V y = x[i];
            OPTLAYER_UNROLL
            for (int c = 0; c < side; ++c) y = fnma(l(i, c), by[c], y);
            x[i] = y;
        }
    }

    // C -= a b', in the lower triangle or everywhere. A warp takes a tile of 4 octets by 16, a thread every octet-th row
    // and every fourth column of it: neighbours read neighbours, so that loads neither scatter nor meet in one bank.
    // K: the number of columns where it is known, so that all loads are under way at a time; else 0.
    template <bool lower, int K>
    OPTLAYER_CALL void product(int m, int n, int k, V* c, int ldc, const V* a, int lda, const V* b, int ldb) const {
        constexpr int R = 4, C = 4, across = warp / octet, height = R * octet, width = C * across;
        const int row = lane() % octet, column = lane() / octet, down = (m + height - 1) / height;
        int mine = rank / warp;  // tiles until the next one of this warp
        for (int j0 = 0; j0 < n; j0 += width)
            for (int t = lower ? j0 / height : 0; t < down; ++t) {
                if (mine-- > 0) continue;
                mine = warps - 1;
                const int i0 = t * height;
                V sum[C][R];
                const V *x[R], *y[C];  // beyond the edge the last one of a and b is read, and nothing is written
                OPTLAYER_UNROLL
                for (int r = 0; r < R; ++r) x[r] = a + least(i0 + row + r * octet, m - 1);
                OPTLAYER_UNROLL
                for (int s = 0; s < C; ++s) y[s] = b + least(j0 + column + across * s, n - 1);
                const auto entry = [&](int s, int r) -> V* {  // nullptr: beyond the edge
                    const int i = i0 + row + r * octet, j = j0 + column + across * s;
                    return i < m && j < n && (!lower || i >= j) ? c + size_t(j) * ldc + i : nullptr;
                };
                OPTLAYER_UNROLL
                for (int s = 0; s < C; ++s)
                    OPTLAYER_UNROLL
                    for (int r = 0; r < R; ++r) {
                        const V* from = entry(s, r);
                        sum[s][r] = *(from ? from : x[r]);
                    }
                const auto step = [&](int l) {
                    V xr[R], yc[C];
                    OPTLAYER_UNROLL
                    for (int r = 0; r < R; ++r) xr[r] = x[r][size_t(l) * lda];
                    OPTLAYER_UNROLL
                    for (int s = 0; s < C; ++s) yc[s] = y[s][size_t(l) * ldb];
                    OPTLAYER_UNROLL
                    for (int s = 0; s < C; ++s)
                        OPTLAYER_UNROLL
                        for (int r = 0; r < R; ++r) sum[s][r] = fnma(xr[r], yc[s], sum[s][r]);
                };
                if constexpr (K > 0) {
                    OPTLAYER_UNROLL
                    for (int l = 0; l < K; ++l) step(l);
                } else {
                    int l = 0;
                    for (; l + 4 <= k; l += 4) step(l), step(l + 1), step(l + 2), step(l + 3);
                    for (; l < k; ++l) step(l);
                }
                OPTLAYER_UNROLL
                for (int s = 0; s < C; ++s)
                    OPTLAYER_UNROLL
                    for (int r = 0; r < R; ++r)
                        if (V* to = entry(s, r)) *to = sum[s][r];
            }
    }
    static int least(int a, int b) { return a < b ? a : b; }

    // Σ a[c step] x[c stride] over c < count: eight loads are under way at a time.
    static V along(int count, const V* a, size_t step, const V* x, int stride) {
        constexpr int ahead = 8;
        V sum = V(0);
        int c = 0;
        for (; c + ahead <= count; c += ahead) {
            V entry[ahead];
            OPTLAYER_UNROLL
            for (int k = 0; k < ahead; ++k) entry[k] = a[size_t(c + k) * step];
            OPTLAYER_UNROLL
            for (int k = 0; k < ahead; ++k) sum = fma(entry[k], x[(c + k) * stride], sum);
        }
        for (; c < count; ++c) sum = fma(a[size_t(c) * step], x[c * stride], sum);
        return sum;
    }

    // y += sign A x, or with the lower triangle of A alone. A row is a thread's; spare threads share out the columns.
    template <bool lower>
    OPTLAYER_CALL void rows(int m, int n, const V* a, int lda, const V* x, V* y, int sign) const {
        const int padded = (m + warp - 1) / warp * warp;
        const int parts = least(threads / padded, n);  // more than one only if all rows have a thread
        if (parts < 2) {
            OPTLAYER_ROLLED
            for (int i = rank; i < m; i += threads) {
                const V sum = along(lower ? i + 1 : n, a + i, size_t(lda), x, 1);
                y[i] = sign > 0 ? y[i] + sum : y[i] - sum;
            }
            return;
        }
        V* partial = shared + 2 * warps;
        const int part = rank / padded, i = rank - part * padded;
        if (part < parts && i < m) {
            const int end = lower ? i + 1 : n, count = (end - part + parts - 1) / parts;
            partial[rank] = along(count, a + i + size_t(part) * lda, size_t(lda) * parts, x + part, parts);
        }
        sync();
        if (rank < m) {
            V sum = partial[rank];
            for (int k = 1; k < parts; ++k) sum = sum + partial[rank + k * padded];
            y[rank] = sign > 0 ? y[rank] + sum : y[rank] - sum;
        }
    }

    // y += sign A' x, or with the strict lower triangle alone. A column is an octet's, which has four at a time.
    template <bool lower>
    OPTLAYER_CALL void columns(int m, int n, const V* a, int lda, const V* x, V* y, int sign) const {
        constexpr int many = 4;
        const int mine = rank / octet, first = rank % octet;
        for (int start = 0; start < n; start += many * octets) {  // all threads go round as often: they shuffle
            V sum[many] = {};
            const V* column[many];
            OPTLAYER_UNROLL
            for (int k = 0; k < many; ++k) column[k] = a + size_t(least(start + mine + k * octets, n - 1)) * lda;
            const int top = lower ? (start + mine + 1) / octet * octet : 0;  // (of the first of them)
            for (int i = top + first; i < m; i += octet) {
                const V by = x[i];
                OPTLAYER_UNROLL
                for (int k = 0; k < many; ++k)
                    if (!lower || i > start + mine + k * octets) sum[k] = fma(column[k][i], by, sum[k]);
            }
            OPTLAYER_UNROLL
            for (int o = octet / 2; o > 0; o /= 2)
                OPTLAYER_UNROLL
                for (int k = 0; k < many; ++k) sum[k] = sum[k] + machine::shuffle_xor(sum[k], o);
            OPTLAYER_UNROLL
            for (int k = 0; k < many; ++k) {
                const int j = start + mine + k * octets;
                if (j < n && first == 0) y[j] = sign > 0 ? y[j] + sum[k] : y[j] - sum[k];
            }
        }
    }
};

}  // namespace optlayer

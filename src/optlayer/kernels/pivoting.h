// A dual active-set method (Goldfarb & Idnani 1983) for strictly convex problems, in the space of the rows.
//
// Without active rows the minimiser gives the rows C z the values v; net multipliers y change them to v - M y with
// M = C P C' (active.h). Wanted is y with
//     lo <= v - M y <= up,    y_i >= 0 where v_i = up_i,  y_i <= 0 where v_i = lo_i,  y_i = 0 elsewhere.
// So a row with two sides, a bound of both kinds, costs what a row with one side costs.
//
// `solve` admits one violated row after another and drops rows whose multiplier would change its sign; with the
// Cholesky factor L of M over the active rows, and Y = M(:, active) L⁻', a step costs rows·k. `guess` exchanges all
// wrong rows at once (block pivoting, Júdice & Pires 1994): few factorisations when it converges, else it gives up.
// Where most rows are active and N = M⁻¹ is at hand, it factors N over the others instead: with r = v - limit,
//     y = N (r - x),  x = 0 on active rows,  y = 0 on the others:   N_oo x_o = (N r)_o,   and v_o = limit + x_o.
// Where the rows are the variables themselves, M is the inverse of Q within A z = const, and what is free follows from Q:
//     y = Q d - A'mu,  d = v0 - v,  y_o = 0,  A d = 0.
#pragma once
#include "dense.h"

namespace optlayer {

// Where the columns of M come from: all of M is there, or C L⁻' = X and E with M = X X' - E E'.
template <class T>
struct Columns {
    int rows = 0, n = 0, m = 0;
    const T *M = nullptr, *X = nullptr, *E = nullptr, *diagonal = nullptr;  // column-major, leading dimension `rows`
    const T* N = nullptr;       // M⁻¹
    const T *Q = nullptr, *A = nullptr;  // where the rows are the variables: Q (dense), A (n×m)
    const T* spread = nullptr;  // diagonal part of X of the rows from `first_spread`: X(first + j, j) = spread(j)
    int first_spread = 0;
    T* left = nullptr;          // scratch of n + m

    void take(int r, T* out) const {
        if (M) {
            for (int i = 0; i < rows; ++i) out[i] = M[size_t(r) * rows + i];
            return;
        }
        const int dense = spread ? first_spread : rows;  // rows of X that are stored
        for (int i = 0; i < rows; ++i) out[i] = T(0);
        if (spread && r >= dense) {
            const int j = r - dense;
            for (int i = 0; i < dense; ++i) out[i] = X[size_t(j) * dense + i] * spread[j];
            out[r] = spread[j] * spread[j];
        } else {
            for (int j = 0; j < n; ++j) left[j] = X[size_t(j) * dense + r];
            gemv(dense, n, X, dense, left, out);
            if (spread)
                for (int j = 0; j < n; ++j) out[dense + j] = spread[j] * left[j];
        }
        if (m) {
            for (int j = 0; j < m; ++j) left[j] = E[size_t(j) * rows + r];
            gemv(rows, m, E, rows, left, out, -1);
        }
    }
};

template <class T>
struct Pivoting {
    int rows = 0, most = 0;  // rows of C; largest possible number of active ones
    T *v, *lo, *up;          // values of the rows, and their limits
    T *y, *scale;            // net multipliers; 1 / sqrt(M_ii)
    T *L, *iL;               // most×most, factor of M over the active rows in the order of `index`
    T *Y;                    // rows×most, see above
    T *l, *u, *g;            // scratch: a new row of L, the change of y, the new row's column
    T *v0, *r, *Nr;
    int *index, *sign, *state;  // active rows, then, if `inverted`, the others
    int k = 0, pivots = 0;
    int refuted = -1;           // after `solve`: a row that the active ones contradict; its own multiplier is 1 or -1, ...
    T refuted_sign = 0;         // ... theirs are -refuted_sign u: the rows' combination is zero, their limits' negative
    bool inverted = false;      // L is the factor of N over the rows that are not active
    T slack = 0;             // violations up to here count as none

    template <class Arena> void place(Arena& a, int rows_, int most_) {
        rows = rows_, most = most_;
        for (T** x : {&v, &lo, &up, &y, &scale, &g, &v0, &r, &Nr, &u}) *x = a.template take<T>(rows);
        for (T** x : {&iL, &l}) *x = a.template take<T>(most);
        L = a.template take<T>(size_t(most) * most), Y = a.template take<T>(size_t(rows) * most);
        index = a.template take<int>(rows), sign = a.template take<int>(most), state = a.template take<int>(rows);
    }

    // Before either method: v, lo, up are given.
    void start(const Columns<T>& M) {
        T size = 0;
        for (int i = 0; i < rows; ++i) {
            const T d = M.M ? M.M[size_t(i) * rows + i] : M.diagonal[i];
            scale[i] = d > T(0) ? T(1) / sqrt(d) : T(0);
            y[i] = T(0), v0[i] = v[i];
            T limit = T(0);
            if (up[i] < infinite()) limit = abs(up[i]);
            if (lo[i] > -infinite()) limit = max(limit, abs(lo[i]));
            size = max(size, scale[i] * (abs(v[i]) + limit));
        }
        slack = Tuning<T>::slack * size, k = 0, pivots = 0, refuted = -1, inverted = false;
    }

    // The row that is violated most, in units of 1 / scale; -1: none.
    int most_violated() const {
        using P = Pack<T, native_width<T>>;
        constexpr int W = native_width<T>;
        T worst = slack;
        int at = -1;
        int i = 0;
        if (rows >= 2 * W) {
            P top(slack);
            for (; i + W <= rows; i += W) {
                const P x = P::load(v + i);
                top = max(max(x - P::load(up + i), P::load(lo + i) - x) * P::load(scale + i), top);
            }
            for (int w = 0; w < W; ++w) worst = max(top[w], worst);
        }
        for (; i < rows; ++i) worst = max(violation(i), worst);
        if (!(worst > slack)) return -1;
        for (i = 0; i < rows; ++i)
            if (violation(i) >= worst) { at = i; break; }
        return at;
    }
    T violation(int i) const { return max(v[i] - up[i], lo[i] - v[i]) * scale[i]; }

    // True: optimal. False: no solution, or too close to say.
    bool solve(const Columns<T>& M, int limit) {
        for (;;) {
            const int r = most_violated();
            if (r < 0) break;
            const T sg = v[r] > up[r] ? T(1) : T(-1), goal = sg > T(0) ? up[r] : lo[r];
            if (!(sg * goal > -infinite()) || !(lo[r] <= up[r])) return false;
            M.take(r, g);
            const T all = g[r];
            for (int i = 0; i < k; ++i) l[i] = Y[size_t(i) * rows + r];
            if (k) gemv(rows, k, Y, rows, l, g, -1);
            for (int i = 0; i < k; ++i) g[index[i]] = T(0);
            T own = T(0);
            for (;;) {  // until row r is active
                if (++pivots > limit) return false;
                const T pivot = g[r];
                const bool dependent = k == most || !(pivot > Tuning<T>::dependent * all);
                for (int i = 0; i < k; ++i) u[i] = l[i];
                solve_lower_t(k, L, most, iL, u);
                if (dependent)  // r is a combination of other rows: what is rounding is no part of it
                    for (int i = 0; i < k; ++i)
                        if (abs(u[i]) * scale[r] <= Tuning<T>::dependent * scale[index[i]]) u[i] = T(0);
                T step = dependent ? infinite() : sg * (v[r] - goal) / pivot;
                int blocking = -1;
                for (int i = 0; i < k; ++i) {
                    const T loss = sg * u[i] * T(sign[i]), has = T(sign[i]) * y[index[i]];
                    if (loss > T(0) && has < step * loss) step = max(has, T(0)) / loss, blocking = i;
                }
                if (!(step < infinite())) {
                    refuted = r, refuted_sign = sg, y[r] = own;
                    return false;
                }
                const T move = step * sg;
                for (int i = 0; i < k; ++i) y[index[i]] = fnma(move, u[i], y[index[i]]);
                own += move;
                if (!dependent)
                    for (int i = 0; i < rows; ++i) v[i] = fnma(move, g[i], v[i]);
                if (blocking < 0) {
                    append(r, sg, pivot);
                    y[r] = own, v[r] = goal;
                    break;
                }
                const int left = index[blocking];
                y[left] = T(0);
                drop(blocking);
                const T* gone = Y + size_t(k) * rows;
                const T share = gone[r];
                for (int i = 0; i < rows; ++i) g[i] = fma(gone[i], share, g[i]);
                for (int i = 0; i < k; ++i) l[i] = Y[size_t(i) * rows + r], g[index[i]] = T(0);
            }
        }
        multipliers();
        return true;
    }

    // True: optimal. False: not found in a few steps.
    bool guess(const Columns<T>& M) {
        for (int i = 0; i < rows; ++i) state[i] = 0;
        int best = rows + 1, patience = 3;
        bool ready = false, cheap = false;  // N r; the last step was exchange_free
        for (;;) {
            const int wrong = revise();
            if (!wrong) return !cheap || exchange(M);  // (for its factor)
            if (wrong < best) best = wrong, patience = cheap ? 10 : 3;
            else if (patience-- == 0) return false;
            ++pivots;
            if (!choose()) return false;
            inverted = M.N && most == rows && 2 * k > rows && (ready || limits(M));
            if (inverted) ready = true;
            cheap = !inverted && M.Q && rows >= 100 && 3 * k > 2 * rows;
            if (!(inverted ? exchange_inverted(M) : cheap ? exchange_free(M) : exchange(M))) return false;
        }
    }

  private:
    static constexpr T infinite() { return Tuning<T>::infinity; }
    T goal_of(int i) const { return state[i] > 0 ? up[i] : lo[i]; }

    // What each row should be by its value or multiplier; the number of rows that were something else. (No branch: it
    // could not be foreseen.)
    int revise() {
        int wrong = 0;
        for (int i = 0; i < rows; ++i) {
            const int was = state[i];
            const int kept = T(was) * y[i] >= T(0) ? was : 0, added = violation(i) > slack ? (v[i] > up[i] ? 1 : -1) : 0;
            const int next = was ? kept : added;
            wrong += next != was, state[i] = next;
        }
        return wrong;
    }
    // The active rows in a list, y zero; of too many the least violated are left out. False: one has no value.
    bool choose() {
        int count = list_active();
        if (count > most) leave_out(count - most), count = list_active();
        for (int i = 0; i < rows; ++i) y[i] = T(0);
        bool fine = true;
        for (int j = 0; j < count; ++j) {
            const int i = index[j];
            sign[j] = state[i];
            fine &= (abs(goal_of(i)) < infinite()) & (lo[i] <= up[i]);
        }
        k = count;
        return fine;
    }

    int list_active() {
        int count = 0;
        for (int i = 0; i < rows; ++i) index[count] = i, count += state[i] != 0;
        return count;
    }
    void leave_out(int count) {
        while (count-- > 0) {
            int least = -1;
            for (int i = 0; i < rows; ++i)
                if (state[i] && (least < 0 || violation(i) < violation(least))) least = i;
            state[least] = 0;
        }
    }

    // v and y for the active rows
    bool exchange(const Columns<T>& M) {
        if (!factor(M.M, index, k)) return false;
        multipliers();
        for (int i = 0; i < rows; ++i) v[i] = v0[i];
        gemv(rows, k, M.M, rows, index, u, v, -1);
        return true;
    }
    // The rows that are not active, behind those that are.
    int list_others() {
        int count = 0;
        for (int i = 0; i < rows; ++i)
            if (!state[i]) index[k + count++] = i;
        return count;
    }
    // The same v and y where the rows are the variables and most are active: a factor of Q over the others.
    bool exchange_free(const Columns<T>& M) {
        const int count = list_others(), m = M.m;
        const int* others = index + k;
        if (!factor(M.Q, others, count)) return false;
        T *B = Y, *S = B + size_t(m) * count, *iS = S + size_t(m) * m, *mu = iS + m;  // B = A_o L⁻'
        for (int i = 0; i < rows; ++i) y[i] = v[i] = T(0);
        for (int i = 0; i < k; ++i) r[i] = v0[index[i]] - goal_of(index[i]), v[index[i]] = r[i];
        gemv(rows, k, M.Q, rows, index, r, y);
        for (int i = 0; i < count; ++i) u[i] = -y[others[i]];
        solve_lower(count, L, most, iL, u);
        if (m) {
            for (int j = 0; j < count; ++j)
                for (int c = 0; c < m; ++c) B[size_t(j) * m + c] = M.A[size_t(c) * rows + others[j]];
            trsm_right(m, count, B, m, L, most, iL);
            for (int c = 0; c < m; ++c) mu[c] = T(0);
            gemv_t(rows, m, M.A, rows, v, mu);
            gemv(m, count, B, m, u, mu);
            for (int i = 0; i < m * m; ++i) S[i] = T(0);
            update_lower(m, count, S, m, B, m, B, m);
            T top = T(0);
            for (int j = 0; j < m; ++j)
                for (int i = j; i < m; ++i) S[size_t(j) * m + i] = -S[size_t(j) * m + i], top = max(top, S[size_t(j) * m + i]);
            if (any(cholesky(m, S, m, iS, Tuning<T>::block_pivot * top))) return false;
            for (int c = 0; c < m; ++c) mu[c] = -mu[c];
            solve_lower(m, S, m, iS, mu);
            solve_lower_t(m, S, m, iS, mu);
            gemv_t(m, count, B, m, mu, u);
            gemv(rows, m, M.A, rows, mu, y, -1);
        }
        solve_lower_t(count, L, most, iL, u);
        gemv(rows, count, M.Q, rows, others, u, y);
        for (int i = 0; i < k; ++i) v[index[i]] = goal_of(index[i]);
        for (int i = 0; i < count; ++i) y[others[i]] = T(0), v[others[i]] = v0[others[i]] - u[i];
        return true;
    }
    bool exchange_inverted(const Columns<T>& M) {
        const int count = list_others();
        const int* others = index + k;
        if (!factor(M.N, others, count)) return false;
        for (int i = 0; i < count; ++i) u[i] = Nr[others[i]];
        solve_lower(count, L, most, iL, u);
        solve_lower_t(count, L, most, iL, u);
        for (int i = 0; i < rows; ++i) y[i] = Nr[i], v[i] = v0[i] - r[i];
        gemv(rows, count, M.N, rows, others, u, y, -1);
        for (int i = 0; i < count; ++i) y[others[i]] = T(0), v[others[i]] = v[others[i]] + u[i];
        return true;
    }
    // r and N r, if no row has two limits
    bool limits(const Columns<T>& M) {
        for (int i = 0; i < rows; ++i) {
            const bool above = up[i] < infinite(), below = lo[i] > -infinite();
            if (above && below) return false;
            r[i] = above ? v0[i] - up[i] : below ? v0[i] - lo[i] : T(0);
            Nr[i] = T(0);
        }
        gemv(rows, rows, M.N, rows, r, Nr);
        return true;
    }
    // The factor of a matrix over some rows and columns.
    bool factor(const T* matrix, const int* which, int count) {
        T top = T(0);
        int j = 0;
        for (; j + 4 <= count; j += 4) {  // four columns share the look at `which`
            const T *a = matrix + size_t(which[j]) * rows, *b = matrix + size_t(which[j + 1]) * rows;
            const T *c = matrix + size_t(which[j + 2]) * rows, *d = matrix + size_t(which[j + 3]) * rows;
            T *to = L + size_t(j) * most, *to_b = to + most, *to_c = to_b + most, *to_d = to_c + most;
            for (int i = j; i < count; ++i) {
                const int at = which[i];
                to[i] = a[at], to_b[i] = b[at], to_c[i] = c[at], to_d[i] = d[at];
            }
        }
        for (; j < count; ++j)
            for (int i = j; i < count; ++i) L[size_t(j) * most + i] = matrix[size_t(which[j]) * rows + which[i]];
        for (j = 0; j < count; ++j) top = max(top, L[size_t(j) * most + j]);
        return !cholesky(count, L, most, iL, Tuning<T>::block_pivot * top);
    }
    // y over the active rows from the factor alone: what the steps have added up is forgotten
    void multipliers() {
        for (int i = 0; i < k; ++i) u[i] = v0[index[i]] - (sign[i] > 0 ? up[index[i]] : lo[index[i]]);
        solve_lower(k, L, most, iL, u);
        solve_lower_t(k, L, most, iL, u);
        for (int i = 0; i < k; ++i) y[index[i]] = u[i];
    }

    void append(int r, T sg, T pivot) {
        const T root = sqrt(pivot), inverse = T(1) / root;
        for (int i = 0; i < k; ++i) L[size_t(i) * most + k] = l[i];
        L[size_t(k) * most + k] = root, iL[k] = inverse;
        T* column = Y + size_t(k) * rows;
        for (int i = 0; i < rows; ++i) column[i] = g[i] * inverse;
        column[r] = root;
        index[k] = r, sign[k] = sg > T(0) ? 1 : -1, ++k;
    }

    // Takes out row `at` of L; rotations make the rest lower triangular again and leave in column k of Y what is lost.
    void drop(int at) {
        --k;
        for (int c = 0; c <= k; ++c)
            for (int i = max_int(at, c - 1); i < k; ++i) L[size_t(c) * most + i] = L[size_t(c) * most + i + 1];
        for (int i = at; i < k; ++i) index[i] = index[i + 1], sign[i] = sign[i + 1];
        for (int c = at; c < k; ++c) {
            const T a = L[size_t(c) * most + c], b = L[size_t(c + 1) * most + c];
            const T root = sqrt(a * a + b * b), cs = a / root, sn = b / root;
            rotate(L + size_t(c) * most, L + size_t(c + 1) * most, c, k, cs, sn);
            rotate(Y + size_t(c) * rows, Y + size_t(c + 1) * rows, 0, rows, cs, sn);
            L[size_t(c) * most + c] = root, iL[c] = T(1) / root;
        }
    }
    static int max_int(int a, int b) { return a > b ? a : b; }
    static void rotate(T* a, T* b, int from, int to, T cs, T sn) {
        for (int i = from; i < to; ++i) {
            const T x = a[i], w = b[i];
            a[i] = cs * x + sn * w, b[i] = cs * w - sn * x;
        }
    }
};

}  // namespace optlayer

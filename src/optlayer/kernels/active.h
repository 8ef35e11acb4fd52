// The active-set method for strictly convex Q: what depends on Q, G and A (once for the batch when it shares them),
// the pivoting of each member (pivoting.h), and the derivative with the factor that pivoting ends with.
//
// With the rows C = [G; I] (I: bounds), Q = L L' and A Q⁻¹A' = LA LA',
//     C z = v0 - M y,   M = C P C' = X X' - E E',   X = C L⁻',   E = X (A L⁻')' LA⁻'.
// An active row is an equality, M_AA over them is all that a member factors.
#pragma once
#include "verdict.h"
#include "pivoting.h"

namespace optlayer {

template <class U>
struct ActiveFactors {
    U *L, *iL;    // Q = L L'; a diagonal Q: iL alone
    U *LA, *iLA;  // A Q⁻¹ A' = LA LA'
    U *E;         // rows×m
    U *X;         // C L⁻': p×n, and below it, for bounds and a dense Q, the n×n L⁻'
    U *M;         // rows×rows, or absent: columns are formed when needed
    U *diagonal;  // of M, when M is absent
    U *N;         // M⁻¹, where the batch shares M; absent, or out of use, when M is not well away from singular
    U *B, *LM, *iLM, *TM;  // scratch: A L⁻'; of the inversion of M
    int n, m, p, bounds;
    bool diagonal_Q, whole, inverts;

    int rows() const { return p + bounds; }
    int stored() const { return diagonal_Q ? p : rows(); }  // rows of X

    // keep: what the derivative needs; lasting: what pivoting needs; passing: what only `prepare` needs
    void place(Arena& keep, Arena& lasting, Arena& passing, int n_, int m_, int p_, int bounds_, bool diagonal_, bool whole_,
               bool inverts_ = false) {
        n = n_, m = m_, p = p_, bounds = bounds_, diagonal_Q = diagonal_, whole = whole_, inverts = inverts_;
        L = keep.take<U>(diagonal_Q ? 0 : size_t(n) * n), iL = keep.take<U>(n);
        LA = keep.take<U>(size_t(m) * m), iLA = keep.take<U>(m), E = keep.take<U>(size_t(rows()) * m);
        M = lasting.take<U>(whole ? size_t(rows()) * rows() : 0), diagonal = lasting.take<U>(whole ? 0 : rows());
        X = (whole ? passing : lasting).template take<U>(size_t(stored()) * n);
        const size_t inverted = inverts ? size_t(rows()) * rows() : 0;
        N = lasting.take<U>(inverted), B = passing.take<U>(size_t(n) * m);
        LM = passing.take<U>(inverted), iLM = passing.take<U>(inverts ? rows() : 0), TM = passing.take<U>(inverted);
        if (!inverts) N = nullptr;
    }

    // Returns the members whose Q (or A Q⁻¹ A') is not safely positive definite.
    template <class Tm, class D>
    auto prepare(const Tm& t, const D& a) {
        using T = scalar_of<U>;
        const int R = rows(), S = stored();
        // A pivot is safe where it is not small beside the entry it came from: units of variables and rows do not matter.
        // What is far below the largest entry may be rounding of zero. float: what is not well conditioned is left to double.
        const U safe = U(Tuning<T>::safe), zero = U(Tuning<T>::zero);
        const auto pivot = [](U inverse) { return U(1) / (inverse * inverse); };
        t.transpose(n, p, a.G, n, X, S);
        t.transpose(n, m, a.A, n, B, m);
        auto bad = U(0) > U(1);  // no lane
        if (diagonal_Q) {
            const U top = t.max(n, U(0), [&](int j) { return U(a.Q[j]); });
            const U least = t.min(n, top, [&](int j) { return U(a.Q[j]); });
            bad = !(least > zero * top);
            t.each(n, [&](int j) { iL[j] = U(1) / sqrt(U(a.Q[j])); });
            t.each_pair(p, n, [&](int i, int j) { X[size_t(j) * S + i] = X[size_t(j) * S + i] * iL[j]; });
            t.each_pair(m, n, [&](int i, int j) { B[size_t(j) * m + i] = B[size_t(j) * m + i] * iL[j]; });
        } else {
            t.each_lower(n, [&](int i, int j) { L[size_t(j) * n + i] = a.Q[size_t(j) * n + i]; });
            const U top = t.max(n, U(0), [&](int j) { return U(a.Q[size_t(j) * n + j]); });
            bad = t.cholesky(n, L, n, iL, zero * top);
            bad = bad | !(t.min(n, U(1), [&](int j) { return pivot(iL[j]) / a.Q[size_t(j) * n + j]; }) > safe);
            if (all(bad)) return bad;
            if (p) t.trsm_right(p, n, X, S, L, n, iL);
            if (m) t.trsm_right(m, n, B, m, L, n, iL);
            if (bounds) inverse(t, n, L, iL, X + p, S);
        }
        if (m) {
            t.each_pair(m, m, [&](int i, int j) { LA[size_t(j) * m + i] = U(0); });
            t.update_lower(m, n, LA, m, B, m, B, m);
            t.each_lower(m, [&](int i, int j) { LA[size_t(j) * m + i] = -LA[size_t(j) * m + i]; });
            bad = bad | t.cholesky(m, LA, m, iLA, U(0));
            const auto entry = [&](int i) { return t.sum(n, [&](int j) { return B[size_t(j) * m + i] * B[size_t(j) * m + i]; }); };
            bad = bad | !(t.min(m, U(1), [&](int i) { return pivot(iLA[i]) / entry(i); }) > safe);
            t.each_pair(R, m, [&](int i, int j) { E[size_t(j) * R + i] = U(0); });
            if (p) t.update(p, m, n, E, R, X, S, B, m);
            if (!diagonal_Q && bounds)
                upper_columns(n, [&](int j, int width, int height) {
                    t.update(height, m, width, E + p, R, X + size_t(j) * S + p, S, B + size_t(j) * m, m);
                });
            if (diagonal_Q) t.each_pair(bounds, m, [&](int i, int j) { E[size_t(j) * R + p + i] = -(iL[i] * B[size_t(i) * m + j]); });
            t.each_pair(R, m, [&](int i, int j) { E[size_t(j) * R + i] = -E[size_t(j) * R + i]; });
            t.trsm_right(R, m, E, R, LA, m, iLA);
        }
        if (whole) form_M(t);
        if (inverts) invert_M(t);
        if (!whole) form_diagonal(t);
        return bad;
    }

  private:
    static constexpr int block = 32;

    // f(first column, columns, rows that are not zero) over the blocks of columns of an upper triangle
    template <class F> static void upper_columns(int n, F&& f) {
        for (int j = 0; j < n; j += block) {
            const int width = n - j < block ? n - j : block;
            f(j, width, j + width);
        }
    }

    // T := L⁻', upper triangular
    template <class Tm> static void inverse(const Tm& t, int n, const U* L, const U* iL, U* T, int ld) {
        t.each_pair(n, n, [&](int i, int j) { T[size_t(j) * ld + i] = U(i == j ? 1 : 0); });
        upper_columns(n, [&](int j, int width, int height) {
            if (j) t.update(j, width, j, T + size_t(j) * ld, ld, T, ld, L + j, n);
            t.trsm_right(height, width, T + size_t(j) * ld, ld, L + size_t(j) * n + j, n, iL + j);
        });
    }
    // The lower triangle with its sign turned, into both.
    template <class Tm> static void turn(const Tm& t, int n, U* M) {
        constexpr int side = 32;
        t.each_lower(n, [&](int i, int j) { M[size_t(j) * n + i] = -M[size_t(j) * n + i]; });
        for (int j = 0; j < n; j += side) {
            const int end = j + side < n ? j + side : n;
            for (int i = j; i < end; ++i)
                for (int k = j; k < i; ++k) M[size_t(i) * n + k] = M[size_t(k) * n + i];
            if (end < n) t.transpose(n - end, end - j, M + size_t(j) * n + end, n, M + size_t(end) * n + j, n);
        }
    }

    // (with the sign turned, so that only products to be subtracted are needed; set right while both triangles are filled)
    template <class Tm> void form_M(const Tm& t) {
        const int R = rows(), S = stored();
        t.each_lower(R, [&](int i, int j) { M[size_t(j) * R + i] = U(0); });
        U *lower_left = M + p, *corner = M + size_t(p) * R + p;
        if (p) t.update_lower(p, n, M, R, X, S, X, S);
        if (bounds && diagonal_Q) {
            t.each_pair(n, p, [&](int j, int i) { lower_left[size_t(i) * R + j] = -(iL[j] * X[size_t(j) * S + i]); });
            t.each(n, [&](int j) { corner[size_t(j) * R + j] = -(iL[j] * iL[j]); });
        } else if (bounds) {
            const U* T = X + p;
            upper_columns(n, [&](int j, int width, int height) {
                if (p) t.update(height, p, width, lower_left, R, T + size_t(j) * S, S, X + size_t(j) * S, S);
                t.update_lower(height, width, corner, R, T + size_t(j) * S, S, T + size_t(j) * S, S);
            });
        }
        if (m) optlayer::add_lower(R, m, M, R, E, R, static_cast<const detail::One*>(nullptr), E, R);
        turn(t, R, M);
    }

    // N := M⁻¹ by its factor, or none
    template <class Tm> void invert_M(const Tm& t) {
        const int R = rows();
        const U top = t.max(R, U(0), [&](int j) { return M[size_t(j) * R + j]; });
        t.each_lower(R, [&](int i, int j) { LM[size_t(j) * R + i] = M[size_t(j) * R + i], N[size_t(j) * R + i] = U(0); });
        if (any(t.cholesky(R, LM, R, iLM, U(Tuning<scalar_of<U>>::invertible) * top))) {
            N = nullptr;
            return;
        }
        inverse(t, R, LM, iLM, TM, R);
        upper_columns(R, [&](int j, int width, int height) {
            t.update_lower(height, width, N, R, TM + size_t(j) * R, R, TM + size_t(j) * R, R);
        });
        turn(t, R, N);
    }

    template <class Tm> void form_diagonal(const Tm& t) {
        const int R = rows(), S = stored();
        t.each(R, [&](int i) { diagonal[i] = i < S ? U(0) : iL[i - p] * iL[i - p]; });
        for (int j = 0; j < n; ++j)
            t.each(S, [&](int i) { diagonal[i] = fma(X[size_t(j) * S + i], X[size_t(j) * S + i], diagonal[i]); });
        for (int j = 0; j < m; ++j)
            t.each(R, [&](int i) { diagonal[i] = fnma(E[size_t(j) * R + i], E[size_t(j) * R + i], diagonal[i]); });
    }
};

template <class Tm, class V, class U>
struct Active {
    const Tm& t;
    const Data<V, U>& a;
    const ActiveFactors<U>& f;
    using T = scalar_of<V>;
    static constexpr int W = lanes_of<V>;

    V *w, *y, *rows_at;                 // scratch: n, rows, rows
    V *rz, *rnu, *goal, *vz, *vnu;      // scratch: a right-hand side (n, m, rows) and its answer (n, m; y)
    V *ray;                             // rows: multipliers of a contradiction
    V found = V(0), contradiction = V(0);
    T *own, *lane_M;          // M of one lane; column scratch
    Pivoting<T> pivoting;
    int *count[W], *index[W], *sign[W];  // kept: the active rows of each lane, their sides, and the factor over them
                                         // (after the number of active rows: whether the factor is that of N, pivoting.h;
                                         // whether the point was refined in double)
    T *L[W], *iL[W];
    int* side[W];

    Active(const Tm& team, const Data<V, U>& data, const ActiveFactors<U>& factors) : t(team), a(data), f(factors) {}

    int most() const { return smallest_int(a.rows(), a.n - a.m); }
    static int smallest_int(int x, int z) { return x < z ? (x < 0 ? 0 : x) : (z < 0 ? 0 : z); }

    void place(Arena& keep, Arena& work) {
        const int R = a.rows(), K = most();
        for (int l = 0; l < W; ++l) {
            count[l] = keep.take<int>(3), index[l] = keep.take<int>(R), sign[l] = keep.take<int>(K);
            iL[l] = keep.take<T>(K), L[l] = keep.take<T>(size_t(K) * K);
        }
        for (V** x : {&w, &rz, &vz}) *x = work.take<V>(a.n);
        for (V** x : {&rnu, &vnu}) *x = work.take<V>(a.m);
        for (V** x : {&y, &rows_at, &goal, &ray}) *x = work.take<V>(R);
        for (int l = 0; l < W; ++l) side[l] = work.take<int>(R);
        own = work.take<T>(a.n + a.m), lane_M = work.take<T>(W > 1 && is_pack<U> ? size_t(R) * R : 0);
        pivoting.place(work, R, K);
    }

    void solve_Q(V* x) const {
        if (a.diagonal) {
            t.each(a.n, [&](int j) { x[j] = x[j] * V(f.iL[j]) * V(f.iL[j]); });
        } else {
            t.solve_lower(a.n, f.L, a.n, f.iL, x);
            t.solve_lower_t(a.n, f.L, a.n, f.iL, x);
        }
    }

    // Without rows: Q z + A'nu = rz, A z = rnu. Half of it: vnu holds LA⁻¹(A Q⁻¹rz - rnu), z = Q⁻¹ rz.
    void half(const V* rz, const V* rnu, V* z, V* vnu) const {
        t.each(a.n, [&](int j) { z[j] = rz[j]; });
        solve_Q(z);
        t.each(a.m, [&](int i) { vnu[i] = -rnu[i]; });
        if (a.m) {
            t.gemv_t(a.n, a.m, a.A, a.n, z, vnu);
            t.solve_lower(a.m, f.LA, a.m, f.iLA, vnu);
        }
    }
    // The rows C z there.
    void rows_without(const V* z, const V* vnu, V* v) const {
        a.rows_times(t, z, v);
        if (a.m && a.rows()) t.gemv(a.rows(), a.m, f.E, a.rows(), vnu, v, -1);
    }
    // z and nu for the multipliers vy of the rows; vnu as `half` left it.
    void finish(const V* rz, const V* vy, V* vz, V* vnu) const {
        nu_of(vy, vnu);
        t.each(a.n, [&](int j) { vz[j] = rz[j]; });
        a.add_rows_t(t, vy, vz, -1);
        z_of(vnu, vz);
    }
    void nu_of(const V* vy, V* vnu) const {
        if (!a.m) return;
        if (a.rows()) t.gemv_t(a.rows(), a.m, f.E, a.rows(), vy, vnu, -1);
        t.solve_lower_t(a.m, f.LA, a.m, f.iLA, vnu);
    }
    void z_of(const V* vnu, V* vz) const {
        if (a.m) t.gemv(a.n, a.m, a.A, a.n, vnu, vz, -1);
        solve_Q(vz);
    }

    // Q vz + A'vnu + C'vy = rz, A vz = rnu, C vz = goal over the active rows, vy = 0 over the others.
    void kkt(const V* rz, const V* rnu, const V* goal, V* vz, V* vnu, V* vy) {
        const int R = a.rows();
        half(rz, rnu, w, vnu);
        t.each(R, [&](int i) { vy[i] = V(0); });
        if constexpr (!is_pack<V>) {
            if (!count[0][1]) return kkt_chosen(rz, goal, vz, vnu, vy);
            rows_without(w, vnu, rows_at);
            kkt_inverted(goal, vy);
        } else {
            rows_without(w, vnu, rows_at);
            for (int l = 0; l < W; ++l) {
                const int k = *count[l];
                T* x = pivoting.u;
                t.each(k, [&](int i) { x[i] = lane(rows_at[index[l][i]], l) - lane(goal[index[l][i]], l); });
                solve_lower(k, L[l], k, iL[l], x);
                solve_lower_t(k, L[l], k, iL[l], x);
                t.each(k, [&](int i) { set_lane(vy[index[l][i]], l, x[i]); });
            }
        }
        finish(rz, vy, vz, vnu);
    }
    // What follows `half`, looking at the active rows alone.
    void kkt_chosen(const V* rz, const V* goal, V* vz, V* vnu, V* vy) {
        const int k = *count[0], *active = index[0], R = a.rows();
        V *x = pivoting.u, *of_G = pivoting.r;
        int *which = pivoting.state, g = 0;  // those in G
        for (int i = 0; i < k; ++i)
            if (active[i] < a.p) which[g++] = active[i];
        t.each(g, [&](int i) { of_G[i] = V(0); });
        if (g) t.gemv_t(a.n, g, a.G, a.n, which, w, of_G);
        for (int i = 0, c = 0; i < k; ++i) x[i] = active[i] < a.p ? of_G[c++] : w[active[i] - a.p];
        if (a.m) {
            t.each(R, [&](int i) { rows_at[i] = V(0); });
            if (R) t.gemv(R, a.m, f.E, R, vnu, rows_at, -1);
            t.each(k, [&](int i) { x[i] = x[i] + rows_at[active[i]]; });
        }
        t.each(k, [&](int i) { x[i] = x[i] - goal[active[i]]; });
        solve_lower(k, L[0], k, iL[0], x);
        solve_lower_t(k, L[0], k, iL[0], x);
        t.each(k, [&](int i) { vy[active[i]] = x[i]; });
        nu_of(vy, vnu);
        t.each(a.n, [&](int j) { vz[j] = rz[j]; });
        for (int i = 0, c = 0; i < k; ++i) {
            if (active[i] < a.p) of_G[c++] = x[i];
            else vz[active[i] - a.p] = vz[active[i] - a.p] - x[i];
        }
        if (g) t.gemv(a.n, g, a.G, a.n, which, of_G, vz, -1);
        z_of(vnu, vz);
    }

    bool refined() const { return count[0][2] != 0; }
    struct Sums {  // scratch of the next
        double *z, *nu, *c, *left, *left_nu, *Cz;
        void place(Arena& w, int n, int m, int rows) {
            for (double** x : {&z, &left}) *x = w.take<double>(n);
            for (double** x : {&nu, &left_nu}) *x = w.take<double>(m);
            for (double** x : {&c, &Cz}) *x = w.take<double>(rows);
        }
    };
    // The same for V float, refined by residuals in double: once, and again while they are large. g: the matrices.
    // False: the residuals do not get small.
    bool kkt_refined(const Data<double, U>& g, const Sums& sums, const V* r, const V* rn, const V* rg, V* out_z, V* out_nu, V* out_y) {
        const int n = a.n, m = a.m, R = a.rows();
        const Solo<double> wide;
        double *z = sums.z, *nu = sums.nu, *c = sums.c, *left = sums.left, *left_nu = sums.left_nu, *Cz = sums.Cz;
        t.each(n, [&](int j) { z[j] = 0, left[j] = r[j]; });
        t.each(m, [&](int i) { nu[i] = 0, left_nu[i] = rn[i]; });
        t.each(R, [&](int i) { c[i] = 0, Cz[i] = 0; });
        double first = 0, before = 0;  // largest residuals
        for (int round = 0;; ++round) {
            t.each(n, [&](int j) { rz[j] = V(left[j]); });
            t.each(m, [&](int i) { rnu[i] = V(left_nu[i]); });
            t.each(R, [&](int i) { goal[i] = V(double(rg[i]) - Cz[i]); });
            V top = t.max(n, V(0), [&](int j) { return abs(rz[j]); });
            top = t.max(m, top, [&](int i) { return abs(rnu[i]); });
            top = t.max(*count[0], top, [&](int i) { return abs(goal[index[0][i]]); });
            const double now = top;
            if (round == 0) first = now;
            else if (!(now < before / 2) && !(now <= 1e-6 * first)) return false;
            before = now;
            kkt(rz, rnu, goal, vz, vnu, y);
            t.each(n, [&](int j) { z[j] += double(vz[j]), left[j] = 0; });
            t.each(m, [&](int i) { nu[i] += double(vnu[i]), left_nu[i] = 0; });
            t.each(R, [&](int i) { c[i] += double(y[i]); });
            if (round && now <= 1e-4 * first) break;
            g.add_Qz(wide, z, left);
            g.add_rows_t(wide, c, left);
            if (m) wide.gemv(n, m, g.A, n, nu, left), wide.gemv_t(n, m, g.A, n, z, left_nu);
            t.each(n, [&](int j) { left[j] = r[j] - left[j]; });
            t.each(m, [&](int i) { left_nu[i] = rn[i] - left_nu[i]; });
            g.rows_times(wide, z, Cz);
        }
        t.each(n, [&](int j) { out_z[j] = V(z[j]); });
        t.each(m, [&](int i) { out_nu[i] = V(nu[i]); });
        t.each(R, [&](int i) { out_y[i] = V(c[i]); });
        return true;
    }

    // M_AA⁻¹ by N: y = N (r - x), where r is 0 and x is not on the rows that are not active, and y is 0 there;
    // refined once, because N has lost digits that M has.
    void kkt_inverted(const V* goal, V* vy) {
        const int R = a.rows(), k = *count[0], others = R - k;
        const int *active = index[0], *rest = active + k;
        T *x = pivoting.u, *r = pivoting.r, *dy = pivoting.Nr, *My = pivoting.v;
        for (int round = 0; round < 2; ++round) {
            t.each(R, [&](int i) { r[i] = T(0), dy[i] = T(0), My[i] = T(0); });
            if (round) t.gemv(R, R, f.M, R, vy, My);
            t.each(k, [&](int i) { r[active[i]] = rows_at[active[i]] - goal[active[i]] - My[active[i]]; });
            t.gemv(R, R, f.N, R, r, dy);
            t.each(others, [&](int i) { x[i] = dy[rest[i]]; });
            t.solve_lower(others, L[0], others, iL[0], x);
            t.solve_lower_t(others, L[0], others, iL[0], x);
            t.gemv(R, others, f.N, R, rest, x, dy, -1);
            t.each(k, [&](int i) { vy[active[i]] = vy[active[i]] + dy[active[i]]; });
        }
    }

    // ±1 for an active row of a lane at its upper or lower side, else 0; after `mark_sides`
    T side_of(int i, int l) const { return T(side[l][i]); }
    void mark_sides() const {
        for (int l = 0; l < W; ++l) {
            t.each(a.rows(), [&](int i) { side[l][i] = 0; });
            t.each(*count[l], [&](int i) { side[l][index[l][i]] = sign[l][i]; });
        }
    }

    Columns<T> columns(int l) const {
        Columns<T> c;
        c.rows = a.rows(), c.n = a.n, c.m = a.m, c.left = own;
        if constexpr (!is_pack<U>) {
            if (f.whole) {
                c.M = f.M, c.N = f.N;
                if (a.p == 0 && a.bounds && !a.diagonal) c.Q = a.Q, c.A = a.A;
            } else {
                c.X = f.X, c.E = f.E, c.diagonal = f.diagonal;
                if (f.diagonal_Q) c.spread = f.iL;
                c.first_spread = f.p;
            }
        } else {
            const T* raw = reinterpret_cast<const T*>(f.M);
            const int R = a.rows();
            for (int i = 0; i < R * R; ++i) lane_M[i] = raw[size_t(i) * W + l];
            c.M = lane_M;
        }
        return c;
    }

    // Solves the first `lanes` lanes (the others repeat the last one) but the bad ones.
    template <class Bad>
    void run(Verdict<Tm, V, U>& judge, Sides<V>& x, Point<V>& out, Bad bad, int lanes, T tolerance, int most_pivots) {
        if (all(bad)) return refuse(x, out);
        pivot(x, out, bad, lanes, most_pivots);
        refine(judge, x, out, tolerance);
    }

    // Lanes whose rows contradict each other get Farkas' proof, and out.proven is 1 there.
    void certify(Verdict<Tm, V, U>& judge, Point<V>& out, T most) {
        const auto wanted = contradiction > V(0);
        if (!any(wanted)) return;
        t.each(a.n, [&](int j) { rz[j] = V(0); });
        t.each(a.m, [&](int i) { vnu[i] = V(0); });
        finish(rz, ray, vz, vnu);
        out.proven = select(judge.prove(wanted, ray, vnu, T(1e-10), most), V(1), V(0));
    }

    // The active rows of each lane, their factor, and the point there; found: 1 or 0.
    template <class Bad>
    void pivot(Sides<V>& x, Point<V>& out, Bad bad, int lanes, int most_pivots) {
        const int n = a.n, m = a.m, R = a.rows();
        t.each(n, [&](int j) { rz[j] = -a.q[j]; });
        half(rz, a.b, out.z, out.nu);
        rows_without(out.z, out.nu, x.v);
        t.each(R, [&](int i) { out.y[i] = V(0); });
        out.iterations = found = contradiction = V(0);
        t.each(R, [&](int i) { ray[i] = V(0); });
        Pivoting<T>& d = pivoting;
        for (int l = 0; l < W; ++l) {
            count[l][0] = count[l][1] = count[l][2] = 0;
            if (l >= lanes || lane(bad, l)) continue;
            t.each(R, [&](int i) {
                d.v[i] = lane(x.v[i], l), d.lo[i] = -infinity(), d.up[i] = infinity();
            });
            x.each(t, [&](int k, int i, V sg) {
                if (!(lane(x.on[k], l) > T(0))) return;
                const T h = lane(x.h[k], l);
                if (lane(sg, l) > T(0)) d.up[i] = h;
                else d.lo[i] = -h;
            });
            const Columns<T> M = columns(l);
            d.start(M);
            // exchanging many rows at once converges where M is well away from singular
            bool ok = false;
            if (f.whole && R >= 24 && 2 * R <= 3 * (n - m)) {
                ok = d.guess(M);
                if (!ok) t.each(R, [&](int i) { d.v[i] = d.v0[i], d.y[i] = T(0); }), d.k = 0, d.inverted = false;
            }
            ok = ok || d.solve(M, smallest_int(R + 200, most_pivots));  // (the interior point is quicker than more)
            set_lane(out.iterations, l, T(d.pivots));
            if (!ok) {
                if (d.refuted < 0) continue;
                set_lane(contradiction, l, T(1));
                t.each(d.k, [&](int i) { set_lane(ray[d.index[i]], l, -d.refuted_sign * d.u[i]); });
                set_lane(ray[d.refuted], l, d.refuted_sign);
                t.each(R, [&](int i) { set_lane(out.y[i], l, d.y[i]); });
                continue;
            }
            set_lane(found, l, T(1));
            const int size = d.inverted ? R - d.k : d.k;  // of the factor
            count[l][0] = d.k, count[l][1] = d.inverted;
            t.each(d.k, [&](int i) {
                sign[l][i] = d.sign[i];
                set_lane(out.y[d.index[i]], l, d.y[d.index[i]]);
            });
            t.each(d.inverted ? R : d.k, [&](int i) { index[l][i] = d.index[i]; });
            t.each(size, [&](int i) { iL[l][i] = d.iL[i]; });
            for (int j = 0; j < size; ++j)
                t.each(size - j, [&](int i) { L[l][size_t(j) * size + j + i] = d.L[size_t(j) * d.most + j + i]; });
        }
        finish(rz, out.y, out.z, out.nu);
    }

    // The point is judged, and corrected while a correction halves the error. X: V, or double where V is float; then
    // residuals are computed in double, and the factors of float give the corrections.
    template <class Judge, class X>
    void refine(Judge& judge, Sides<X>& x, Point<X>& out, T tolerance) {
        using S = scalar_of<X>;
        constexpr bool mixed = !std::is_same<X, V>::value;
        const int n = a.n, m = a.m, R = a.rows();
        const X exact = X(S(tolerance) * Tuning<S>::enough);
        const auto known = X(found) > X(0);
        const auto judged = [&] {
            signs(judge.row, x, out);
            keep_bounds(judge.t, x, out, known);
            return judge.judge();
        };
        if (!mixed) judge.beyond = X(S(tolerance));
        X error = judged(), before = X(S(1e30));
        for (int round = 0; round < (mixed ? 6 : 2); ++round) {
            auto again = known & !(error <= exact);  // each lane for itself
            if (mixed) again = again & (error < X(S(0.5)) * before);
            if (!any(again)) break;
            before = error;
            // judge.gd, judge.gp and x.v hold the residuals and C z
            t.each(n, [&](int j) { rz[j] = V(-judge.gd[j]); });
            t.each(m, [&](int i) { rnu[i] = V(-judge.gp[i]); });
            t.each(R, [&](int i) { goal[i] = V(0); });
            x.each(t, [&](int k, int i, X sg) { goal[i] = select(x.active[k] > X(0), V(sg * x.h[k] - x.v[i]), goal[i]); });
            kkt(rz, rnu, goal, vz, vnu, y);
            t.each(n, [&](int j) { out.z[j] = select(again, out.z[j] + X(vz[j]), out.z[j]); });
            t.each(m, [&](int i) { out.nu[i] = select(again, out.nu[i] + X(vnu[i]), out.nu[i]); });
            t.each(R, [&](int i) { out.y[i] = select(again, out.y[i] + X(y[i]), out.y[i]); });
            error = judged();
        }
        judge.beyond = X(Tuning<S>::infinity);
        slacks(x, out);
        out.solved = select(known & (error <= X(S(tolerance))), select(error <= exact, X(1), X(S(0.5))), X(0));
        if (mixed) count[0][2] = 1;
    }

    // No answer: `prepare` has found no factors.
    void refuse(const Sides<V>& x, Point<V>& out) {
        for (int l = 0; l < W; ++l) count[l][0] = count[l][1] = count[l][2] = 0;
        found = contradiction = V(0);
        t.each(a.n, [&](int j) { out.z[j] = V(0); });
        t.each(a.m, [&](int i) { out.nu[i] = V(0); });
        t.each(x.total(), [&](int k) { out.s[k] = out.lam[k] = V(0); });
        out.primal = out.dual = out.gap = V(infinity());
        out.iterations = out.solved = out.proven = V(0);
    }

    // From the net multipliers those of each side; what has the wrong sign is cut off, and judged.
    template <class X> void signs(X* net, Sides<X>& x, Point<X>& out) {
        t.each(a.rows(), [&](int i) { net[i] = X(0); });
        x.each(t, [&](int k, int i, X sg) {
            const X lam = x.on[k] * max(sg * out.y[i], X(0));
            x.active[k] = select(lam > X(0), X(1), X(0));
            out.lam[k] = lam;
            net[i] = fma(sg, lam, net[i]);
        });
        t.each(a.rows(), [&](int i) { out.y[i] = net[i]; });
    }
    template <class X> void slacks(Sides<X>& x, Point<X>& out) {  // from C z, as the judge left it
        x.each(t, [&](int k, int i, X sg) {
            const X slack = select(x.on[k] > X(0), max(x.h[k] - sg * x.v[i], X(0)), X(1));
            out.s[k] = select(x.active[k] > X(0), X(0), slack);
        });
    }

  private:
    static constexpr T infinity() { return std::is_same<T, float>::value ? T(3e38) : T(1e308); }
};

}  // namespace optlayer

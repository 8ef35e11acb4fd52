// The paper's elimination (§3.1.1): Q and the equalities are factored once, what changes is p×p.
//
// With stationarity and A z = b always satisfied, z is a function of the multipliers,
//     G z = v0 - M y,   M = G P G',   P = Q⁻¹ - Q⁻¹A'(A Q⁻¹ A')⁻¹A Q⁻¹,
// and the interior point lives in (s, lam) alone: every iteration factors M + W, W = S/Λ.
#pragma once
#include "matrix.h"

namespace optlayer {

// Factors that depend on Q, G, A only: once for the batch when it shares them.
template <class U>
struct SchurFactors {
    U *L, *iL;       // Q = L L'
    U *LA, *iLA;     // A Q⁻¹ A' = LA LA'
    U *E;            // G Q⁻¹ A' LA⁻'   (p×m)
    U *M;            // p×p, lower triangle

    void place(Arena& a, int n, int m, int p, bool diagonal) {
        M = a.take<U>(size_t(p) * p);  // what every iteration reads comes first
        LA = a.take<U>(size_t(m) * m), iLA = a.take<U>(m), E = a.take<U>(size_t(p) * m);
        L = a.take<U>(diagonal ? 0 : size_t(n) * n), iL = a.take<U>(n);
    }

    // scratch: n*(p+m) entries. Returns the members whose Q (or A Q⁻¹ A') is not safely positive definite.
    template <class Tm, class D>
    OPTLAYER_CALL auto prepare(const Tm& t, const D& a, U* scratch) {
        const int n = a.n, m = a.m, p = a.p;
        U *X = scratch, *B = scratch + size_t(n) * p;
        auto bad = U(0) > U(1);  // no lane
        t.each_pair(p, n, [&](int i, int j) { X[size_t(j) * p + i] = a.G[size_t(i) * n + j]; });
        t.each_pair(m, n, [&](int i, int j) { B[size_t(j) * m + i] = a.A[size_t(i) * n + j]; });
        if (a.diagonal) {
            const U top = t.max(n, U(0), [&](int j) { return U(a.Q[j]); });
            const U least = t.min(n, top, [&](int j) { return U(a.Q[j]); });
            bad = !(least > U(Tuning<scalar_of<U>>::pivot_ratio) * top);
            t.each(n, [&](int j) { iL[j] = U(1) / sqrt(U(a.Q[j])); });
            t.each_pair(p, n, [&](int i, int j) { X[size_t(j) * p + i] = X[size_t(j) * p + i] * iL[j]; });
            t.each_pair(m, n, [&](int i, int j) { B[size_t(j) * m + i] = B[size_t(j) * m + i] * iL[j]; });
        } else {
            t.each(n * n, [&](int k) { L[k] = a.Q[k]; });
            const U top = t.max(n, U(0), [&](int j) { return U(a.Q[size_t(j) * n + j]); });
            bad = t.cholesky(n, L, n, iL, U(Tuning<scalar_of<U>>::pivot_ratio) * top);
            bad = bad | !(top > U(0));
            t.trsm_right(p, n, X, p, L, n, iL);
            if (m) t.trsm_right(m, n, B, m, L, n, iL);
        }
        t.each(p * p, [&](int k) { M[k] = U(0); });
        t.update_lower(p, n, M, p, X, p, X, p);
        t.each(p * p, [&](int k) { M[k] = -M[k]; });
        if (m) {
            t.each(m * m, [&](int k) { LA[k] = U(0); });
            t.update_lower(m, n, LA, m, B, m, B, m);
            t.each(m * m, [&](int k) { LA[k] = -LA[k]; });
            const U top = t.max(m, U(0), [&](int j) { return LA[size_t(j) * m + j]; });
            bad = bad | t.cholesky(m, LA, m, iLA, U(Tuning<scalar_of<U>>::pivot_ratio) * top);
            t.each(p * m, [&](int k) { E[k] = U(0); });
            t.update(p, m, n, E, p, X, p, B, m);
            t.each(p * m, [&](int k) { E[k] = -E[k]; });
            t.trsm_right(p, m, E, p, LA, m, iLA);
            t.update_lower(p, m, M, p, E, p, E, p);
        }
        return bad;
    }

};

template <class Tm, class V, class U>
struct Schur {
    static constexpr bool proximal = false;
    const Tm& t;
    const Data<V, U>& a;
    const SchurFactors<U>& f;
    using T = scalar_of<V>;

    V *F, *iF;                       // M + W = F F'
    V *y, *v0, *z0, *nu0, *w, *wm;   // multipliers of the rows; G z, z, nu at y = 0; scratch
    V *W;
    V unit, unit_dual, stationarity, aim = V(0);

    Schur(const Tm& team, const Data<V, U>& data, const SchurFactors<U>& factors) : t(team), a(data), f(factors) {}

    void place(Arena& keep, Arena& work) {
        F = keep.take<V>(size_t(a.p) * a.p), iF = keep.take<V>(a.p), W = keep.take<V>(a.p);
        y = work.take<V>(a.p), v0 = work.take<V>(a.p), z0 = work.take<V>(a.n), nu0 = work.take<V>(a.m);
        w = work.take<V>(a.n), wm = work.take<V>(a.m);
    }

    OPTLAYER_CALL void solve_Q(V* x) const {  // x := Q⁻¹ x
        if (a.diagonal) {
            t.each(a.n, [&](int j) { x[j] = x[j] * V(f.iL[j]) * V(f.iL[j]); });
        } else {
            t.solve_lower(a.n, f.L, a.n, f.iL, x);
            t.solve_lower_t(a.n, f.L, a.n, f.iL, x);
        }
    }

    // Q vz + A'vnu + G'vy = rz,  A vz = rnu,  vy = D (G vz) + e  with W = 1/D
    OPTLAYER_CALL void kkt(const V* rz, const V* rnu, const V* e, V* vz, V* vnu, V* vy, V* vt) const {
        t.each(a.n, [&](int j) { w[j] = rz[j]; });
        solve_Q(w);
        t.each(a.m, [&](int i) { vnu[i] = -rnu[i]; });
        if (a.m) {
            t.gemv_t(a.n, a.m, a.A, a.n, w, vnu);
            t.solve_lower(a.m, f.LA, a.m, f.iLA, vnu);
        }
        t.each(a.p, [&](int i) { vy[i] = W[i] * e[i]; });
        t.gemv_t(a.n, a.p, a.G, a.n, w, vy);
        if (a.m) t.gemv(a.p, a.m, f.E, a.p, vnu, vy, -1);
        t.solve_lower(a.p, F, a.p, iF, vy);
        t.solve_lower_t(a.p, F, a.p, iF, vy);
        finish(rz, vy, vz, vnu);
        a.rows_times(t, vz, vt);
    }

    // z and nu from the multipliers of the rows; vnu holds LA⁻¹(A Q⁻¹ rz - rnu)
    OPTLAYER_CALL void finish(const V* rz, const V* vy, V* vz, V* vnu) const {
        if (a.m) {
            t.gemv_t(a.p, a.m, f.E, a.p, vy, vnu, -1);
            t.solve_lower_t(a.m, f.LA, a.m, f.iLA, vnu);
        }
        t.each(a.n, [&](int j) { vz[j] = rz[j]; });
        t.gemv(a.n, a.p, a.G, a.n, vy, vz, -1);
        if (a.m) t.gemv(a.n, a.m, a.A, a.n, vnu, vz, -1);
        solve_Q(vz);
    }

    // The minimiser without inequalities; the largest violation there is the unit of s and lam.
    void start(Sides<V>& x) {
        t.each(a.n, [&](int j) { w[j] = -a.q[j]; });
        t.each(a.p, [&](int i) { y[i] = V(0); });
        recover_at(w, y, z0, nu0);
        a.rows_times(t, z0, v0);
        t.each(a.p, [&](int i) {
            const V g = V(f.M[size_t(i) * a.p + i]);
            x.d[i] = select(g > V(0), V(1) / sqrt(max(g, V(T(1e-30)))), V(1));
        });
        unit = t.max(a.p, V(0), [&](int i) { return x.on[i] * x.d[i] * (v0[i] - x.h[i]); });
        const V size = t.max(a.p, V(T(1e-30)), [&](int i) { return x.on[i] * x.d[i] * abs(x.h[i]); });
        unit = max(unit, V(T(Tuning<T>::least_unit)) * size);  // not below rounding
        unit = max(unit, sqrt(aim));
        unit_dual = unit;
        x.each(t, [&](int k, int i, V) {
            const V s = max((x.h[k] - v0[i]) * x.d[i], unit);
            x.s[k] = s / x.d[i];
            x.lam[k] = select(x.on[k] > V(0), unit * unit / max(s, V(T(1e-30))) * x.d[i], V(0));
            x.s[k] = select(x.on[k] > V(0), x.s[k], V(1));
            y[i] = x.lam[k];
        });
        stationarity = V(0);
    }
    void row_values(V* v) {
        t.each(a.p, [&](int i) { v[i] = V(0); });
        t.symv_lower(a.p, f.M, a.p, y, v);
        t.each(a.p, [&](int i) { v[i] = v0[i] - v[i]; });
    }

    OPTLAYER_CALL void factor(const V* D) {
        const V far = V(T(Tuning<T>::absent));  // an absent row drops out
        t.each(a.p, [&](int i) { W[i] = select(D[i] > V(0), min(V(1) / max(D[i], V(1) / far), far), far); });
        t.each_lower(a.p, [&](int i, int j) { F[size_t(j) * a.p + i] = V(f.M[size_t(j) * a.p + i]); });
        t.each(a.p, [&](int j) { F[size_t(j) * a.p + j] = F[size_t(j) * a.p + j] + W[j]; });
        t.cholesky(a.p, F, a.p, iF, V(0));
    }
    // dy = D dt + e, with stationarity kept: dt = -M dy
    OPTLAYER_CALL void direction(const V* e, V* dy, V* dt) const {
        t.each(a.p, [&](int i) { dy[i] = W[i] * e[i]; });
        t.solve_lower(a.p, F, a.p, iF, dy);
        t.solve_lower_t(a.p, F, a.p, iF, dy);
        t.each(a.p, [&](int i) { dt[i] = W[i] * (dy[i] - e[i]); });
    }
    template <class M>
    void advance(M live, V, V dual_step, const V* dy) {
        t.each(a.p, [&](int i) { y[i] = select(live, fma(dual_step, dy[i], y[i]), y[i]); });
    }
    void recover(const V* yy, V* z, V* nu) {
        t.each(a.n, [&](int j) { w[j] = -a.q[j]; });
        recover_at(w, yy, z, nu);
    }
    OPTLAYER_CALL void recover_at(V* rz, const V* yy, V* z, V* nu) {
        t.each(a.n, [&](int j) { z[j] = rz[j]; });
        solve_Q(z);
        t.each(a.m, [&](int i) { nu[i] = -a.b[i]; });
        if (a.m) {
            t.gemv_t(a.n, a.m, a.A, a.n, z, nu);
            t.solve_lower(a.m, f.LA, a.m, f.iLA, nu);
        }
        finish(rz, yy, z, nu);
    }
    void find_unit() {}
    // weight of an active row in the polish: W relative to M
    V hard(int i) const {
        const V g = V(f.M[size_t(i) * a.p + i]);
        return V(T(Tuning<T>::hard_schur)) / select(g > V(0), g, V(1));
    }
};

}  // namespace optlayer

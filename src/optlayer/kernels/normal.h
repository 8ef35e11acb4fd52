// Normal equations: the inequalities are condensed into H = Q + C'DC (bounds touch its diagonal only),
// the equalities follow by the Schur complement A H⁻¹ A', after γ A'A was added to H: where A z = b holds that changes
// nothing but nu, and so Q need be definite nowhere but along A z = 0, or not at all.
// When Q is diagonal and rows are few, H stays diagonal: the rows of G are kept beside A in the complement
//     [A; G] H⁻¹ [A; G]' + diag(δ, W).
#pragma once
#include "system.h"

namespace optlayer {

template <class Tm, class V, class U>
struct Normal : PointSystem<Normal<Tm, V, U>, Tm, V, Data<V, U>> {
    static constexpr bool proximal = false;
    using Base = PointSystem<Normal, Tm, V, Data<V, U>>;
    using T = scalar_of<V>;
    using Base::t, Base::a, Base::z, Base::nu, Base::y, Base::rd, Base::rp, Base::vz, Base::vnu;
    using Base::unit_dual, Base::stationarity, Base::most_dual, Base::kappa;
    bool keep_rows;  // rows of G stay in the complement

    V *K, *iK, *B, *S, *iS, *GD;  // factors; B = [A; G] L⁻'; scratch for D G
    V *u, *w, *W, *D;
    V soft = V(0);        // A z − soft nu = b
    V *stiffness, *pull;  // γ of each equality; scratch (m)

    Normal(const Tm& team, const Data<V, U>& data, bool keep) : Base(team, data), keep_rows(keep) {}

    bool diagonal_H() const { return a.diagonal && (a.p == 0 || keep_rows); }
    int kept() const { return keep_rows ? a.p : 0; }
    int mk() const { return a.m + kept(); }

    void place(Arena& keep, Arena& work) {
        const int n = a.n, k = mk();
        K = keep.take<V>(diagonal_H() ? 0 : size_t(n) * n), iK = keep.take<V>(n);
        S = keep.take<V>(size_t(k) * k), iS = keep.take<V>(k), W = keep.take<V>(kept()), D = keep.take<V>(a.rows());
        stiffness = keep.take<V>(a.m), pull = work.take<V>(a.m);
        B = work.take<V>(size_t(n) * k);
        GD = work.take<V>(keep_rows ? 0 : size_t(n) * a.p);
        Base::place(work);
        u = work.take<V>(k), w = work.take<V>(n);
    }

    OPTLAYER_CALL void factor(const V* D_) {
        const int n = a.n, k = mk();
        t.each(a.rows(), [&](int i) { D[i] = D_[i]; });
        auto diag = [&](int j) { return a.bounds ? a.curvature(j) + D[a.p + j] : a.curvature(j); };
        if (diagonal_H()) {
            t.each(n, [&](int j) { iK[j] = V(1) / sqrt(diag(j) + V(T(Tuning<T>::proximal)) * kappa); });
            t.each_pair(a.m, n, [&](int i, int j) { B[size_t(j) * k + i] = V(a.A[size_t(i) * n + j]) * iK[j]; });
            t.each_pair(kept(), n, [&](int i, int j) { B[size_t(j) * k + a.m + i] = V(a.G[size_t(i) * n + j]) * iK[j]; });
        } else {
            if (a.diagonal) t.each_lower(n, [&](int i, int j) { K[size_t(j) * n + i] = V(0); });
            else t.each_lower(n, [&](int i, int j) { K[size_t(j) * n + i] = V(a.Q[size_t(j) * n + i]); });
            t.each(n, [&](int j) { K[size_t(j) * n + j] = diag(j); });
            if (!keep_rows && a.p) {
                t.each_pair(n, a.p, [&](int j, int i) { GD[size_t(i) * n + j] = -(V(a.G[size_t(i) * n + j]) * D[i]); });
                t.update_lower(n, a.p, K, n, GD, n, a.G, n);
            }
            if (a.m) {
                t.each(a.m, [&](int i) {
                    V g = V(0);
                    for (int j = 0; j < n; ++j) g = fma(V(a.A[size_t(i) * n + j]), V(a.A[size_t(i) * n + j]), g);
                    stiffness[i] = select(g > V(0), kappa / g, V(0));
                });
                t.each_pair(n, a.m, [&](int j, int i) { B[size_t(i) * n + j] = -(stiffness[i] * V(a.A[size_t(i) * n + j])); });
                t.update_lower(n, a.m, K, n, B, n, a.A, n);
            }
            // proximal term: relative to the diagonal, so that no unit enters
            t.each(n, [&](int j) {
                V& d = K[size_t(j) * n + j];
                d = d + V(T(Tuning<T>::proximal)) * (d + kappa);
            });
            t.cholesky(n, K, n, iK, V(0));
            if (k) {
                t.each_pair(a.m, n, [&](int i, int j) { B[size_t(j) * k + i] = V(a.A[size_t(i) * n + j]); });
                t.trsm_right(k, n, B, k, K, n, iK);
            }
        }
        if (k) {
            t.each(k * k, [&](int e) { S[e] = V(0); });
            t.update_lower(k, n, S, k, B, k, B, k);
            t.each_lower(k, [&](int i, int j) { S[size_t(j) * k + i] = -S[size_t(j) * k + i]; });
            const V far = V(T(Tuning<T>::absent));
            t.each(kept(), [&](int i) { W[i] = select(D[i] > V(0), min(V(1) / max(D[i], V(1) / far), far), far); });
            t.each(k, [&](int i) {
                V& d = S[size_t(i) * k + i];
                d = d + V(T(Tuning<T>::dual_proximal)) * d;
                d = d + (i < a.m ? soft / held(i) : W[i - a.m]);
            });
            t.cholesky(k, S, k, iS, V(0));
        }
    }

    // What γ A'(A z − soft nu) leaves of A'nu.
    V held(int i) const { return diagonal_H() ? V(1) : fnma(stiffness[i], soft, V(1)); }

    OPTLAYER_CALL void solve_H(V* x) const {
        if (diagonal_H()) {
            t.each(a.n, [&](int j) { x[j] = x[j] * iK[j] * iK[j]; });
        } else {
            t.solve_lower(a.n, K, a.n, iK, x);
            t.solve_lower_t(a.n, K, a.n, iK, x);
        }
    }

    // Q vz + A'vnu + C'vy = rz,  A vz = rnu,  vy = D (C vz) + e
    OPTLAYER_CALL void kkt(const V* rz, const V* rnu, const V* e, V* vz_, V* vnu_, V* vy, V* vt) const {
        const int n = a.n, k = mk();
        t.each(n, [&](int j) { vz_[j] = a.bounds ? rz[j] - e[a.p + j] : rz[j]; });
        if (!keep_rows && a.p) t.gemv(n, a.p, a.G, n, e, vz_, -1);
        if (a.m && !diagonal_H()) {
            t.each(a.m, [&](int i) { pull[i] = stiffness[i] * rnu[i]; });
            t.gemv(n, a.m, a.A, n, pull, vz_);
        }
        if (k) {
            t.each(n, [&](int j) { w[j] = vz_[j]; });
            solve_H(w);
            t.each(k, [&](int i) { u[i] = i < a.m ? -rnu[i] : W[i - a.m] * e[i - a.m]; });
            if (a.m) t.gemv_t(n, a.m, a.A, n, w, u);
            if (kept()) t.gemv_t(n, a.p, a.G, n, w, u + a.m);
            t.solve_lower(k, S, k, iS, u);
            t.solve_lower_t(k, S, k, iS, u);
            t.each(a.m, [&](int i) { vnu_[i] = u[i] / held(i); });
            if (a.m) t.gemv(n, a.m, a.A, n, u, vz_, -1);
            if (kept()) t.gemv(n, a.p, a.G, n, u + a.m, vz_, -1);
        }
        solve_H(vz_);
        a.rows_times(t, vz_, vt);
        t.each(a.rows(), [&](int i) { vy[i] = fma(D[i], vt[i], e[i]); });
        if (kept()) t.each(a.p, [&](int i) { vy[i] = u[a.m + i]; });
    }

    using Base::curvature, Base::row_norm, Base::start, Base::advance, Base::recover;
    static constexpr double least_norm = 1e-30;
    // Share of the linear term in the typical curvature, at the start. (As 1, nearly dependent equalities seem to contradict.) [hard]
    static constexpr double linear = 1e-2;

    void row_values(V* v) {
        a.rows_times(t, z, v);
        t.each(a.n, [&](int j) { rd[j] = V(0); });
        a.add_Qz(t, z, rd);
        const V forces = t.max(a.n, V(0), [&](int j) { return abs(rd[j]) + abs(a.q[j]); });  // what multipliers are held against
        unit_dual = larger(forces, V(T(1e-8)) * most_dual);
        t.each(a.n, [&](int j) { rd[j] = rd[j] + a.q[j]; });
        a.add_rows_t(t, y, rd);
        if (a.m) t.gemv(a.n, a.m, a.A, a.n, nu, rd);
        t.each(a.m, [&](int i) { rp[i] = -fma(soft, nu[i], a.b[i]); });
        if (a.m) t.gemv_t(a.n, a.m, a.A, a.n, z, rp);
        stationarity = max(t.max(a.n, V(0), [&](int j) { return abs(rd[j]); }) / unit_dual,
                           t.max(a.m, V(0), [&](int i) { return abs(rp[i]); }));
        t.each(a.n, [&](int j) { rd[j] = -rd[j]; });
        t.each(a.m, [&](int i) { rp[i] = -rp[i]; });
    }
    void direction(const V* e, V* dy, V* dt) { kkt(rd, rp, e, vz, vnu, dy, dt); }

    V hard(int i) const { return V(T(Tuning<T>::hard_normal)) * kappa / row_norm(i); }
};

// Null space of an A that the batch shares: z = A⁺b + Z u with A Z = 0 leaves n-m variables and no equality.
// A' = [Y Z] [R; 0] by Householder reflections, once for the batch.
template <class U>
struct NullSpace {
    int n, m;
    U *Z;     // n×(n-m), column-major
    U *P;     // A⁺ = Y R⁻', n×m
    U *Q, *C; // Z'QZ, and C Z stored row by row: (n-m)×rows

    int reduced() const { return n - m; }
    void place(Arena& a, int rows) {
        Z = a.take<U>(size_t(n) * (n - m)), P = a.take<U>(size_t(n) * m);
        Q = a.take<U>(size_t(n - m) * (n - m)), C = a.take<U>(size_t(n - m) * rows);
    }

    // scratch: n*m + n*(n-m) + 2n. Returns false when A has dependent rows.
    template <class Tm, class D>
    bool prepare(const Tm& t, const D& a, U* scratch) {
        const int k = n - m;
        U *H = scratch, *tau = H + size_t(n) * m, *x = tau + n, *QZ = x + n;
        t.each(n * m, [&](int e) { H[e] = a.A[e]; });
        U top = U(0), least = U(1e30);
        for (int j = 0; j < m; ++j) {
            U norm = U(0);
            for (int i = j; i < n; ++i) norm += H[size_t(j) * n + i] * H[size_t(j) * n + i];
            norm = sqrt(norm);
            top = max(top, norm), least = min(least, norm);
            if (!(norm > U(Tuning<U>::rank) * top)) return false;
            U& head = H[size_t(j) * n + j];
            const U beta = head > U(0) ? -norm : norm;
            tau[j] = (beta - head) / beta;
            const U inv = U(1) / (head - beta);
            for (int i = j + 1; i < n; ++i) H[size_t(j) * n + i] *= inv;
            head = beta;
            for (int c = j + 1; c < m; ++c) reflect(H, tau, j, H + size_t(c) * n);
        }
        // Z and Y are columns of the product of the reflections
        for (int c = 0; c < k; ++c) {
            U* z = Z + size_t(c) * n;
            t.each(n, [&](int i) { z[i] = U(i == m + c); });
            for (int j = m - 1; j >= 0; --j) reflect(H, tau, j, z);
        }
        // column i of A⁺ is Y R⁻' e_i
        for (int c = 0; c < m; ++c) {
            U* y = P + size_t(c) * n;
            t.each(n, [&](int i) { y[i] = U(i == c); });
            for (int i = 0; i < m; ++i) {  // R' is lower triangular: R'(i, l) = H(l, i)
                U r = y[i];
                for (int l = 0; l < i; ++l) r -= H[size_t(i) * n + l] * y[l];
                y[i] = r / H[size_t(i) * n + i];
            }
            for (int j = m - 1; j >= 0; --j) reflect(H, tau, j, y);
        }
        for (int c = 0; c < k; ++c) {
            U* z = Z + size_t(c) * n;
            U* q = QZ + size_t(c) * n;
            t.each(n, [&](int i) { q[i] = U(0); });
            a.add_Qz(t, z, q);
            for (int i = 0; i < a.p; ++i) {
                U r = U(0);
                for (int j = 0; j < n; ++j) r += a.G[size_t(i) * n + j] * z[j];
                C[size_t(i) * k + c] = r;
            }
            t.each(a.bounds, [&](int j) { C[size_t(a.p + j) * k + c] = z[j]; });
        }
        for (int c = 0; c < k; ++c)
            for (int r = 0; r < k; ++r) {
                U s = U(0);
                for (int j = 0; j < n; ++j) s += Z[size_t(r) * n + j] * QZ[size_t(c) * n + j];
                Q[size_t(c) * k + r] = s;
            }
        return true;
    }
    static size_t scratch(int n, int m) { return size_t(n) * m + 2 * size_t(n) + size_t(n) * (n - m); }

  private:
    void reflect(const U* H, const U* tau, int j, U* x) const {
        U dot = x[j];
        for (int i = j + 1; i < n; ++i) dot += H[size_t(j) * n + i] * x[i];
        dot *= tau[j];
        x[j] -= dot;
        for (int i = j + 1; i < n; ++i) x[i] -= dot * H[size_t(j) * n + i];
    }
};

// The reduced problem is solved by Normal without equalities; this wraps it back into z and nu.
template <class Tm, class V, class U>
struct Reduced {
    static constexpr bool proximal = false;
    const Tm& t;
    const Data<V, U>& a;     // the user's
    const NullSpace<U>& f;
    Data<V, U> r;            // the reduced one: all rows of C Z dense
    Normal<Tm, V, U> in;
    using T = scalar_of<V>;
    V *q, *zp, *row0, *left;                // reduced linear term; A⁺b; C A⁺b; h - C A⁺b of each side
    V *w, *x, *part, *shift, *u, *none;     // scratch
    V unit, unit_dual, stationarity, kappa, aim = V(0);

    Reduced(const Tm& t_, const Data<V, U>& a_, const NullSpace<U>& f_)
        : t(t_), a(a_), f(f_), r{{f_.reduced(), 0, a_.rows(), false}, f_.Q, f_.C, nullptr, nullptr, nullptr}, in(t_, r, false) {}

    void place(Arena& keep, Arena& work) {
        q = work.take<V>(r.n), zp = work.take<V>(a.n), row0 = work.take<V>(a.rows()), left = work.take<V>(2 * a.rows());
        w = work.take<V>(a.n), x = work.take<V>(r.n), part = work.take<V>(a.n), shift = work.take<V>(a.rows());
        u = work.take<V>(r.n), none = work.take<V>(1);
        in.place(keep, work);
    }
    void start(Sides<V>& s) {
        t.each(a.n, [&](int j) { zp[j] = V(0); });
        t.gemv(a.n, a.m, f.P, a.n, a.b, zp);
        a.rows_times(t, zp, row0);
        V* const h = s.h;
        s.each(t, [&](int k, int i, V sg) { left[k] = h[k] - sg * row0[i]; });
        t.each(a.n, [&](int j) { w[j] = a.q[j]; });
        a.add_Qz(t, zp, w);
        t.each(r.n, [&](int c) { q[c] = V(0); });
        t.gemv_t(a.n, r.n, f.Z, a.n, w, q);
        r.q = q;
        in.aim = aim;
        s.h = left;
        in.start(s);
        s.h = h;
        unit = in.unit, unit_dual = in.unit_dual;
        kappa = in.kappa;
    }
    void row_values(V* v) {
        in.row_values(v);
        t.each(a.rows(), [&](int i) { v[i] = v[i] + row0[i]; });
        stationarity = in.stationarity, unit_dual = in.unit_dual;
    }
    void factor(const V* D) {
        in.kappa = kappa;
        in.factor(D);
    }
    void direction(const V* e, V* dy, V* dt) { in.direction(e, dy, dt); }
    template <class M>
    void advance(M live, V step, V dual_step, const V* dy) { in.advance(live, step, dual_step, dy); }

    void recover(const V* y, V* z, V* nu) {
        t.each(a.n, [&](int j) { z[j] = zp[j]; });
        t.gemv(a.n, r.n, f.Z, a.n, in.z, z);
        t.each(a.n, [&](int j) { w[j] = -a.q[j]; });
        multipliers(z, y, nu);
    }
    // nu = A⁺'(w - Q z - C'y)
    void multipliers(const V* z, const V* y, V* nu) const {
        t.each(a.n, [&](int j) { w[j] = -w[j]; });
        a.add_Qz(t, z, w);
        a.add_rows_t(t, y, w);
        t.each(a.m, [&](int i) { nu[i] = V(0); });
        t.gemv_t(a.n, a.m, f.P, a.n, w, nu, -1);
    }
    void kkt(const V* rz, const V* rnu, const V* e, V* vz, V* vnu, V* vy, V* vt) const {
        // vz = A⁺rnu + Z x:  (Z'QZ) x + (CZ)'y = Z'(rz - Q A⁺rnu),  y = D (CZ x + C A⁺ rnu) + e
        t.each(a.n, [&](int j) { part[j] = V(0); });
        t.gemv(a.n, a.m, f.P, a.n, rnu, part);
        t.each(a.n, [&](int j) { w[j] = V(0); });
        a.add_Qz(t, part, w);
        t.each(a.n, [&](int j) { w[j] = rz[j] - w[j]; });
        t.each(r.n, [&](int c) { x[c] = V(0); });
        t.gemv_t(a.n, r.n, f.Z, a.n, w, x);
        a.rows_times(t, part, vt);
        t.each(a.rows(), [&](int i) { shift[i] = fma(in.D[i], vt[i], e[i]); });
        in.kkt(x, none, shift, u, none, vy, vt);
        t.each(a.n, [&](int j) { vz[j] = part[j]; });
        t.gemv(a.n, r.n, f.Z, a.n, u, vz);
        a.rows_times(t, vz, vt);
        t.each(a.n, [&](int j) { w[j] = rz[j]; });
        multipliers(vz, vy, vnu);
    }
    V hard(int i) const { return in.hard(i); }
};

}  // namespace optlayer

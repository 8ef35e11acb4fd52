// The elimination of Newton's systems. This is what interior.h and solver.h ask of a `System`:
//
//     place(keep, work)                   memory; what is in `keep` serves the derivative after the call
//     start(sides)                        the first point: s, lam and scales d of the rows; unit, unit_dual
//     row_values(v)                       v = C z at the point; its stationarity, relative
//     factor(D)                           of  Q + C'D C  within A z = 0
//     direction(e, dy, dt)                Newton's step: dt = C dz, dy = D dt + e
//     advance(live, step, dual_step, dy)  the point moves along it
//     recover(y, z, nu)                   z and nu of the point whose rows have the multipliers y
//     kkt(rz, rnu, e, vz, vnu, vy, vt)    Q vz + A'vnu + C'vy = rz,  A vz = rnu,  vt = C vz,  vy = D vt + e
//     hard(i)                             the weight D of row i where it is active, an equality
//     find_unit()                         what `hard` needs, where there was no start
//     unit, unit_dual, stationarity       of slacks, of multipliers; what is left of stationarity, in units of the forces
//     aim                                 what lam∘s shall be at the end: of a relaxed problem not zero
//     proximal                            whether R, small, stands on the diagonal about the last point, so that rows which
//                                         depend on each other do no harm; then also left, regularise, firmer, shrink, keep_fixed, pivots,
//                                         side_unit, equality_unit;
//                                         exchangeable, exchange, begin, weak: a start with another R
//
// Normal and Reduced (normal.h), Schur (schur.h), SparseSystem (sparse.h) are such systems.
#pragma once
#include "matrix.h"

namespace optlayer {

// What the systems share that keep z, nu and y.
template <class Self, class Tm, class V, class D>
struct PointSystem {
    const Tm& t;
    const D& a;
    using T = scalar_of<V>;

    V *z, *nu, *y, *rd, *rp, *vz, *vnu;  // the point, what is left of its equations, Newton's step
    V unit, unit_dual, stationarity, most_dual, kappa;
    V aim = V(T(0));
    double spread = 1;  // how much farther from the boundary than usual the first point is

    PointSystem(const Tm& team, const D& data) : t(team), a(data) {}

    void place(Arena& work) {
        z = work.take<V>(a.n), nu = work.take<V>(a.m), y = work.take<V>(a.rows());
        rd = work.take<V>(a.n), rp = work.take<V>(a.m), vz = work.take<V>(a.n), vnu = work.take<V>(a.m);
    }
    // Of the derivative, which has no start: a unit for the weights of active rows; of a linear program any will do.
    void find_unit() {
        kappa = curvature();
        kappa = select(kappa > V(T(0)), kappa, V(T(1)));
    }
    // Typical curvature: the unit of what is added to Q.
    V curvature() const { return t.sum(a.n, [&](int j) { return abs(a.curvature(j)); }) / V(T(a.n)); }
    // |c_i|², 1 of a row of zeros
    V row_norm(int i) const {
        V g = V(T(0));
        a.each_of_row(i, [&](int, V entry) { g = fma(entry, entry, g); });
        return select(g > V(T(0)), max(g, V(T(Self::least_norm))), V(T(1)));
    }

    // A ridge-like start: rows are drawn to the point of their interval that is nearest to zero.
    void start(Sides<V>& x) { begin(x, V(T(0)) <= V(T(0))); }
    template <class M> void begin(Sides<V>& x, M which) {
        Self& self = static_cast<Self&>(*this);
        const int n = a.n, R = a.rows();
        const V qmax = t.max(n, V(T(1e-30)), [&](int j) { return abs(a.q[j]); });
        t.each(R, [&](int i) {
            x.d[i] = V(T(1)) / sqrt(row_norm(i));
            x.v[i] = V(T(0));  // target: 0, moved into the interval
            x.D[i] = V(T(0));
        });
        x.each(t, [&](int k, int i, V sg) {
            const V over = sg * x.v[i] - x.h[k];
            x.v[i] = select((x.on[k] > V(T(0))) & (over > V(T(0))), sg * x.h[k], x.v[i]);
            x.D[i] = select(x.on[k] > V(T(0)), V(T(1)), x.D[i]);
        });
        const V far = t.max(R, V(T(1)), [&](int i) { return abs(x.v[i]) * x.d[i]; });
        const V curved = curvature() + V(T(Self::linear)) * qmax / far;
        kappa = select(which, select(curved > V(T(1e-25)), curved, V(T(1))), kappa);  // (1: no objective at all)
        t.each(R, [&](int i) {
            x.D[i] = x.D[i] * kappa * x.d[i] * x.d[i];
            x.e[i] = -x.D[i] * x.v[i];
        });
        self.factor(x.D);
        t.each(n, [&](int j) { rd[j] = -a.q[j]; });
        t.each(a.m, [&](int i) { rp[i] = a.b[i]; });
        self.kkt(rd, rp, x.e, vz, vnu, x.dy, x.v);
        V most = V(T(0));
        x.each(t, [&](int k, int i, V sg) { most = max(most, x.on[k] * x.d[i] * (sg * x.v[i] - x.h[k])); });
        t.largest(most);
        const V pull = t.max(R, V(T(0)), [&](int i) { return abs(x.dy[i]) / x.d[i] / kappa; });
        most = max(max(max(most, pull), V(T(1e-8))) * V(T(spread)), sqrt(aim / kappa));
        unit = select(which, most, unit), unit_dual = select(which, most * kappa, unit_dual);
        t.each(n, [&](int j) { z[j] = select(which, vz[j], z[j]); });
        t.each(a.m, [&](int i) { nu[i] = select(which, vnu[i], nu[i]); });
        t.each(R, [&](int i) { y[i] = select(which, V(T(0)), y[i]); });
        x.each(t, [&](int k, int i, V sg) {
            const auto there = x.on[k] > V(T(0));
            const V s = max((x.h[k] - sg * x.v[i]) * x.d[i], unit);
            x.s[k] = select(which, select(there, s / x.d[i], V(T(1))), x.s[k]);
            x.lam[k] = select(which, select(there, unit * unit_dual / s * x.d[i], V(T(0))), x.lam[k]);
            y[i] = select(which, fma(sg, x.lam[k], y[i]), y[i]);
        });
        most_dual = max(qmax, unit_dual);
    }
    template <class M>
    void advance(M live, V step, V dual_step, const V* dy) {
        t.each(a.n, [&](int j) { z[j] = select(live, fma(step, vz[j], z[j]), z[j]); });
        t.each(a.m, [&](int i) { nu[i] = select(live, fma(dual_step, vnu[i], nu[i]), nu[i]); });
        t.each(a.rows(), [&](int i) { y[i] = select(live, fma(dual_step, dy[i], y[i]), y[i]); });
    }
    void recover(const V*, V* z_, V* nu_) {
        t.each(a.n, [&](int j) { z_[j] = z[j]; });
        t.each(a.m, [&](int i) { nu_[i] = nu[i]; });
    }
};

}  // namespace optlayer

// The verdict on an answer: its residuals, measured as kkt.py measures them, and the proofs of problems without solution.
#pragma once
#include "args.h"
#include "workspace.h"

namespace optlayer {

template <class V>
struct Point {  // of one QP, in the user's units
    V *z, *nu, *y, *s, *lam;
    V primal, dual, gap;
    V iterations;
    V solved;  // 1; 1/2: roughly (mark_rough); 0; -1: proven infeasible (Active::certify)

    void place(Arena& a, int n, int m, int rows, int sides) {
        z = a.take<V>(n), nu = a.take<V>(m), y = a.take<V>(rows), s = a.take<V>(sides), lam = a.take<V>(sides);
    }
};

template <class Tm, class V, class U>
struct Verdict {
    const Tm& t;
    const Data<V, U>& a;
    Sides<V>& x;
    Point<V>& out;
    using T = scalar_of<V>;
    V *gd, *gp, *dz, *row;  // residuals of stationarity and of A z = b; scratch
    V wanted_gap = V(0);    // of a relaxed problem

    Verdict(const Tm& team, const Data<V, U>& data, Sides<V>& sides, Point<V>& point)
        : t(team), a(data), x(sides), out(point) {}

    void place(Arena& w) { gd = w.take<V>(a.n), gp = w.take<V>(a.m), dz = w.take<V>(a.n), row = w.take<V>(a.rows()); }

    // What rounding may have hidden in a sum counts as residual: so much of its largest term.
    static constexpr T rounding = sizeof(T) == 8 ? T(2.2e-16) : T(1.2e-7);
    // What a residual is divided by: one plus the largest term that enters it, but terms beyond 1e4 times the data count
    // as that much (kkt.py). Multipliers that run off to 1e90 excuse nothing.
    static V allowed(V terms, V data) { return V(1) + min(terms, V(T(1e4)) * (V(1) + data)); }

    // Residuals of `out`; returns the largest relative one. Terms are not taken apart further than Qz, G'lam, a row of Gz:
    // they are then no larger than kkt.py's, and what passes here passes there. `apart`: the terms of kkt.py, |Q||z|.
    template <bool apart = false>
    OPTLAYER_CALL V judge() {
        const int n = a.n;
        // stationarity: Qz + q + A'nu + C'y
        V big = t.max(n, V(0), [&](int j) { return abs(a.q[j]); });
        t.each(n, [&](int j) { gd[j] = V(0); });
        a.add_Qz(t, out.z, gd);
        big = t.max(n, big, [&](int j) { return abs(gd[j]); });
        const V data = big;
        if constexpr (apart) big = max(big, products());
        const V zQz = t.sum(n, [&](int j) { return out.z[j] * gd[j]; });
        const V qz = t.sum(n, [&](int j) { return out.z[j] * a.q[j]; });
        // In float32 the gap is a sum that may cancel: what rounding may have hidden counts as gap.
        constexpr bool single = sizeof(T) == 4;
        V hidden = single ? t.sum(n, [&](int j) { return abs(out.z[j]) * (abs(gd[j]) + abs(a.q[j])); }) : V(0);
        t.each(n, [&](int j) { dz[j] = V(0); });
        a.add_rows_t(t, out.y, dz);
        big = t.max(n, big, [&](int j) { return abs(dz[j]); });
        t.each(n, [&](int j) { gd[j] = gd[j] + a.q[j] + dz[j]; dz[j] = V(0); });
        if (a.m) t.gemv(n, a.m, a.A, n, out.nu, dz);
        big = t.max(n, big, [&](int j) { return abs(dz[j]); });
        t.each(n, [&](int j) { gd[j] = gd[j] + dz[j]; });
        out.dual = t.max(n, V(0), [&](int j) { return abs(gd[j]); });
        V rel = fma(V(rounding), big, out.dual) / allowed(big, data);
        // feasibility, each row by its own terms
        t.each(a.m, [&](int i) { gp[i] = V(0); });
        if (a.m) t.gemv_t(n, a.m, a.A, n, out.z, gp);
        const auto terms = [&](const U* row, V value) { return apart ? dot_of_sizes(row, 1, n, out.z) : abs(value); };
        V off = t.max(a.m, V(0), [&](int i) {
            const V size = max(terms(a.A + size_t(i) * n, gp[i]), abs(a.b[i]));
            return fma(V(rounding), size, abs(gp[i] - a.b[i])) / allowed(size, abs(a.b[i]));
        });
        V bnu = t.sum(a.m, [&](int i) { return a.b[i] * out.nu[i]; });
        if (single) hidden = hidden + t.sum(a.m, [&](int i) { return abs(a.b[i] * out.nu[i]); });
        t.each(a.m, [&](int i) { gp[i] = gp[i] - a.b[i]; });
        out.primal = t.max(a.m, V(0), [&](int i) { return abs(gp[i]); });
        a.rows_times(t, out.z, x.v);
        V hlam = V(0);
        x.each(t, [&](int k, int i, V sg) {
            const V over = x.on[k] * (sg * x.v[i] - x.h[k]);
            const V size = max(abs(x.h[k]), i < a.p ? terms(a.G + size_t(i) * n, x.v[i]) : abs(x.v[i]));
            out.primal = max(out.primal, over);
            off = max(off, x.on[k] * fma(V(rounding), size, over) / allowed(size, abs(x.h[k])));
            hlam = fma(x.on[k] * x.h[k], out.lam[k], hlam);
        });
        t.largest(out.primal), t.largest(off), t.total(hlam);
        rel = max(rel, off);
        out.gap = abs(zQz + qz + bnu + hlam - wanted_gap);
        rel = max(rel, fma(hidden, V(T(6e-8)), out.gap) / (V(1) + max(max(abs(zQz), abs(qz)), max(abs(bnu), abs(hlam)))));
        return select(rel >= V(0), rel, V(T(1e30)));  // NaN is the worst
    }

    V largest(const U* row) const {
        V top = V(0);
        for (int j = 0; j < a.n; ++j) top = max(top, abs(V(row[j])));
        return top;
    }
    // The largest of |h| and |b|.
    V limits() const {
        const V of_sides = t.max(x.total(), V(0), [&](int k) { return x.on[k] * abs(x.h[k]); });
        return t.max(a.m, of_sides, [&](int i) { return abs(a.b[i]); });
    }
    static V relative(V value, V size) { return value / select(size > V(0), size, V(1)); }

    // Σ |x_i||y_i|
    static V dot_of_sizes(const U* x, int step, int count, const V* y) {
        V sum = V(0);
        for (int i = 0; i < count; ++i) sum = fma(abs(V(x[size_t(i) * step])), abs(y[i]), sum);
        return sum;
    }
    // The largest entry of |Q||z|, |G'||y| and |A'||nu|.
    V products() const {
        const int n = a.n;
        return t.max(n, V(0), [&](int j) {
            const V Qz = a.diagonal ? abs(V(a.Q[j]) * out.z[j]) : dot_of_sizes(a.Q + size_t(j) * n, 1, n, out.z);
            return max(Qz, max(dot_of_sizes(a.G + j, n, a.p, out.y), dot_of_sizes(a.A + j, n, a.m, out.nu)));
        });
    }

    // Farkas' proof that nothing is feasible, in the lanes of `which`:  C'y + A'nu = 0,  h'lam + b'nu < 0,  lam the parts of
    // y on the sides they press against. Where it is exact to `tol`, and the terms of its value are at most `most` times as
    // large, so that it is not rounding, it goes into `out`, scaled to the value -1. Returns those lanes.
    template <class M>
    OPTLAYER_CALL M prove(M which, const V* y, const V* nu, T tol, T most) {
        t.each(a.n, [&](int j) { gd[j] = V(0); });
        a.add_rows_t(t, y, gd);
        if (a.m) t.gemv(a.n, a.m, a.A, a.n, nu, gd);
        const V off = t.max(a.n, V(0), [&](int j) { return abs(gd[j]); });
        V size = t.max(a.n, V(0), [&](int j) { return dot_of_sizes(a.G + j, a.n, a.p, y); });  // as in kkt.py
        size = t.max(a.bounds, size, [&](int j) { return abs(y[a.p + j]); });
        V value = V(0), terms = V(0);
        x.each(t, [&](int k, int i, V sg) {
            const V side = x.on[k] * x.h[k], multiplier = max(sg * y[i], V(0));
            value = fma(side, multiplier, value), terms = terms + abs(side * multiplier);
        });
        t.total(value), t.total(terms);
        value = value + t.sum(a.m, [&](int i) { return a.b[i] * nu[i]; });
        terms = terms + t.sum(a.m, [&](int i) { return abs(a.b[i] * nu[i]); });
        const V scale = limits();
        const V least = V(tol) * size * select(scale > V(0), min(scale, V(1)), V(1));
        which = which & (size > V(0)) & (off <= V(tol) * size) & (value < -least) & (terms <= V(-most) * value);
        const V unit = V(-1) / select(which, value, V(-1));
        t.each(a.m, [&](int i) { out.nu[i] = select(which, unit * nu[i], out.nu[i]); });
        x.each(t, [&](int k, int i, V sg) { out.lam[k] = select(which, x.on[k] * unit * max(sg * y[i], V(0)), out.lam[k]); });
        return which;
    }

    // The multipliers of an infeasible problem diverge along a proof of it, the points of an unbounded one along a ray:
    //   Q z = 0,  A z = 0,  C z <= 0,  q'z = -1.
    // PRIMAL_INFEASIBLE or DUAL_INFEASIBLE, and the proof in `out`; else 0. One QP, no lanes.
    OPTLAYER_CALL int32_t certify(T tol, T most) {
        if (prove(true, out.y, out.nu, tol, most)) return PRIMAL_INFEASIBLE;
        // each row relative to its largest entry
        const T z = t.max(a.n, T(0), [&](int j) { return abs(out.z[j]); });
        t.each(a.n, [&](int j) { gd[j] = T(0); });
        a.add_Qz(t, out.z, gd);
        T off = t.max(a.n, T(0), [&](int j) {
            return relative(abs(gd[j]), a.diagonal ? abs(a.Q[j]) : largest(a.Q + size_t(j) * a.n));
        });
        t.each(a.m, [&](int i) { gp[i] = T(0); });
        if (a.m) t.gemv_t(a.n, a.m, a.A, a.n, out.z, gp);
        off = t.max(a.m, off, [&](int i) { return relative(abs(gp[i]), largest(a.A + size_t(i) * a.n)); });
        a.rows_times(t, out.z, x.v);
        x.each(t, [&](int k, int i, T sg) {
            off = max(off, x.on[k] * relative(max(sg * x.v[i], T(0)), i < a.p ? largest(a.G + size_t(i) * a.n) : T(1)));
        });
        t.largest(off);
        const T fall = t.sum(a.n, [&](int j) { return a.q[j] * out.z[j]; });
        const T slope = t.max(a.n, T(0), [&](int j) { return abs(a.q[j]); });
        const bool feasible = out.primal <= T(1e3) * tol * (T(1) + limits());  // (judged before)
        if (feasible && z > T(1) && off <= tol * z && fall < -T(1e-3) * z * slope) {
            t.each(a.n, [&](int j) { out.z[j] = out.z[j] / -fall; });
            t.each(a.m, [&](int i) { out.nu[i] = T(0); });
            t.each(x.total(), [&](int k) { out.lam[k] = T(0); });
            return DUAL_INFEASIBLE;
        }
        return 0;
    }
};

}  // namespace optlayer

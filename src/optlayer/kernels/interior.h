// The primal-dual interior point of §3.1 (Mehrotra's predictor-corrector), and after it the polish:
// the problem with its active rows as equalities, which gives the solution to the last digits and is
// the system of the derivative. One elimination (`System`) hides how a Newton system is solved.
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

template <class Tm, class V, class U, class System>
struct Interior {
    const Tm& t;
    const Data<V, U>& a;
    System& system;
    Sides<V>& x;
    Point<V>& out;
    using T = scalar_of<V>;
    V *gd, *gp, *dz, *dnu, *row;  // residuals and corrections of the polish, scratch

    Interior(const Tm& team, const Data<V, U>& data, System& elimination, Sides<V>& sides, Point<V>& point)
        : t(team), a(data), system(elimination), x(sides), out(point) {}

    void place(Arena& w) {
        gd = w.take<V>(a.n), gp = w.take<V>(a.m), dz = w.take<V>(a.n), dnu = w.take<V>(a.m), row = w.take<V>(a.rows());
    }

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
        out.gap = abs(zQz + qz + bnu + hlam);
        rel = max(rel, fma(hidden, V(T(6e-8)), out.gap) / (V(1) + max(max(abs(zQz), abs(qz)), max(abs(bnu), abs(hlam)))));
        return select(rel >= V(0), rel, V(T(1e30)));  // NaN is the worst
    }

    V largest(const U* row) const {
        V top = V(0);
        for (int j = 0; j < a.n; ++j) top = max(top, abs(V(row[j])));
        return top;
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

    // Mehrotra's loop over the lanes that are live; leaves s, lam and the system's variables at the last point.
    template <class M>
    OPTLAYER_CALL void loop(M live, T tolerance, int iterations) {
        const V tol = V(tolerance);
        for (int it = 0; it < iterations; ++it) {
            system.row_values(x.v);
            V infeasible = V(0), mu = V(0);
            t.each(a.rows(), [&](int i) { x.D[i] = V(0); x.e[i] = V(0); });
            x.each(t, [&](int k, int i, V sg) {
                x.r[k] = x.on[k] * (fma(sg, x.v[i], x.s[k]) - x.h[k]);
                infeasible = max(infeasible, abs(x.r[k]) * x.d[i]);
                mu = fma(x.s[k], x.lam[k], mu);
            });
            t.largest(infeasible), t.total(mu);
            mu = mu / max(x.count, V(1));
            // condensed systems lose digits of stationarity as s/lam spreads; the polish and the verdict see to them
            const auto done = (infeasible <= V(T(100)) * tol * system.unit) & (mu <= tol * system.unit * system.unit_dual)
                            & (system.stationarity <= V(T(1e-4)));
            live = live & !done & (mu >= V(0));
            if (!any(live)) return;
            out.iterations = select(live, out.iterations + V(1), out.iterations);

            // predictor: aim at s∘lam = 0
            x.each(t, [&](int k, int i, V sg) {
                const V w = V(1) / x.s[k];
                x.c[k] = w;
                x.D[i] = fma(x.lam[k], w, x.D[i]);
                x.e[i] = fma(sg, x.lam[k] * (fma(x.r[k], w, V(-1))), x.e[i]);  // (lam r - s lam) / s
            });
            system.factor(x.D);
            system.direction(x.e, x.dy, x.dt);
            V step = V(1);
            x.each(t, [&](int k, int i, V sg) {
                const V ds = -x.r[k] - sg * x.dt[i];
                const V dl = -x.lam[k] - x.lam[k] * x.c[k] * ds;
                x.ds[k] = ds, x.dlam[k] = dl;
                step = min(step, select(x.on[k] > V(0), min(longest(x.s[k], ds), longest(x.lam[k], dl)), V(1)));
            });
            t.smallest(step);
            V after = V(0);
            x.each(t, [&](int k, int, V) { after = fma(fma(step, x.ds[k], x.s[k]), x.on[k] * fma(step, x.dlam[k], x.lam[k]), after); });
            t.total(after);
            V sigma = after / max(x.count, V(1)) / max(mu, V(T(1e-37)));
            sigma = min(sigma * sigma * sigma, V(1));

            // corrector: aim at s∘lam = sigma mu, second order included
            t.each(a.rows(), [&](int i) { x.e[i] = V(0); });
            x.each(t, [&](int k, int i, V sg) {
                const V target = x.on[k] * fma(x.ds[k], x.dlam[k], fma(x.s[k], x.lam[k], -(sigma * mu)));
                x.ds[k] = target;
                x.e[i] = fma(sg, fma(x.lam[k], x.r[k], -target) * x.c[k], x.e[i]);
            });
            system.direction(x.e, x.dy, x.dt);
            step = V(T(1e10));
            x.each(t, [&](int k, int i, V sg) {
                const V ds = -x.r[k] - sg * x.dt[i];
                const V dl = -(fma(x.lam[k], ds, x.ds[k])) * x.c[k];
                x.ds[k] = ds, x.dlam[k] = x.on[k] * dl;
                step = min(step, select(x.on[k] > V(0), min(longest(x.s[k], ds), longest(x.lam[k], dl)), step));
            });
            t.smallest(step);
            step = min(V(1), step * V(sizeof(T) == 8 ? T(0.995) : T(0.99)));
            step = select(step >= V(0), step, V(0));
            x.each(t, [&](int k, int, V) {
                const V s = fma(step, x.ds[k], x.s[k]), lam = fma(step, x.dlam[k], x.lam[k]);
                const auto moves = live & (x.on[k] > V(0));
                // Tapia's indicator: s falls like mu where a row is active, lam where it is not; free of units
                x.active[k] = select(moves, select(s * x.lam[k] < lam * x.s[k], V(1), V(0)), x.active[k]);
                x.s[k] = select(moves, s, x.s[k]);
                x.lam[k] = select(moves, lam, x.lam[k]);
            });
            system.advance(live, step, x.dy);
            live = live & (step > V(T(1e-8)));  // no way forward: another method must try
        }
    }

    // largest step that keeps v + step dv >= 0
    static V longest(V v, V dv) { return select(dv < V(0), -v / min(dv, V(-T(1e-37))), V(T(1e10))); }

    // The point of the interior loop as it is.
    template <class M>
    OPTLAYER_CALL void take_interior(M which) {
        t.each(a.rows(), [&](int i) { row[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) { row[i] = fma(sg * x.on[k], x.lam[k], row[i]); });
        system.recover(row, dz, dnu);
        t.each(a.n, [&](int j) { out.z[j] = select(which, dz[j], out.z[j]); });
        t.each(a.m, [&](int i) { out.nu[i] = select(which, dnu[i], out.nu[i]); });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which, row[i], out.y[i]); });
        x.each(t, [&](int k, int, V) {
            out.s[k] = select(which, x.s[k], out.s[k]);
            out.lam[k] = select(which, x.on[k] * x.lam[k], out.lam[k]);
        });
    }

    // Active rows become equalities, the others vanish; iterative refinement against the data themselves, beyond `rounds`
    // as long as a residual halves.
    template <class M>
    OPTLAYER_CALL void polish(M which, int rounds) {
        t.each(a.rows(), [&](int i) { x.D[i] = V(0); x.goal[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) {
            const auto active = x.active[k] > V(0);
            x.weight[k] = select(active, system.hard(i), V(0));
            x.D[i] = x.D[i] + x.weight[k];
            x.r[k] = select(active, V(1), V(0));
            x.goal[i] = select(active, sg * x.h[k], x.goal[i]);
        });
        system.factor(x.D);
        t.each(a.rows(), [&](int i) { out.y[i] = select(which & !(x.D[i] > V(0)), V(0), out.y[i]); });
        M going = which;
        V dual = V(0), primal = V(0);  // of the round before
        for (int round = 0; round < 4 * rounds; ++round) {
            t.each(a.n, [&](int j) { gd[j] = a.q[j]; });
            a.add_Qz(t, out.z, gd);
            a.add_rows_t(t, out.y, gd);
            if (a.m) t.gemv(a.n, a.m, a.A, a.n, out.nu, gd);
            t.each(a.n, [&](int j) { gd[j] = -gd[j]; });
            t.each(a.m, [&](int i) { gp[i] = -a.b[i]; });
            if (a.m) t.gemv_t(a.n, a.m, a.A, a.n, out.z, gp);
            t.each(a.m, [&](int i) { gp[i] = -gp[i]; });
            a.rows_times(t, out.z, x.v);
            t.each(a.rows(), [&](int i) { x.e[i] = x.D[i] * (x.v[i] - x.goal[i]); });
            const V dual_now = t.max(a.n, V(0), [&](int j) { return abs(gd[j]); });
            V primal_now = t.max(a.m, V(0), [&](int i) { return abs(gp[i]); });
            primal_now = t.max(a.rows(), primal_now, [&](int i) {
                return select(x.D[i] > V(0), x.d[i] * abs(x.v[i] - x.goal[i]), V(0));
            });
            const V half = V(T(0.5));
            if (round >= rounds) going = going & ((dual_now < half * dual) | (primal_now < half * primal));
            if (!any(going)) break;
            dual = dual_now, primal = primal_now;
            system.kkt(gd, gp, x.e, dz, dnu, x.dy, x.dt);
            t.each(a.n, [&](int j) { out.z[j] = select(going, out.z[j] + dz[j], out.z[j]); });
            t.each(a.m, [&](int i) { out.nu[i] = select(going, out.nu[i] + dnu[i], out.nu[i]); });
            t.each(a.rows(), [&](int i) { out.y[i] = select(going & (x.D[i] > V(0)), out.y[i] + x.dy[i], out.y[i]); });
        }
        // signs: what is negative is cut off, and judged by the residuals
        a.rows_times(t, out.z, x.v);
        x.each(t, [&](int k, int i, V sg) {
            const V slack = select(x.on[k] > V(0), max(x.h[k] - sg * x.v[i], V(0)), V(1));
            out.lam[k] = select(which, x.r[k] * max(sg * out.y[i], V(0)), out.lam[k]);
            out.s[k] = select(which, select(x.r[k] > V(0), V(0), slack), out.s[k]);
        });
        t.each(a.rows(), [&](int i) { row[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) { row[i] = fma(sg, out.lam[k], row[i]); });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which, row[i], out.y[i]); });
    }

    // Weights of the interior point itself, where no active set could be confirmed.
    template <class M>
    OPTLAYER_CALL void weigh_interior(M which) {
        t.each(a.rows(), [&](int i) { x.D[i] = V(0); });
        x.each(t, [&](int k, int i, V) {
            const V soft = x.on[k] * out.lam[k] / max(out.s[k], V(T(1e-30)));
            x.weight[k] = select(which, min(soft, system.hard(i)), x.weight[k]);
            x.D[i] = x.D[i] + x.weight[k];
        });
    }

    // The multipliers of an infeasible problem diverge along a proof of it, the points of an unbounded one along a ray:
    //   y >= 0, nu:  A'nu + C'y = 0,  b'nu + h'y = -1;       z:  Q z = 0, A z = 0, C z <= 0,  q'z = -1.
    // PRIMAL_INFEASIBLE or DUAL_INFEASIBLE, and the proof in `out`, where it is exact to `tol` and the terms of its value
    // are at most `most` times as large, so that it is not rounding; else 0. One QP, no lanes.
    OPTLAYER_CALL int32_t certify(T tol, T most) {
        t.each(a.n, [&](int j) { gd[j] = T(0); });
        a.add_rows_t(t, out.y, gd);
        if (a.m) t.gemv(a.n, a.m, a.A, a.n, out.nu, gd);
        const T force = t.max(a.n, T(0), [&](int j) { return abs(gd[j]); });
        T size = t.max(a.n, T(0), [&](int j) { return dot_of_sizes(a.G + j, a.n, a.p, out.y); });  // as in kkt.py
        size = t.max(a.bounds, size, [&](int j) { return abs(out.y[a.p + j]); });
        const T side = t.sum(x.total(), [&](int k) { return x.on[k] * x.h[k] * out.lam[k]; })
                     + t.sum(a.m, [&](int i) { return a.b[i] * out.nu[i]; });
        const T terms = t.sum(x.total(), [&](int k) { return x.on[k] * abs(x.h[k] * out.lam[k]); })
                      + t.sum(a.m, [&](int i) { return abs(a.b[i] * out.nu[i]); });
        T scale = t.max(x.total(), T(0), [&](int k) { return x.on[k] * abs(x.h[k]); });
        scale = t.max(a.m, scale, [&](int i) { return abs(a.b[i]); });
        if (size > T(0) && force <= tol * size && side < -tol * size * (scale > T(0) ? min(scale, T(1)) : T(1)) && terms <= -most * side) {
            t.each(a.m, [&](int i) { out.nu[i] = out.nu[i] / -side; });
            t.each(x.total(), [&](int k) { out.lam[k] = out.lam[k] / -side; });
            return PRIMAL_INFEASIBLE;
        }
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
        const bool feasible = out.primal <= T(1e3) * tol * (T(1) + scale);  // (judged before)
        if (feasible && z > T(1) && off <= tol * z && fall < -T(1e-3) * z * slope) {
            t.each(a.n, [&](int j) { out.z[j] = out.z[j] / -fall; });
            t.each(a.m, [&](int i) { out.nu[i] = T(0); });
            t.each(x.total(), [&](int k) { out.lam[k] = T(0); });
            return DUAL_INFEASIBLE;
        }
        return 0;
    }

    void run(T tolerance, int iterations, bool with_polish) {
        constexpr bool twice = sizeof(T) == 8;
        const V exact = V(twice ? tolerance * T(1e-2) : tolerance * T(0.1));
        const V zero = V(0);
        auto open = zero <= zero;
        out.iterations = zero;
        x.count = zero;
        x.each(t, [&](int k, int, V) {
            x.count = x.count + x.on[k];
            x.active[k] = zero;
        });
        t.total(x.count);
        system.start(x);
        // Stop early and polish; where the active set was not yet right, go on and try again.
        const T stages[] = {T(twice ? 1e-6 : 1e-4), T(twice ? 1e-10 : 1e-6), T(twice ? 1e-14 : 1e-7)};
        for (int stage = with_polish ? 0 : 2; stage < 3 && any(open); ++stage) {
            loop(open, stages[stage], iterations);
            take_interior(open);
            if (with_polish) {
                const auto wanted = open;
                t.each(x.total(), [&](int k) { x.c[k] = x.weight[k]; });  // of the lanes that are done
                polish(wanted, twice ? 3 : 2);
                open = wanted & !(judge() <= exact);
                t.each(x.total(), [&](int k) { x.weight[k] = select(wanted, x.weight[k], x.c[k]); });
            }
        }
        if (any(open)) {  // no active set could be confirmed: the interior point as it is
            take_interior(open);
            weigh_interior(open);
            system.factor(x.D);
        }
        out.solved = select(judge() <= V(tolerance), V(1), zero);
    }
};

}  // namespace optlayer

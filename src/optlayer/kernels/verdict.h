// The judge: how far an answer is from solving the problem, and the proofs of problems without solution.
//
// An answer is SOLVED when it is exact for data that differ entry by entry by a relative tolerance (the componentwise
// backward error of Oettli and Prager 1964; Higham, Accuracy and Stability, ch. 7). So each entry of a residual is
// divided by the sum of the magnitudes of its own terms,
//     |Qz + q + C'y + A'nu|_j  by  (|Q||z| + |q| + |C|'|y| + |A|'|nu|)_j,      |Az - b|_i  by  (|A||z| + |b|)_i,
// and so a row; a side whose multiplier is positive must be an equality in this sense, or its multiplier must be as small
// beside the terms of every entry of stationarity that it enters. Units of variables, rows and objective decide nothing.
//
// Three things keep that honest. What rounding leaves of a zero has no terms to be measured by: residuals of the size that
// rounding a sum, or the variables by their own scale (|z_j|, the terms of stationarity over Q_jj; in rows of G
// also those of the equality that knows it best, over its entry), can cause are none.
// Terms that cancel excuse little: beyond `cancelled` times what is left of them, they count as so much. And where rounding
// the terms may hide as much as the objective itself, as of points or multipliers that run off, nothing is solved.
// kkt.py says the same for the reference and the tests.
#pragma once
#include "args.h"
#include "tuning.h"
#include "matrix.h"

namespace optlayer {

template <class V>
struct Point {  // of one QP, in the user's units
    V *z, *nu, *y, *s, *lam;
    V primal, dual, gap;
    V iterations;
    V solved;  // 1; 1/2: to the tolerance, but not to what refinement aims at; 0
    V proven;  // 1 where a proof of infeasibility stands in lam and nu (Active::certify), else 0

    void place(Arena& a, int n, int m, int rows, int sides) {
        z = a.take<V>(n), nu = a.take<V>(m), y = a.take<V>(rows), s = a.take<V>(sides), lam = a.take<V>(sides);
        proven = V(0);
    }
};

// Bounds hold exactly: a variable whose bound is active (x.active) equals it, no other one is beyond its own.
template <class Tm, class V, class M>
OPTLAYER_CALL void keep_bounds(const Tm& t, const Sides<V>& x, Point<V>& out, M which) {
    t.each(x.lower, [&](int j) {
        const int k = x.first_lower() + j;
        const V bound = V(0) - x.h[k];  // (0 of either sign is 0)
        out.z[j] = select(which & (x.on[k] > V(0)) & ((x.active[k] > V(0)) | (out.z[j] < bound)), bound, out.z[j]);
    });
    t.each(x.upper, [&](int j) {
        const int k = x.first_upper() + j;
        const V bound = x.h[k];
        out.z[j] = select(which & (x.on[k] > V(0)) & ((x.active[k] > V(0)) | (out.z[j] > bound)), bound, out.z[j]);
    });
}

// Whether Q has no negative curvature but rounding: its diagonal raised by a little of itself, so that units of variables
// decide nothing, it has a Cholesky factor. (Where the diagonal is zero, the row must be.) K, inverse: scratch, n×n and n.
template <class Tm, class D, class T>
OPTLAYER_CALL bool is_convex(const Tm& t, const D& a, T* K, T* inverse, T allowed) {
    const int n = a.n;
    if (a.diagonal) return !(t.min(n, T(0), [&](int j) { return a.Q[j]; }) < T(0));
    t.each_lower(n, [&](int i, int j) {
        const T q = a.Q[size_t(j) * n + i];
        K[size_t(j) * n + i] = i != j ? q : q > T(0) ? fma(allowed, q, q) : a.Q_largest(j) > T(0) ? q : T(1);
    });
    return !t.cholesky(n, K, n, inverse, T(0));
}

// Whether the curvature along v, where K v = r, is more than the rounding of float32's data may be; `unit`: R of variable j.
template <class Tm, class V, class F>
auto curvature_known(const Tm& t, int n, const V* r, const V* v, F&& unit) {
    const V curvature = t.sum(n, [&](int j) { return r[j] * v[j]; });
    return V(scalar_of<V>(Tuning<double>::least_curvature)) * t.sum(n, [&](int j) { return unit(j) * v[j] * v[j]; }) <= curvature;
}

template <class Tm, class V, class U, class D = Data<V, U>>
struct Verdict {
    const Tm& t;
    const D& a;
    Sides<V>& x;
    Point<V>& out;
    using T = scalar_of<V>;
    V *gd, *gp, *dz, *row;   // residuals of stationarity and of A z = b; scratch
    V *size, *scale;         // of each variable: what is left of the terms of its stationarity; how large rounding may see it
    V *seen, *reach;         // the same where rows of G are judged; the terms of each row of A z = b
    V wanted_gap = V(0);     // of a relaxed problem
    bool equilibrated = false;  // variables are in units in which a variable without curvature may be as large as any
    bool pairs = true;       // slacks and multipliers are judged pair by pair; false: by the gap alone

    Verdict(const Tm& team, const D& data, Sides<V>& sides, Point<V>& point)
        : t(team), a(data), x(sides), out(point) {}

    void place(Arena& w) {
        gd = w.take<V>(a.n), gp = w.take<V>(a.m), dz = w.take<V>(a.n), row = w.take<V>(a.rows());
        size = w.take<V>(a.n), scale = w.take<V>(a.n), seen = D::has_units ? scale : w.take<V>(a.n), reach = w.take<V>(D::has_units ? 0 : a.m);
    }

    static constexpr double cancelled = 10;
    static constexpr double suspect = 1e-9;  // relative: from here on what rounding may hide is looked at in full
    V force = V(0);
    V objective = V(0);      // of the point that was judged last: |z'Qz| + |q'z|
    V beyond = V(T(Tuning<T>::infinity));  // a relative residual that is enough to know; no other row is looked at then
    struct Noise {  // of a sum, relative to its terms; `most`: what it may hide of the forces, of the sides
        V usual, most;
        bool by_terms = !std::is_same<T, float>::value;  // else every number is known by itself
        V of(int terms) const { return by_terms ? V(T(Tuning<T>::noise(terms))) : usual; }
    };
    Noise in_forces{V(T(Tuning<T>::noise(a.n))), V(T(Tuning<T>::most_noise))};
    Noise in_rows{in_forces.usual, V(T(Tuning<T>::most_of_sides))};

    // The data hold float32's numbers: a Q without full rank has some curvature, or none, by rounding.
    void expect_rounded_data() { in_forces = {V(T(Tuning<float>::rounded)), V(T(Tuning<float>::most_rounded)), false}; }
    // And the point as well, found in double.
    void expect_rounded() {
        expect_rounded_data();
        in_rows = {in_forces.usual, V(T(Tuning<float>::most_of_sides)), false};
    }

    // The largest relative residual of `out`; leaves the residuals in gd and gp, C z in x.v.
    OPTLAYER_CALL V judge() {
        const V of_gap = look();
        V worst = pairs ? V(0) : out.gap / larger(of_gap, V(T(1e-30)));

        const V fine = V(T(Tuning<T>::fine));
        V of_forces = forces(false), of_rows = rows(false);
        const bool near = any(of_forces > fine), beside = any(of_rows > fine);
        if (near || beside) measure();
        if (near || (beside && D::has_units)) of_forces = forces(true);
        if (beside) of_rows = rows(true);
        worst = larger(worst, larger(of_forces, of_rows));
        return known(worst);
    }
    // The same; infinite or NaN is the worst.
    V known(V worst) const {
        const V numbers = out.gap + out.dual + out.primal;
        return select((worst >= V(0)) & (numbers - numbers >= V(0)), worst, V(T(1e30)));
    }

    // Residuals and gap of `out`; returns the terms of the gap.
    OPTLAYER_CALL V look() {
        const int n = a.n;
        t.each(n, [&](int j) { gd[j] = V(0); });
        a.add_Qz(t, out.z, gd);
        const V zQz = t.sum(n, [&](int j) { return out.z[j] * gd[j]; });
        const V qz = t.sum(n, [&](int j) { return out.z[j] * a.q[j]; });
        objective = abs(zQz) + abs(qz);
        t.each(n, [&](int j) {
            size[j] = abs(gd[j]) + abs(a.q[j]);
            gd[j] = gd[j] + a.q[j];
            dz[j] = V(0);
        });
        a.add_rows_t(t, out.y, dz);
        a.add_At(t, out.nu, dz);
        t.each(n, [&](int j) {
            size[j] = size[j] + abs(dz[j]);
            gd[j] = gd[j] + dz[j];
        });
        out.dual = t.max(n, V(0), [&](int j) { return abs(gd[j]); });
        a.A_times(t, out.z, gp);
        const V bnu = t.sum(a.m, [&](int i) { return a.b[i] * out.nu[i]; });
        t.each(a.m, [&](int i) { gp[i] = fnma(x.soft_equality, out.nu[i], gp[i] - a.b[i]); });
        out.primal = t.max(a.m, V(0), [&](int i) { return abs(gp[i]); });
        a.rows_times(t, out.z, x.v);
        V hlam = V(0);
        x.each(t, [&](int k, int i, V sg) {
            out.primal = max(out.primal, x.on[k] * (sg * x.v[i] - x.h[k]));
            hlam = fma(x.on[k] * x.h[k], out.lam[k], hlam);
        });
        t.largest(out.primal), t.total(hlam);
        out.gap = abs(zQz + qz + bnu + hlam - wanted_gap);
        return objective + abs(bnu) + abs(hlam);
    }

    // Farkas' proof that nothing is feasible, in the lanes of `which`:  C'y + A'nu = 0,  h'lam + b'nu < 0,  lam the parts of
    // y on the sides they press against. Each column is judged beside its own terms; what is left of it a bound of the variable
    // takes over where there is one, exactly, and counts in the value. Where the rest is exact to `tol`, and the terms of the
    // value are at most `most` times as large, so that it is not rounding, it goes into `out`, scaled to the value -1. Returns
    // those lanes.
    template <class M>
    OPTLAYER_CALL M prove(M which, const V* y, const V* nu, T tol, T most) {
        t.each(a.n, [&](int j) { gd[j] = V(0); });
        a.add_rows_t(t, y, gd);
        a.add_At(t, nu, gd);
        V top = V(0), off = V(0);
        t.each(a.n, [&](int j) {
            size[j] = larger(a.rows_t_size(j, y), a.At_size(j, nu));
            top = larger(top, V(a.unit(j)) * size[j]);
        });
        t.largest(top);
        t.each(a.n, [&](int j) {  // from here on gd is what the variable's bounds take over
            const V left = gd[j], hidden = equilibrated ? in_rows.usual * top / V(a.unit(j)) : V(0);
            const V share_left = share(larger(abs(left) - hidden, V(0)), size[j]);
            gd[j] = V(0);
            if (a.bounds) {
                const V carried = y[a.p + j] - left;
                const auto lower = x.lower ? x.on[x.first_lower() + j] > V(0) : mask_of<V>(false);
                const auto upper = x.upper ? x.on[x.first_upper() + j] > V(0) : mask_of<V>(false);
                const auto carries = (share_left > V(tol)) & ((lower & (carried <= V(0))) | (upper & (carried >= V(0))));
                gd[j] = select(carries, left, V(0));
                off = larger(off, select(carries, V(0), share_left));
            } else {
                off = larger(off, share_left);
            }
        });
        t.largest(off);
        const auto pressing = [&](int i, V sg) { return max(sg * (i < a.p ? y[i] : y[i] - gd[i - a.p]), V(0)); };
        V value = V(0), terms = V(0);
        x.each(t, [&](int k, int i, V sg) {
            const V side = x.on[k] * x.h[k], multiplier = pressing(i, sg);
            value = fma(side, multiplier, value), terms = terms + abs(side * multiplier);
        });
        t.total(value), t.total(terms);
        value = value + t.sum(a.m, [&](int i) { return a.b[i] * nu[i]; });
        terms = terms + t.sum(a.m, [&](int i) { return abs(a.b[i] * nu[i]); });
        const V scale = limits();
        const V least = V(tol) * top * select(scale > V(0), min(scale, V(1)), V(1));
        which = which & (top > V(0)) & (off <= V(tol)) & (value < -least) & (terms <= V(-most) * value);
        const V unit = V(-1) / select(which, value, V(-1));
        t.each(a.m, [&](int i) { out.nu[i] = select(which, unit * nu[i], out.nu[i]); });
        x.each(t, [&](int k, int i, V sg) { out.lam[k] = select(which, x.on[k] * unit * pressing(i, sg), out.lam[k]); });
        return which;
    }

    // Whether z, at least `least` long, is such a ray; it is then scaled into `out`. In units of their own its rows are judged
    // beside their largest entry, else beside their own terms. It must fall far more than it is off, or than rounding the data
    // can do: an error of that size may have made it. At least `steep`, relative to the steepest direction. What goes against a
    // bound is no part of it.
    OPTLAYER_CALL bool falls(V* ray, T tol, T least, T steep = T(0)) {
        t.each(x.lower, [&](int j) { if (x.on[x.first_lower() + j] > T(0)) ray[j] = larger(ray[j], T(0)); });
        t.each(x.upper, [&](int j) { if (x.on[x.first_upper() + j] > T(0)) ray[j] = smaller(ray[j], T(0)); });
        const T z = t.max(a.n, T(0), [&](int j) { return abs(ray[j]); });
        const auto share_of = [&](T value, T largest, T terms) { return relative(value, equilibrated ? T(largest * z) : terms); };
        t.each(a.n, [&](int j) { gd[j] = T(0); });
        a.add_Qz(t, ray, gd);
        T off = t.max(a.n, T(0), [&](int j) { return share_of(abs(gd[j]), a.Q_largest(j), a.Q_size(j, ray)); });
        a.A_times(t, ray, gp);
        off = t.max(a.m, off, [&](int i) { return share_of(abs(gp[i]), a.A_largest(i), a.A_size(i, ray)); });
        a.rows_times(t, ray, x.v);
        x.each(t, [&](int k, int i, T sg) {
            off = larger(off, T(x.on[k] * share_of(larger(T(sg * x.v[i]), T(0)), a.row_largest(i), a.row_size(i, ray))));
        });
        t.largest(off);
        const T fall = t.sum(a.n, [&](int j) { return a.q[j] * ray[j]; });
        const T slope = equilibrated ? T(z * t.max(a.n, T(0), [&](int j) { return abs(a.q[j]); })) : t.sum(a.n, [&](int j) { return abs(a.q[j] * ray[j]); });
        const T rounding = larger(T(in_rows.usual), T(Tuning<double>::noise(a.n)));
        if (!(z > least && off <= tol && fall < -larger(T(1e6) * larger(off, rounding), steep) * slope)) return false;
        t.each(a.n, [&](int j) { out.z[j] = ray[j] / -fall; });
        t.each(a.m, [&](int i) { out.nu[i] = T(0); });
        t.each(x.total(), [&](int k) { out.lam[k] = T(0); });
        return true;
    }

    // The largest of |h| and |b|.
    V limits() const {
        const V of_sides = t.max(x.total(), V(0), [&](int k) { return x.on[k] * abs(x.h[k]); });
        return t.max(a.m, of_sides, [&](int i) { return abs(a.b[i]); });
    }
    // The smallest of |h| and |b| that is not zero: a vertex is zero, or about as large as the sides that meet there. (Of a
    // cone any size is as good.)
    V least_side() const {
        V least = V(T(Tuning<T>::infinity));
        const auto look = [&](V side) { least = min(least, select(side > V(0), side, least)); };
        t.each(x.total(), [&](int k) { look(x.on[k] * abs(x.h[k])); });
        t.each(a.m, [&](int i) { look(abs(a.b[i])); });
        t.smallest(least);
        return select(least < V(T(Tuning<T>::infinity)), least, V(1));
    }
    static V relative(V value, V size) { return value / select(size > V(0), size, V(1)); }

    // How large rounding may see each variable; `force`: where variables have units, the largest terms of stationarity in
    // them, beside which rounding is seen.
    OPTLAYER_CALL void measure() {
        const int n = a.n;
        const V top = equilibrated ? t.max(n, least_side(), [&](int j) { return abs(out.z[j]) / a.unit(j); }) : V(0);
        force = V(0);
        if constexpr (!D::has_units) t.each(a.m, [&](int i) { reach[i] = a.A_size(i, out.z) + abs(a.b[i]); });
        t.each(n, [&](int j) {
            const V q = a.curvature(j);
            if constexpr (D::has_units) {
                const V terms = terms_of(j);
                const V kept = smaller(terms, V(T(cancelled)) * size[j]);  // (diverging multipliers excuse nothing)
                scale[j] = larger(larger(abs(out.z[j]), top * a.unit(j)), select(q > V(0), kept / q, V(0)));
                force = larger(force, terms * a.unit(j));
            } else {
                scale[j] = larger(abs(out.z[j]), select(q > V(0), size[j] / q, top));
                seen[j] = in_rows.by_terms ? larger(scale[j], as_seen(j)) : scale[j];
            }
        });
        if constexpr (D::has_units) force = t.max(n, force, [&](int j) { return a.Q_size(j, scale) * a.unit(j); });
    }

    // Whether rounding hides all of the objective but a few digits, at the point that was judged: so far out along a direction
    // that Q hardly feels that it may as well have no end.
    OPTLAYER_CALL auto loses_objective() const {
        const V terms = t.sum(a.n, [&](int j) { return abs(out.z[j]) * a.Q_size(j, out.z); });
        return in_forces.usual * terms > in_rows.most * objective;
    }

  private:
    // How large rounding may see a variable in the equality that knows it best; 0 where it is in none.
    V as_seen(int j) const {
        const V none = V(T(Tuning<T>::infinity));
        V least = none;
        for (int i = 0; i < a.m; ++i) {
            const V entry = abs(V(a.A[size_t(i) * a.n + j]));
            least = select(entry > V(0), smaller(least, reach[i] / larger(entry, V(T(1e-30)))), least);
        }
        return select(least < none, least, V(0));
    }
    // The largest relative residual of stationarity; `closely`: by all terms and what rounding can do, else by what is left of
    // the terms, which is quicker and never too kind.
    OPTLAYER_CALL V forces(bool closely) {
        const int n = a.n;
        if (!closely) {
            V worst = t.max(n, V(0), [&](int j) { return share(abs(gd[j]), size[j]); });
            t.largest(worst);
            return worst;
        }
        const auto unsettled = [&](int j) { return any(abs(gd[j]) > V(T(Tuning<T>::fine)) * size[j]); };
        const auto unit = [&](int j) {
            const V q = a.curvature(j);
            return select(q > V(0), V(1) / sqrt(q), V(1));
        };
        V hidden = V(0), excused = V(0), beside = V(0);
        // (Without a linear term every point is a solution that Q does not feel: there its own terms count.)
        const auto linear = t.max(n, V(0), [&](int j) { return abs(a.q[j]); }) > V(0);
        V level = t.max(n, V(0), [&](int j) { return unit(j) * (all(linear) ? size[j] : select(linear, size[j], a.Q_size(j, out.z))); });
        t.largest(level);
        V worst = t.max(n, V(0), [&](int j) {
            if constexpr (!D::has_units) {
                if (!unsettled(j)) return share(abs(gd[j]), size[j]);
                const V wanted = abs(gd[j]) / in_forces.usual;
                if (a.stationarity_reaches(j, out.z, out.y, out.nu, wanted)) {  // no more than rounding
                    excused = larger(excused, unit(j) * wanted);
                    return V(0);
                }
            }
            const V terms = terms_of(j), slight = in_forces.of(a.force_terms(j));
            hidden = larger(hidden, unit(j) * terms);
            V rounded = a.Q_size(j, scale);
            if constexpr (D::has_units) {
                if (a.force_terms(j)) rounded = rounded + force / a.unit(j);  // (alone, it is beside nothing)
                const auto open = share(abs(gd[j]), size[j], terms, V(0), slight) > V(T(Tuning<T>::fine));
                beside = larger(beside, select(open, abs(gd[j]) * a.unit(j), V(0)));
            }
            // without an objective of its own, and beside the largest forces no more than their rounding: zero
            const auto nothing = (abs(a.q[j]) <= V(0)) & (a.curvature(j) > V(0)) & (unit(j) * terms <= in_forces.usual * level);
            return select(nothing, V(0), share(abs(gd[j]), size[j], terms, rounded, slight));
        });
        t.largest(excused);
        if (any(in_forces.usual * excused > V(T(suspect)) * level))
            t.each(n, [&](int j) { if (unsettled(j)) hidden = larger(hidden, unit(j) * terms_of(j)); });
        t.largest(worst), t.largest(hidden);
        auto lost = in_forces.usual * hidden > in_forces.most * level;
        if constexpr (D::has_units) {  // beside: the largest entry that is not small beside its own terms; where it is nothing
            t.largest(beside);         // beside the largest of all, nothing was hidden, whatever rounding might have done
            const V most = t.max(n, V(0), [&](int j) { return size[j] * a.unit(j); });
            lost = lost | ((beside > V(T(suspect)) * most) & (in_forces.usual * force > in_forces.most * most));
        }
        lost = lost & !(x.soft > V(0));  // forces of least violation cancel altogether
        return select(lost, larger(worst, V(1)), worst);
    }
    // The same of the rows, and of slacks beside their multipliers.
    OPTLAYER_CALL V rows(bool closely) {
        V reach = V(0), excused = V(0);  // the largest terms of a row that rounding may have excused
        V worst = t.max(a.m, V(0), [&](int i) {
            const V side = abs(a.b[i]);
            return of_row(closely, in_rows.of(a.A_terms(i)), reach, excused, abs(gp[i]), abs(gp[i] + a.b[i]) + side, side, scale, [&](const V* z) { return a.A_size(i, z); },
                          [&](V wanted) { if constexpr (D::has_units) return false; else return a.A_reaches(i, out.z, wanted); },
                          [&] { return a.A_largest(i); });
        });
        x.each(t, [&](int k, int i, V sg) {
            if (all(worst > beyond)) return;
            const V side = x.on[k] * abs(x.h[k]), over = x.on[k] * fnma(x.soft_side(k), out.lam[k], sg * x.v[i] - x.h[k]);
            const auto pressed = out.lam[k] > V(pairs ? T(0) : T(Tuning<T>::infinity));
            V off = of_row(closely, in_rows.of(a.row_terms(i)), reach, excused, select(pressed, abs(over), larger(over, V(0))), abs(x.v[i]) + side, side,
                           i < a.p ? seen : scale, [&](const V* z) { return a.row_size(i, z); },
                           [&](V wanted) { if constexpr (D::has_units) return false; else return a.row_reaches(i, out.z, wanted); },
                           [&] { return a.row_largest(i); });
            const auto idle = pressed & (over < V(0)) & (off > V(T(Tuning<T>::fine)));
            if (closely && any(idle)) off = select(idle, smaller(off, weight_of(k, i)), off);
            worst = larger(worst, off);
        });
        t.largest(worst), t.largest(reach), t.largest(excused);
        const V blurred = V(T(Tuning<T>::blurred));  // small curvatures blur the point without end
        const auto blurs = [&](V far) { return excused > blurred * far; };
        if (closely && any(blurs(t.max(a.n, V(0), [&](int j) { return abs(out.z[j]); })))) {
            const V far = farthest();
            worst = select(blurs(far), larger(worst, excused / far), worst);
        }
        const V sides = limits();
        if (!closely || !any((sides > V(0)) & (in_rows.usual * reach > V(T(suspect)) * sides))) return worst;
        return select(rows_lost(), larger(worst, V(1)), worst);
    }
    V terms_of(int j) const { return a.Q_size(j, out.z) + abs(a.q[j]) + a.rows_t_size(j, out.y) + a.At_size(j, out.nu); }
    // The largest of what each side, of a row, and each equality have, in units of the rows.
    template <class R, class E> OPTLAYER_CALL V largest_of(R&& side, E&& equality) const {
        V top = V(0);
        x.each(t, [&](int k, int i, V) { top = larger(top, x.on[k] * relative(side(k, i), a.row_largest(i))); });
        t.largest(top);
        return t.max(a.m, top, [&](int i) { return relative(equality(i), a.A_largest(i)); });
    }
    V largest_side() const {
        return largest_of([&](int k, int) { return abs(x.h[k]); }, [&](int i) { return abs(a.b[i]); });
    }
    // Whether rounding the terms of a row may hide more than `most_of_sides` of the largest side.
    OPTLAYER_CALL auto rows_lost() {
        const V level = largest_side(), hidden = largest_of([&](int, int i) { return a.row_size(i, out.z); }, [&](int i) { return a.A_size(i, out.z); });
        return (level > V(0)) & (in_rows.usual * hidden > in_rows.most * level);
    }
    static V share(V off, V terms) { return off / select(terms > V(0), terms, V(1)); }
    // left: what is left of the terms; rounded: the terms, were the variables as large as rounding may see them
    static V share(V off, V left, V terms, V rounded, V slight) {
        return share(larger(fnma(slight, terms + rounded, off), V(0)), smaller(terms, V(T(cancelled)) * left));
    }
    // excused: the largest distance to a row, in units of the variables, that only a blurred point explains
    template <class F, class R, class S>
    V of_row(bool closely, V slight, V& reach, V& excused, V off, V left, V side, const V* blurred, F&& full, R&& reaches, S&& largest) const {
        if (!closely || !any(off > V(T(Tuning<T>::fine)) * left)) return share(off, left);
        if (reaches(off / in_rows.usual)) {  // no more than rounding
            reach = larger(reach, off / in_rows.usual);
            return V(0);
        }
        const V fine = V(T(Tuning<T>::fine)), terms = full(out.z) + side, result = share(off, left, terms, full(blurred), slight);
        const auto blur = (result <= fine) & (share(off, left, terms, V(0), slight) > fine);
        reach = larger(reach, terms);
        if (any(blur)) excused = larger(excused, select(blur, relative(off, largest()), V(0)));
        return result;
    }
    // The largest variable, or distance of a row from zero. (Of a cone any size is as good.)
    V farthest() const {
        const V sides = largest_side();
        return t.max(a.n, select(sides > V(0), sides, V(1)), [&](int j) { return abs(out.z[j]); });
    }
    // How much of any entry of stationarity the multiplier of side k makes up.
    V weight_of(int k, int i) const {
        V most = V(0);
        a.each_of_row(i, [&](int j, V entry) { most = larger(most, share(abs(entry) * out.lam[k], size[j])); });
        return most;
    }
};

}  // namespace optlayer

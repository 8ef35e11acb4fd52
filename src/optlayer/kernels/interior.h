// The primal-dual interior point of §3.1 (Mehrotra's predictor-corrector), and after it the polish:
// the problem with its active rows as equalities, which gives the solution to the last digits and is
// the system of the derivative. One elimination (`System`) hides how a Newton system is solved.
#pragma once
#include "verdict.h"

namespace optlayer {

template <class Tm, class V, class U, class System, class D = Data<V, U>>
struct Interior : Verdict<Tm, V, U, D> {
    using Base = Verdict<Tm, V, U, D>;
    using T = scalar_of<V>;
    using W = typename Tm::Wide;
    using Base::t, Base::a, Base::x, Base::out, Base::gd, Base::gp, Base::dz, Base::row, Base::judge;
    System& system;
    V* dnu;
    Point<V> best{};           // of several points
    Point<V> whole{};          // the best of the central path, judged as one
    bool several = System::proximal;
    V idle = V(0);             // 1 where there is no objective at all
    V best_error = V(T(1e30)), whole_error = V(T(1e30));
    V held = V(0);             // 1 where R has kept the interior loop from the rows

    Interior(const Tm& team, const D& data, System& elimination, Sides<V>& sides, Point<V>& point)
        : Base(team, data, sides, point), system(elimination) {}

    void place(Arena& w) {
        Base::place(w);
        dnu = w.take<V>(a.m);
        if (several) best.place(w, a.n, a.m, a.rows(), x.total());
        if (System::proximal) whole.place(w, a.n, a.m, a.rows(), x.total());
    }

    // Mehrotra's loop over the lanes that are live, until lam∘s = aim (0: as small as the tolerance says); leaves s, lam and
    // the system's variables at the last point. Where `watched`, it leaves those that are `held`.
    template <class M>
    OPTLAYER_CALL void loop(M live, T tolerance, int iterations, V aim = V(0), bool watched = false) {
        const bool aimed = any(aim > V(0));
        const V tol = V(tolerance);
        V settled = V(0);  // iterations near the aim, where Newton's method doubles the digits
        V before = V(0), before_infeasible = V(0);  // stationarity and infeasibility, one iteration ago
        V moved = V(1);    // the last step
        V bold = V(1);     // 0 after a short step: back to the middle first, and no second order
        for (int it = 0; it < iterations; ++it) {
            system.row_values(x.v);
            W most = W(0), farthest = W(0);
            Tally<V, W> products;
            t.each(a.rows(), [&](int i) { x.D[i] = V(0); x.e[i] = V(0); });
            // and the predictor, which goes for the aim. With w = 1/(s + soft lam):  dlam = w (lam (σ dt + r) - target),  ds = soft dlam - r - σ dt
            x.strips(t, [&](auto k, V sg) {
                const W s = k(x.s), lam = k(x.lam), on = k(x.on), soft = W(x.soft_side(k.side));
                const W r = on * fnma(soft, lam, fma(W(sg), k.row(x.v), s) - k(x.h));
                const W target = fma(s, lam, -(on * W(aim))), w = W(1) / fma(soft, lam, s);
                most = max(most, abs(r) * k.row(x.d));
                farthest = max(farthest, on * abs(target));
                products.add(k, s * lam);
                k.put(x.r, r), k.put(x.c, w), k.put(x.ds, target);
                k.put_row(x.D, fma(lam, w, k.row(x.D)));
                k.put_row(x.e, fma(W(sg), fma(lam, r, -target) * w, k.row(x.e)));
            });
            V infeasible = largest_of<V>(most), far = largest_of<V>(farthest), mu = products.sum();
            t.largest(infeasible), t.total(mu), t.largest(far);
            mu = mu / max(x.count, V(1));
            // condensed systems lose digits of stationarity as s/lam spreads; the polish and the verdict see to them
            const auto slow = system.stationarity > V(T(0.5)) * before;
            before = system.stationarity;
            auto feasible = infeasible <= V(T(100)) * tol * system.unit;
            if constexpr (System::proximal) {
                feasible = feasible | (infeasible > V(T(0.5)) * before_infeasible);  // or rounding
                // R holds what falls by less than half of what the last step promised, and is late beside complementarity
                const auto slower = infeasible > before_infeasible * fnma(V(T(0.5)), moved, V(1));
                const auto late = infeasible * system.unit_dual > V(T(Tuning<T>::late)) * mu;
                if (const auto caught = live & slower & late; it && any(caught)) {
                    V far = V(0);
                    x.each(t, [&](int k, int i, V) { far = max(far, x.on[k] * x.d[i] * (abs(x.v[i]) + abs(x.h[k]))); });
                    t.largest(far);
                    held = select(caught & (infeasible > V(T(Tuning<T>::broken)) * far), V(1), held);  // (not rounding)
                }
                if (watched) live = live & !(held > V(0));
            }
            before_infeasible = infeasible;
            auto done = feasible & (mu <= tol * system.unit * system.unit_dual) & ((system.stationarity <= smaller(V(T(1e-4)), sqrt(tol))) | slow);
            if (aimed) {
                done = feasible & (far <= V(T(1e-9)) * aim) & (system.stationarity <= tol);
                settled = select(far <= V(T(1e-3)) * aim, settled + V(1), V(0));
            }
            live = live & !done & (mu >= V(0)) & (settled < V(6));
            if (!any(live)) return;
            out.iterations = select(live, out.iterations + V(1), out.iterations);

            system.factor(x.D);
            if constexpr (System::proximal) system.left = mu / (system.unit * system.unit_dual);
            system.direction(x.e, x.dy, x.dt);
            W most_s = W(1), most_lam = W(1);
            const auto shorten = [&](const auto& k, W s, W lam, W ds, W dlam) {
                const auto on = k(x.on) > W(0);
                W& of_lam = System::proximal ? most_lam : most_s;  // (one for both where residuals are not all found anew)
                most_s = min(most_s, select(on, longest(s, ds), most_s));
                of_lam = min(of_lam, select(on, longest(lam, dlam), of_lam));
            };
            V step, dual_step;
            const auto join_steps = [&] {
                step = smallest_of<V>(most_s);
                t.smallest(step);
                dual_step = step;
                if constexpr (System::proximal) dual_step = smallest_of<V>(most_lam), t.smallest(dual_step);
            };
            x.strips(t, [&](auto k, V sg) {
                const W s = k(x.s), lam = k(x.lam), moved = fma(W(sg), k.row(x.dt), k(x.r)), dl = fma(lam, moved, -k(x.ds)) * k(x.c);
                const W ds = fma(W(x.soft_side(k.side)), dl, -moved);
                k.put(x.ds, ds), k.put(x.dlam, dl);
                shorten(k, s, lam, ds, dl);
            });
            join_steps();
            products = {};
            x.strips(t, [&](auto k, V) {
                products.add(k, fma(W(step), k(x.ds), k(x.s)) * (k(x.on) * fma(W(dual_step), k(x.dlam), k(x.lam))));
            });
            V after = products.sum();
            t.total(after);
            auto moving = live;
            if constexpr (System::proximal) {  // (a factor that growth has spoilt)
                moving = live & (after - after >= V(0));
                if (const auto spoilt = live & !moving; any(spoilt)) live = live & (moving | system.firmer(spoilt));
            }
            V sigma = after / max(x.count, V(1)) / max(mu, V(T(1e-37)));
            sigma = max(min(sigma * sigma * sigma, V(1)), V(T(0.5)) * (V(1) - bold));

            // corrector: aim at s∘lam = sigma mu, second order included
            V centre = max(sigma * mu, aim);  // not far below the end: infeasibility must keep pace
            if constexpr (System::proximal) centre = max(centre, V(T(0.1)) * tol * system.unit * system.unit_dual);
            t.each(a.rows(), [&](int i) { x.e[i] = V(0); });
            x.strips(t, [&](auto k, V sg) {
                const W s = k(x.s), lam = k(x.lam), ds = k(x.ds), dlam = k(x.dlam), on = k(x.on);
                if constexpr (System::proximal) k.put(x.active, select(mask_of<W>(moving), select((on > W(0)) & (ds * lam < dlam * s), W(1), W(0)), k(x.active)));
                const W target = on * fma(W(bold) * ds, dlam, fma(s, lam, -W(centre)));
                k.put(x.ds, target);
                k.put_row(x.e, fma(W(sg), fma(lam, k(x.r), -target) * k(x.c), k.row(x.e)));
            });
            system.direction(x.e, x.dy, x.dt);
            most_s = most_lam = W(T(1e10));
            products = {};
            x.strips(t, [&](auto k, V sg) {
                const W s = k(x.s), lam = k(x.lam), moved = fma(W(sg), k.row(x.dt), k(x.r)), dl = fma(lam, moved, -k(x.ds)) * k(x.c);
                const W ds = fma(W(x.soft_side(k.side)), dl, -moved), dlam = k(x.on) * dl;
                k.put(x.ds, ds), k.put(x.dlam, dlam);
                if constexpr (System::proximal) products.add(k, dlam);
                shorten(k, s, lam, ds, dl);
            });
            join_steps();
            const auto within = [](V v) { v = min(V(1), v * V(T(Tuning<T>::boundary))); return select(v >= V(0), v, V(0)); };
            step = within(step);
            if constexpr (System::proximal) {
                dual_step = within(dual_step);
                if (aimed) step = dual_step = min(step, dual_step);
                const V sum = products.sum();
                live = live & ((sum - sum >= V(0)) | !moving);  // (so deep that s and lam differ by more than numbers can)
                moving = live & moving;
            } else {
                dual_step = step, moving = live;
            }
            x.strips(t, [&](auto k, V) {
                const W was = k(x.s), s = fma(W(step), k(x.ds), was), before = k(x.lam), lam = fma(W(dual_step), k(x.dlam), before);
                const auto moves = mask_of<W>(moving) & (k(x.on) > W(0));
                // Tapia's indicator: s falls like mu where a row is active, lam where it is not; free of units
                if constexpr (!System::proximal) k.put(x.active, select(moves, select(s * before < lam * was, W(1), W(0)), k(x.active)));
                k.put(x.s, select(moves, s, was));
                k.put(x.lam, select(moves, lam, before));
            });
            system.advance(moving, step, dual_step, x.dy);
            moved = select(moving, step, V(0));
            step = min(step, dual_step);
            live = live & ((step > V(T(1e-8))) | !moving);  // no way forward: another method must try
            bold = select(step > V(T(0.1)), V(1), V(0));
        }
    }

    // largest step that keeps v + step dv >= 0
    static OPTLAYER_INLINE W longest(W v, W dv) { return select(dv < W(0), -v / min(dv, W(-T(1e-37))), W(T(1e10))); }

    // The point of the interior loop: y in row, z in dz, nu in dnu.
    OPTLAYER_CALL void find_interior() {
        t.each(a.rows(), [&](int i) { row[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) { row[i] = fma(sg * x.on[k], x.lam[k], row[i]); });
        system.recover(row, dz, dnu);
    }
    // The same as the answer, as it is.
    template <class M>
    OPTLAYER_CALL void take_interior(M which) {
        find_interior();
        t.each(a.n, [&](int j) { out.z[j] = select(which, dz[j], out.z[j]); });
        t.each(a.m, [&](int i) { out.nu[i] = select(which, dnu[i], out.nu[i]); });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which, row[i], out.y[i]); });
        x.each(t, [&](int k, int, V) {
            out.s[k] = select(which, x.s[k], out.s[k]);
            out.lam[k] = select(which, x.on[k] * x.lam[k], out.lam[k]);
        });
    }

    // Of each pair of slack and multiplier at the interior point one is zero in truth: the slack of what is an equality to the
    // tolerance, else the multiplier; a bound becomes one where its slack is the smaller of the two, in their units.
    template <class M>
    OPTLAYER_CALL void settle_pairs(M which, V tolerance) {
        a.rows_times(t, out.z, x.v);
        x.each(t, [&](int k, int i, V sg) {
            const auto near = abs(sg * x.v[i] - x.h[k]) <= tolerance * (abs(x.v[i]) + abs(x.h[k]));
            const bool bound = k >= x.first_lower();
            const auto equal = bound ? (x.on[k] > V(0)) & (out.s[k] * x.d[i] * x.d[i] * system.unit_dual < out.lam[k] * system.unit) : near;
            if (bound) x.active[k] = select(which, select(equal, V(1), V(0)), x.active[k]);
            out.lam[k] = select(which & !equal, V(0), out.lam[k]);
            out.s[k] = select(which & equal, V(0), out.s[k]);
        });
        keep_bounds(t, x, out, which);
        sum_sides(which);
    }

    // The sides of x.active as equalities, the others gone: weights, values, factor.
    OPTLAYER_CALL void factor_active() {
        t.each(a.rows(), [&](int i) { x.D[i] = V(0); x.goal[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) {
            const auto active = x.active[k] > V(0);
            const V hard = system.hard(i);
            x.weight[k] = select(active, hard / fma(x.soft_side(k), hard, V(1)), V(0));
            x.D[i] = x.D[i] + x.weight[k];
            x.goal[i] = select(active, sg * x.h[k], x.goal[i]);
        });
        system.factor(x.D);
    }
    // What is left of their equations, by the data themselves: gd, gp and e, and its sizes.
    struct Left { V dual, primal; };
    OPTLAYER_CALL Left residuals(bool rows_known = false) {  // (C z is in x.v)
        t.each(a.n, [&](int j) { gd[j] = a.q[j]; });
        a.add_Qz(t, out.z, gd);
        a.add_rows_t(t, out.y, gd);
        a.add_At(t, out.nu, gd);
        t.each(a.n, [&](int j) { gd[j] = -gd[j]; });
        a.A_times(t, out.z, gp);
        t.each(a.m, [&](int i) { gp[i] = fma(x.soft_equality, out.nu[i], a.b[i] - gp[i]); });
        if (!rows_known) a.rows_times(t, out.z, x.v);
        const auto off = [&](int i) { return fnma(x.soft_row(i), out.y[i], x.v[i] - x.goal[i]); };
        t.each(a.rows(), [&](int i) { x.e[i] = x.D[i] * off(i); });
        const V dual = t.max(a.n, V(0), [&](int j) { return abs(gd[j]); });
        const V primal = t.max(a.m, V(0), [&](int i) { return abs(gp[i]); });
        return {dual, t.max(a.rows(), primal, [&](int i) { return select(x.D[i] > V(0), x.d[i] * abs(off(i)), V(0)); })};
    }
    // One step of refinement. Returns the lanes whose factor growth has spoilt: they stay where they are.
    template <class M>
    OPTLAYER_CALL M refine(M which) {
        system.kkt(gd, gp, x.e, dz, dnu, x.dy, x.dt);
        M spoilt = which & !which;
        if constexpr (System::proximal) {
            const V sum = t.sum(a.n, [&](int j) { return dz[j]; }) + t.sum(a.m, [&](int i) { return dnu[i]; });
            spoilt = which & !(sum - sum >= V(0)), which = which & !spoilt;
        }
        t.each(a.n, [&](int j) { out.z[j] = select(which, out.z[j] + dz[j], out.z[j]); });
        t.each(a.m, [&](int i) { out.nu[i] = select(which, out.nu[i] + dnu[i], out.nu[i]); });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which & (x.D[i] > V(0)), out.y[i] + x.dy[i], out.y[i]); });
        return spoilt;
    }

    // Active rows become equalities, the others vanish; iterative refinement, beyond `rounds` as long as a residual halves.
    template <class M>
    OPTLAYER_CALL void polish(M which, int rounds) {
        factor_active();
        t.each(x.total(), [&](int k) { x.r[k] = x.active[k]; });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which & !(x.D[i] > V(0)), V(0), out.y[i]); });
        M going = which;
        Left before{V(0), V(0)};
        for (int round = 0; round < 4 * rounds; ++round) {
            const Left now = residuals();
            if (round >= rounds) going = going & halved(now, before);
            if (!any(going)) break;
            before = now;
            refine(going);
        }
        keep_bounds(t, x, out, which);
        if constexpr (System::proximal) system.keep_fixed(out.z, which);
        // signs: what is negative is cut off, and judged by the residuals; what cannot be an equality, as a row of zeros, has none
        a.rows_times(t, out.z, x.v);
        x.each(t, [&](int k, int i, V sg) {
            const auto open = which & (x.v[i] == V(0)) & (x.h[k] > V(0));
            x.active[k] = select(open, V(0), x.active[k]);
            out.lam[k] = select(which, x.active[k] * max(sg * out.y[i], V(0)), out.lam[k]);
        });
        leave_slacks(which);
        rest(which);
        sum_sides(which);
    }
    static auto halved(const Left& now, const Left& before) {
        return (now.dual < V(T(0.5)) * before.dual) | (now.primal < V(T(0.5)) * before.primal);
    }
    // The slacks at C z in x.v: none of the active sides, and 1 where there is no side.
    template <class M>
    OPTLAYER_CALL void leave_slacks(M which) {
        x.each(t, [&](int k, int i, V sg) {
            const V slack = select(x.on[k] > V(0), max(x.h[k] - sg * x.v[i], V(0)), V(1));
            out.s[k] = select(which, select(x.active[k] > V(0), V(0), slack), out.s[k]);
        });
    }
    // Without an objective every feasible point is a solution: its multipliers are zero, where a solve finds their rounding.
    template <class M>
    OPTLAYER_CALL void rest(M which) {
        const auto free = which & (idle > V(0));
        if (!any(free)) return;
        t.each(a.m, [&](int i) { out.nu[i] = select(free, V(0), out.nu[i]); });
        t.each(x.total(), [&](int k) { out.lam[k] = select(free, V(0), out.lam[k]); });
    }
    // y from lam
    template <class M>
    OPTLAYER_CALL void sum_sides(M which) {
        t.each(a.rows(), [&](int i) { row[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) { row[i] = fma(sg, out.lam[k], row[i]); });
        t.each(a.rows(), [&](int i) { out.y[i] = select(which, row[i], out.y[i]); });
    }

    // The active set that the last polish asks for: without what it pulls at, with what it breaks.
    template <class M>
    OPTLAYER_CALL void correct(M which) {
        x.each(t, [&](int k, int i, V sg) {
            const V over = x.on[k] * (sg * x.v[i] - x.h[k]);
            const auto broken = over > V(T(Tuning<T>::broken)) * (abs(x.v[i]) + abs(x.h[k]));
            const auto pulls = (x.r[k] > V(0)) & (out.lam[k] > V(0));
            x.active[k] = select(which, select(broken | pulls, V(1), V(0)), x.active[k]);
        });
    }

    // A polish that bears a wrong active set and rows that depend on each other: the proximal method of multipliers
    // (Rockafellar 1976), whose term is R of the factor about the last point. After each step the active set takes in what is
    // broken and leaves out what pulls (Hintermüller, Ito and Kunisch 2003); where residuals no longer halve, R shrinks.
    // Where it was weak from the start it shrinks as far as it goes: rows that nearly depend on each other have large multipliers,
    // which make much of little. Returns the lanes that it has brought to `exact`.
    template <class M>
    OPTLAYER_CALL M finish(M which, V exact, int most_factors) {
        using S = Tuning<T>;
        const M weak = system.weak > V(0);
        M going = which, stale = which, done = which & !which;
        Left before{V(T(1e30)), V(T(1e30))};
        V steps = V(0), factors = V(0), slow = V(0), unseen = V(0), shrunk = V(0), seen = V(0), cleared = V(0);  // (of each lane, as if it were alone)
        const V side = t.max(a.rows(), Base::limits(), [&](int i) { return x.d[i] * abs(x.v[i]); });
        t.each(a.n, [&](int j) { gd[j] = V(0); });
        a.add_Qz(t, out.z, gd);
        const V force = t.max(a.n, V(0), [&](int j) { return larger(abs(a.q[j]), abs(gd[j])); });
        const auto weigh = [&] {
            if (!any(stale & going)) return;
            factors = select(stale & going, factors + V(1), factors);
            factor_active();
            stale = stale & !going;
        };
        const auto affordable = [&] { return (steps < V(S::most_steps)) & !(stale & (factors >= V(T(most_factors)))); };
        while (any(going = going & affordable())) {
            weigh();
            const Left now = residuals(any(steps > V(0)));
            slow = select(halved(now, before), V(0), slow + V(1));
            // Worth a look: what the largest terms do not see; and what halves for ever, as residuals of a point at zero.
            const auto small = going & !(seen > V(0)) & (now.dual <= V(T(S::rounded_off)) * force) & (now.primal <= V(T(S::rounded_off)) * side);
            seen = select(small, V(1), seen);
            const auto look = going & (small | (slow > V(0)) | (unseen >= V(S::most_unseen)));
            unseen = select(look & !small, V(0), unseen + V(1));
            if (any(look)) {
                keep_bounds(t, x, out, look);
                system.keep_fixed(out.z, look);
                if (any(idle > V(0))) rest(look), sum_sides(look & (idle > V(0)));
                const V error = judge();
                keep(look, error, exact);
                const auto good = error <= exact;
                done = done | (look & good & !weak);
                if (const auto early = done & small & tiny(force); any(early)) {  // (later steps would have made it nothing)
                    const auto worse = early & !clear(early, exact);
                    if (any(worse)) copy(worse, best, out);
                }
                const auto stuck = look & !done & (slow >= V(S::patience));
                const auto cloudy = look & !good & (stuck | ((slow > V(0)) & !(cleared > V(0))));
                cleared = select(cloudy, V(1), cleared);
                if (any(cloudy)) done = done | clear(cloudy, exact);
                const auto weaker = stuck & !done & (shrunk < V(S::shrinks));
                system.shrink(weaker);
                shrunk = select(weaker, shrunk + V(1), shrunk);
                going = going & !done & (weaker | (slow < V(S::patience)));
                slow = select(weaker, V(0), slow), stale = stale | weaker;
            }
            going = going & affordable();
            if (!any(going)) break;
            if (any(look)) weigh(), residuals();
            const auto unmoved = going & (slow > V(0)) & (abs(now.dual - before.dual) <= V(T(S::same_force)) * now.dual);
            before = now;
            const auto spoilt = refine(going);
            if (any(spoilt)) {
                const auto again = system.firmer(spoilt);
                going = going & ((!spoilt) | again), stale = stale | again;
                before = {select(again, V(T(1e30)), before.dual), select(again, V(T(1e30)), before.primal)};
            }
            slow = select(go_far(unmoved & !spoilt), V(0), slow);
            steps = steps + V(1);
            a.rows_times(t, out.z, x.v);
            V changes = V(0);
            x.each(t, [&](int k, int i, V sg) {
                const auto active = x.active[k] > V(0);
                const V over = fnma(V(T(S::broken)), abs(x.v[i]) + abs(x.h[k]), x.on[k] * (sg * x.v[i] - x.h[k]));
                const V now = select(spoilt, x.active[k], select(select(active, sg * out.y[i], over) > V(0), V(1), V(0)));
                changes = changes + abs(now - x.active[k]);
                out.lam[k] = select(going, select(active, now * sg * out.y[i], V(0)), out.lam[k]);
                x.active[k] = select(going, now, x.active[k]);
            });
            t.total(changes);
            stale = stale | (going & (changes > V(0)));
            sum_sides(going);
        }
        if (const auto found = which & weak & (best_error <= exact); any(found)) {
            copy(found, best, out);
            x.each(t, [&](int k, int, V) { x.active[k] = select(found, select(out.lam[k] > V(0), V(1), V(0)), x.active[k]); });
            done = done | found, stale = stale | found;
        }
        if (any(stale & done)) factor_active();
        a.rows_times(t, out.z, x.v);
        leave_slacks(which);
        return done;
    }
    // A force that a step has not changed pulls along a direction in which nothing bends the objective: further along the last
    // step, to the first side in its way. (R lets a step go no farther than the force, which may be tiny, over R.) Returns the
    // lanes that have moved.
    template <class M>
    OPTLAYER_CALL M go_far(M which) {
        if (!any(which)) return which;
        const V slope = t.sum(a.n, [&](int j) { return gd[j] * dz[j]; });
        t.each(a.n, [&](int j) { gd[j] = V(0); });
        a.add_Qz(t, dz, gd);
        const V bend = t.sum(a.n, [&](int j) { return gd[j] * dz[j]; }), far = V(T(Tuning<T>::infinity));
        V reach = select(bend > V(0), slope / max(bend, V(1) / far), far);
        x.each(t, [&](int k, int i, V sg) {
            const V rate = sg * x.dt[i];
            const auto ahead = (x.on[k] > V(0)) & !(x.active[k] > V(0)) & (rate > V(0));
            reach = min(reach, select(ahead, (x.h[k] - sg * x.v[i]) / max(rate, V(1) / far), far));
        });
        t.smallest(reach);
        which = which & (slope > V(0)) & (reach > V(1)) & (reach < far);
        const V more = fma(reach, V(T(1 + 1e-9)), V(-1));  // (beyond the side, so that it counts as broken)
        t.each(a.n, [&](int j) { out.z[j] = select(which, fma(more, dz[j], out.z[j]), out.z[j]); });
        return which;
    }
    // Whether there are multipliers so small beside the forces that they may be none.
    OPTLAYER_CALL mask_of<V> tiny(V force) {
        const V none = V(T(Tuning<T>::cleared)) * force;
        V found = V(0);
        t.each(a.m, [&](int i) { found = max(found, select((out.nu[i] != V(0)) & (abs(out.nu[i]) * a.A_largest(i) <= none), V(1), V(0))); });
        x.each(t, [&](int k, int i, V) { found = max(found, select((out.lam[k] > V(0)) & (out.lam[k] <= none * x.d[i]), V(1), V(0))); });
        return found > V(0);
    }
    // What is zero but for rounding, as zero: forces that nothing asks for, and the variables that Q would feel. (Others keep
    // their rows.) Returns the lanes whose point it makes `exact`.
    template <class M>
    OPTLAYER_CALL M clear(M which, V exact) {
        const V none = V(T(Tuning<T>::cleared));
        const V far = t.max(a.n, V(0), [&](int j) { return abs(out.z[j]); });
        const V force = t.max(a.n, V(0), [&](int j) { return larger(abs(a.q[j]), far * abs(a.curvature(j))); });
        t.each(a.n, [&](int j) { out.z[j] = select(which & (a.Q_largest(j) > V(0)) & (abs(out.z[j]) <= none * far), V(0), out.z[j]); });
        t.each(a.m, [&](int i) { out.nu[i] = select(which & (abs(out.nu[i]) * a.A_largest(i) <= none * force), V(0), out.nu[i]); });
        x.each(t, [&](int k, int i, V) { out.lam[k] = select(which & (out.lam[k] <= none * force * x.d[i]), V(0), out.lam[k]); });
        keep_bounds(t, x, out, which);
        sum_sides(which);
        a.rows_times(t, out.z, x.v);
        leave_slacks(which);
        const V error = judge();
        keep(which, error, exact);
        return which & (error <= exact);
    }
    // The largest residual of `out` beside the largest terms of its kind, in equilibrated units. (Terms that are large beside
    // the data excuse nothing.) And the largest of rows, of forces.
    struct AsOne { V error, far, force; };
    OPTLAYER_CALL AsOne judge_as_one() {
        const V of_gap = Base::look();
        V off = V(0), far = V(0), sides = V(0), pull = V(0), force = V(0), costs = V(0), empty = V(0);
        const auto row = [&](V unit, V largest, V over, V value, V side) {
            off = larger(off, over / unit), far = larger(far, larger(abs(value), abs(side)) / unit), sides = larger(sides, abs(side) / unit);
            empty = larger(empty, select((over > V(0)) & !(largest > V(0)), V(1), V(0)));  // (it has no unit)
        };
        x.each(t, [&](int k, int i, V sg) { row(system.side_unit(i), a.row_largest(i), x.on[k] * (sg * x.v[i] - x.h[k]), x.on[k] * x.v[i], x.on[k] * x.h[k]); });
        t.each(a.m, [&](int i) { row(system.equality_unit(i), a.A_largest(i), abs(gp[i]), gp[i] + a.b[i], a.b[i]); });
        t.each(a.n, [&](int j) {
            const V unit = a.unit(j);
            pull = larger(pull, abs(gd[j]) * unit), force = larger(force, Base::size[j] * unit), costs = larger(costs, abs(a.q[j]) * unit);
        });
        const auto share = [](V left, V terms, V data) {
            const V known = select(data > V(0), min(terms, V(T(Tuning<T>::beside_data)) * data), terms);
            return left / select(known > V(0), known, V(1));
        };
        const V rows = V(T(Tuning<T>::rows_as_one)) * share(off, far, sides);
        const V worst = larger(larger(rows, share(pull, force, costs)), larger(share(out.gap, of_gap, of_gap), empty));
        return {Base::known(worst), far, force};
    }
    template <class M>
    OPTLAYER_CALL void keep_whole(M which) {
        const AsOne now = judge_as_one();
        const auto better = which & (now.error <= whole_error);
        whole_error = select(better, now.error, whole_error);
        if (!any(better)) return;
        copy(better, out, whole);
        const V none = V(T(Tuning<T>::cleared));  // (so that the derivative knows which sides it has)
        x.each(t, [&](int k, int i, V) {
            const V u = system.side_unit(i);
            whole.s[k] = select(better & (out.s[k] <= none * now.far * u), V(0), whole.s[k]);
            whole.lam[k] = select(better & (out.lam[k] * u <= none * now.force), V(0), whole.lam[k]);
        });
    }
    // The best point so far, or the last one of those that are good enough.
    template <class M>
    OPTLAYER_CALL void keep(M which, V error, V enough) {
        const auto better = which & ((error <= best_error) | (error <= enough));
        best_error = select(better, error, best_error);
        if (any(better)) copy(better, out, best);
    }
    // Deep on the central path one of slack and multiplier is far smaller than the other; and without the others' multipliers.
    template <class M>
    OPTLAYER_CALL void separate(M which) {
        x.each(t, [&](int k, int i, V) {
            const V u = system.side_unit(i);
            x.active[k] = select(which, select((x.on[k] > V(0)) & (out.s[k] < u * u * out.lam[k]), V(1), V(0)), x.active[k]);
        });
    }
    template <class M>
    OPTLAYER_CALL void drop_idle(M which) {
        t.each(x.total(), [&](int k) { out.lam[k] = select(which, x.active[k] * out.lam[k], out.lam[k]); });
        keep_bounds(t, x, out, which);
        sum_sides(which);
    }
    template <class M>
    OPTLAYER_CALL void copy(M which, const Point<V>& from, Point<V>& to) {
        const auto all = [&](int count, const V* source, V* target) { t.each(count, [&](int i) { target[i] = select(which, source[i], target[i]); }); };
        all(a.n, from.z, to.z), all(a.m, from.nu, to.nu), all(a.rows(), from.y, to.y), all(x.total(), from.s, to.s), all(x.total(), from.lam, to.lam);
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

    void start() {
        out.iterations = x.count = V(0);
        x.each(t, [&](int k, int, V) {
            x.count = x.count + x.on[k];
            x.active[k] = V(0);
        });
        t.total(x.count);
        look_for_objective();
        system.start(x);
    }
    OPTLAYER_CALL void look_for_objective() {
        const V force = t.max(a.n, V(0), [&](int j) { return max(abs(a.q[j]), abs(a.curvature(j))); });
        idle = select((force > V(0)) | (x.soft > V(0)) | (x.soft_equality > V(0)), V(0), V(1));
    }

#ifndef __CUDACC_RTC__
    // The relaxed problem: lam∘s = aim on every side, and the weights of its derivative.
    void relax(T complementarity, int iterations) {
        const V aim = V(complementarity);
        const auto all = V(0) <= V(0);
        system.aim = aim;
        start();
        loop(all, T(1e-13), iterations, aim);
        take_interior(all);
        weigh_interior(all);
        system.factor(x.D);
        V far = V(0);
        x.each(t, [&](int k, int, V) { far = max(far, x.on[k] * abs(fma(out.s[k], out.lam[k], -aim))); });
        Base::wanted_gap = x.count * aim, Base::pairs = false;
        out.solved = select((judge() <= V(T(1e-9))) & (far <= V(T(1e-6)) * aim), V(1), V(0));
    }

    // Another solver's point, in z, nu and lam of `out`: polished on its active sides, again while that changes which they are;
    // the best is kept.
    void improve(T tolerance, bool with_polish) {
        const V zero = V(0), exact = V(T(Tuning<T>::fine));
        const auto all = zero <= zero;
        look_for_objective(), activate();
        keep(all, judge(), exact);
        auto wanted = with_polish ? !(best_error <= exact) : zero > zero;
        for (int round = 0; round < Tuning<T>::corrections && any(wanted); ++round) {
            polish(wanted, Tuning<T>::polish_rounds);
            const V now = judge();
            keep(wanted, now, exact);
            correct(wanted);
            V changed = zero;
            x.each(t, [&](int k, int, V) { changed = max(changed, abs(x.active[k] - x.r[k])); });
            wanted = wanted & !(now <= exact) & (changed > zero);
        }
        copy(all, best, out);
        out.iterations = zero;
        out.solved = select(judge() <= V(tolerance), V(1), zero);
    }
    // The sides of `out` that have a multiplier larger than their slack, or leave no room: it lies on them, and no other one
    // has a multiplier.
    void activate() {
        a.rows_times(t, out.z, x.v);
        const V none = V(T(Tuning<T>::infinity));
        V far = larger(Base::limits(), t.max(a.n, V(0), [&](int j) { return abs(out.z[j]); }));
        t.each(a.m, [&](int i) { out.nu[i] = select(abs(out.nu[i]) >= V(0), out.nu[i], V(0)); });  // (NaN: there is none)
        V force = t.max(a.m, V(0), [&](int i) { return abs(out.nu[i]); });
        far = select(far > V(0), far, V(1));
        t.each(a.rows(), [&](int i) { x.d[i] = V(1), x.D[i] = -none, x.e[i] = none, out.y[i] = V(0); });
        x.each(t, [&](int k, int i, V sg) {
            const V lam = x.on[k] * out.lam[k];
            out.lam[k] = select(lam > V(0), lam, V(0));
            force = max(force, out.lam[k]);
            x.D[i] = select((x.on[k] > V(0)) & (sg < V(0)), -x.h[k], x.D[i]);
            x.e[i] = select((x.on[k] > V(0)) & (sg > V(0)), x.h[k], x.e[i]);
        });
        x.each(t, [&](int k, int i, V sg) {
            const V slack = x.h[k] - sg * x.v[i];
            const auto active = (x.on[k] > V(0)) & ((out.lam[k] * far > slack * force) | (x.D[i] >= x.e[i]));
            x.active[k] = select(active, V(1), V(0));
            out.lam[k] = select(active, out.lam[k], V(0));
            out.s[k] = select(active, V(0), max(slack, V(0)));
            out.y[i] = fma(sg, out.lam[k], out.y[i]);
        });
        keep_bounds(t, x, out, V(0) <= V(0));
    }
#endif

    // The interior point's multipliers diverge along a proof where nothing is feasible, its points along a ray where nothing
    // bounds the objective:  Q z = 0,  A z = 0,  C z <= 0,  q'z = -1.
    // PRIMAL_INFEASIBLE or DUAL_INFEASIBLE, and the proof in `out`; else 0. After run(), of one QP, no lanes.
    OPTLAYER_CALL int32_t certify(T tol, T most) {
        find_interior();
        if (this->prove(true, row, dnu, tol, most)) return PRIMAL_INFEASIBLE;
        const bool feasible = out.primal <= T(1e3) * tol * (T(1) + Base::limits());  // (judged before)
        return feasible && this->falls(dz, tol, T(1)) ? DUAL_INFEASIBLE : 0;
    }

    // From the start with the other R, where this one has kept the loop from the rows and it was not that none can be reached, of
    // which there is a proof. Returns those lanes.
    template <class M>
    OPTLAYER_CALL M restart(M which) {
        which = which & (held > V(0)) & system.exchangeable();
        if (!any(which)) return which;
        find_interior();
        which = which & !this->prove(which, row, dnu, T(1e-9), T(1e6));
        if (any(which)) system.exchange(which), system.begin(x, which);
        return which;
    }

    // Stops early and polishes; where the active set was not yet right, goes on and tries again. Returns the lanes that are left.
    template <class M>
    OPTLAYER_CALL M approach(M which, V exact, int iterations, bool watched) {
        constexpr int stages = System::proximal ? 4 : 3;
        M open = which;
        for (int stage = 0; stage < stages && any(open); ++stage, watched = false) {
            if constexpr (System::proximal) system.regularise(open);
            loop(open, T(Tuning<T>::stage[stage]), iterations, V(0), watched);
            if constexpr (System::proximal)
                if (watched)
                    if (const auto again = restart(open); any(again)) loop(again, T(Tuning<T>::stage[stage]), iterations);
            take_interior(open);
            if constexpr (System::proximal) {
                const bool last = stage == stages - 1;
                if (stage >= stages - 2) keep_whole(open);
                if (last) separate(open);
                drop_idle(open);
                if (last) keep(open, judge(), exact);
                const M done = finish(open, exact, stage && !System::pivots ? Tuning<T>::most_factors : Tuning<T>::few_factors);
                which = which & !done, open = open & !done & !(whole_error <= exact);
            } else {
                t.each(x.total(), [&](int k) { x.c[k] = x.weight[k]; });  // of the lanes that are done
                polish(open, Tuning<T>::polish_rounds);
                t.each(x.total(), [&](int k) { x.weight[k] = select(open, x.weight[k], x.c[k]); });
                which = open = open & !(judge() <= exact);
            }
        }
        return which;
    }

    void run(T tolerance, int iterations, bool with_polish) {
        const V exact = V(tolerance * T(Tuning<T>::enough));
        const V zero = V(0);
        auto open = zero <= zero, as_one = zero > zero;
        start();
        if (with_polish) {
            open = approach(open, exact, iterations, System::proximal);
            if constexpr (System::proximal)
                if (const auto again = restart(open & !(whole_error <= exact)); any(again)) open = (open & !again) | approach(again, exact, iterations, false);
        }
        // Without: the point of the central path whose gap is a tenth of what is allowed; nearer to the end digits get lost.
        Base::pairs = with_polish;
        if (!with_polish) loop(open, T(Tuning<T>::path), iterations, V(T(0.1) * tolerance) * system.unit * system.unit_dual / max(x.count, V(1)));
        if (any(open)) {  // no active set was confirmed: the interior point as it is, or the best that was found
            const bool kept = System::proximal && with_polish;
            if (kept) {
                copy(open, best, out);
                as_one = open & (best_error > V(tolerance)) & (whole_error < best_error);
                copy(as_one, whole, out);
                as_one = as_one & (whole_error <= V(tolerance));
                if (any(as_one)) find_interior(), as_one = as_one & !this->prove(as_one, row, dnu, T(1e-9), T(1e6));
            } else {
                take_interior(open);
            }
            if (with_polish && !kept) settle_pairs(open, V(tolerance));
            weigh_interior(open);
            system.factor(x.D);
        }
        const V error = judge();
        out.solved = select(error <= V(tolerance), select((error <= exact) & !this->loses_objective(), V(1), V(T(0.5))), select(as_one, V(T(0.5)), zero));
    }
};

}  // namespace optlayer

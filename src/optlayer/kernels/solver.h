// From Args to one group of QPs and back: loads the members of a group (one, or one per lane), runs the
// interior point over the elimination that `plan` chose, stores the answer. The derivative's system likewise.
#pragma once
#include "args.h"
#include "interior.h"
#include "normal.h"
#include "schur.h"
#ifndef __CUDACC_RTC__
#include "active.h"
#endif

namespace optlayer {

// What is decided once for a call, from sizes, sharing and structure.
struct Plan {
    Method method;
    int lanes;           // width of the group: 1 or native
    int n, m, p;         // p: rows of G that are not bounds
    int bounds;          // n when variables have bounds, given or found
    int diagonal;        // Q is diagonal, given or found
    bool shared;         // the batch shares Q, G and A
    bool below, lower, upper;  // whether rows have lower sides, and variables bounds of either kind
    int *kept;           // p rows of G that stay; nullptr: all, and no row is a bound
    int *lower_row, *upper_row;  // row of G that is the bound of variable j, or -1: the user's own
    bool whole;          // the active-set method forms all of M
    size_t keep_bytes, work_bytes, shared_bytes, shared_scratch;

#ifdef __CUDACC_RTC__  // no structure is looked for
    int kept_row(int k) const { return k; }
    int bound_row(int, bool) const { return -1; }
#else
    int kept_row(int k) const { return kept ? kept[k] : k; }
    int bound_row(int j, bool upper) const { return kept ? (upper ? upper_row : lower_row)[j] : -1; }
#endif
    int rows() const { return p + bounds; }
    int sides() const { return p + (below ? p : 0) + (lower ? n : 0) + (upper ? n : 0); }
};

template <class T>
struct View {  // a tensor of Args, typed
    T* data;
    int64_t stride;
    View(const Tensor& x) : data(static_cast<T*>(x.data)), stride(x.stride) {}
    T* of(int64_t member) const { return data + member * stride; }
    explicit operator bool() const { return data != nullptr; }
};

template <class T>
T huge() { return std::is_same<T, float>::value ? T(3.4e38) : T(1.7e308); }

// V: value of the group. U: T when matrices are shared, V otherwise.
template <class V, class U, class Tm = Solo<V>, class D = Data<V, U>>
struct Group {
    using T = scalar_of<V>;
    static constexpr int W = lanes_of<V>;

    const Args& g;
    const Plan& plan;
    Tm t;
    D a{};
    Sides<V> x{};
    Point<V> out{};
    int64_t member[W];
    int count = 0;
    bool converged[W];  // whether `adjoint` has found the derivative of each lane

    Group(const Args& args, const Plan& p, const Tm& team = Tm()) : g(args), plan(p), t(team) {}

    void choose_members(int64_t first) {
        count = int(g.batch - first < W ? g.batch - first : W);
        for (int l = 0; l < W; ++l) member[l] = first + (l < count ? l : count - 1);  // spare lanes repeat the last
    }

    template <class Get>
    void fill(V* dst, int n, Get&& get) const {  // dst[i] lane l = get(l, i)
        T* raw = reinterpret_cast<T*>(dst);
        for (int l = 0; l < W; ++l) t.each(n, [&](int i) { raw[size_t(i) * W + l] = get(member[l], i); });
    }
    void load(V* dst, const Tensor& from, int n) const {
        const View<const T> v{from};
        T* raw = reinterpret_cast<T*>(dst);
        for (int l = 0; l < W; ++l) {
            const T* src = v.of(member[l]);
            t.each(n, [&](int i) { raw[size_t(i) * W + l] = src[i]; });
        }
    }
    void store(const V* src, const Tensor& to, int n) const {
        const View<T> v{to};
        const T* raw = reinterpret_cast<const T*>(src);
        for (int l = 0; l < count; ++l) {
            T* dst = v.of(member[l]);
            t.each(n, [&](int i) { dst[i] = raw[size_t(i) * W + l]; });
        }
    }

    // Matrices of the group. Shared ones are prepared once (see Shared) and only referred to.
    void place_matrices(Arena& w, const U* Q, const U* G, const U* A) {
        a.n = plan.n, a.m = plan.m, a.p = plan.p, a.bounds = plan.bounds, a.diagonal = plan.diagonal;
        V *q = w.take<V>(a.n), *b = w.take<V>(a.m);
        a.q = q, a.b = b;
        if (plan.shared) {
            a.Q = Q, a.G = G, a.A = A;
            return;
        }
        a.Q = w.take<U>(plan.diagonal ? a.n : size_t(a.n) * a.n);
        a.G = w.take<U>(in_place_G() ? 0 : size_t(a.n) * a.p), a.A = w.take<U>(in_place_A() ? 0 : size_t(a.n) * a.m);
    }
    // On a CPU a QP alone reads the user's memory where its layout is ours.
    static constexpr bool in_place = std::is_same<T, U>::value && std::is_same<Tm, Solo<V>>::value;
    bool in_place_G() const { return in_place && (!plan.kept || plan.p == g.p); }
    bool in_place_A() const { return in_place; }

    void load_matrices(bool with_Q = true) {
        if constexpr (std::is_same<U, V>::value) {
            if (plan.shared) return;
            if constexpr (in_place) {
                if (in_place_G()) a.G = View<const T>(g.G).of(member[0]);
                if (in_place_A()) a.A = View<const T>(g.A).of(member[0]);
                const T* Q = View<const T>(g.Q).of(member[0]);
                if (g.diagonal || (with_Q && !plan.diagonal && symmetric(Q))) a.Q = Q, with_Q = false;
            }
            copy_matrices(with_Q ? const_cast<V*>(a.Q) : nullptr, in_place_G() ? nullptr : const_cast<V*>(a.G),
                          in_place_A() ? nullptr : const_cast<V*>(a.A));
        }
    }
#ifndef __CUDACC_RTC__
    bool symmetric(const T* Q) const {
        constexpr int block = 16;
        const int n = plan.n;
        T mirrored[block * block];
        for (int j = 0; j < n; j += block)
            for (int i = j; i < n; i += block) {
                const int columns = n - j < block ? n - j : block, rows = n - i < block ? n - i : block;
                t.transpose(columns, rows, Q + size_t(i) * n + j, n, mirrored, block);
                for (int c = 0; c < columns; ++c)
                    if (std::memcmp(Q + size_t(j + c) * n + i, mirrored + c * block, rows * sizeof(T))) return false;
            }
        return true;
    }
#endif
    void copy_matrices(V* Q, V* G, V* A) const {  // absent: not wanted
        const int n = plan.n;
        copy_Q(Q);
        T* rG = reinterpret_cast<T*>(G);
        for (int l = 0; l < W; ++l) {
            const T* rows = View<const T>(g.G).of(member[l]);
            if (G) t.each_pair(n, plan.p, [&](int j, int r) {
                rG[(size_t(r) * n + j) * W + l] = rows[size_t(plan.kept_row(r)) * n + j];
            });
        }
        if (A && plan.m) load(A, g.A, n * plan.m);
    }
    void copy_Q(V* Q) const {
        const int n = plan.n;
        T* rQ = reinterpret_cast<T*>(Q);
        for (int l = 0; l < W; ++l) {
            const T* src = View<const T>(g.Q).of(member[l]);
            if (!Q) {
            } else if (g.diagonal) {
                t.each(n, [&](int j) { rQ[size_t(j) * W + l] = src[j]; });
            } else if (plan.diagonal) {
                t.each(n, [&](int j) { rQ[size_t(j) * W + l] = src[size_t(j) * n + j]; });
            } else {  // the symmetric part
                t.each_lower(n, [&](int j, int i) {
                    const T v = T(0.5) * (src[size_t(i) * n + j] + src[size_t(j) * n + i]);
                    rQ[(size_t(j) * n + i) * W + l] = v, rQ[(size_t(i) * n + j) * W + l] = v;
                });
            }
        }
    }

    // Row of G times the solution.
    T row_value(int64_t mem, int row) const { return a.row_value(View<const T>(g.G).of(mem), row, View<const T>(g.z).of(mem)); }
    // Coefficient of a row of G that is a bound of variable j.
    T coefficient(int64_t mem, int row, int j) const { return View<const T>(g.G).of(mem)[size_t(row) * plan.n + j]; }

    void place_sides(Arena& keep, Arena& work) {
        x.p = plan.p, x.below = plan.below ? plan.p : 0, x.base = plan.p;
        x.lower = plan.lower ? plan.n : 0, x.upper = plan.upper ? plan.n : 0;
        x.place(keep, work);
        out.place(work, plan.n, plan.m, plan.rows(), plan.sides());
    }

    // get(member, side) for every side: `from_row` of (member, row of G, size of the coefficient that a found bound is
    // divided by, whether it is the row's lower side), `from_bound` of (member, variable, whether it is the upper bound).
    template <class Rows, class Bound>
    void fill_sides(V* dst, Rows&& from_row, Bound&& from_bound) const {
        fill(dst, plan.p, [&](int64_t mem, int k) { return from_row(mem, plan.kept_row(k), T(1), false); });
        if (plan.below) fill(dst + plan.p, plan.p, [&](int64_t mem, int k) { return from_row(mem, plan.kept_row(k), T(1), true); });
        auto bound = [&](V* d, bool upper) {
            fill(d, plan.n, [&](int64_t mem, int j) {
                const int row = plan.bound_row(j, upper);
                if (row < 0) return from_bound(mem, j, upper);
                const T c = coefficient(mem, row, j);
                return from_row(mem, row, c < T(0) ? -c : c, upper == (c < T(0)));
            });
        };
        if (plan.lower) bound(dst + x.first_lower(), false);
        if (plan.upper) bound(dst + x.first_upper(), true);
    }

    void load_sides() {
        const View<const T> h(g.h), h_lower(g.h_lower), lb(g.lb), ub(g.ub);
        fill_sides(
            x.h, [&](int64_t mem, int r, T c, bool below) {
                if (!below) return h.of(mem)[r] / c;
                return h_lower ? -h_lower.of(mem)[r] / c : huge<T>() * T(2);
            },
            [&](int64_t mem, int j, bool upper) {
                if (upper) return ub ? ub.of(mem)[j] : huge<T>() * T(2);
                return lb ? -lb.of(mem)[j] : huge<T>() * T(2);
            });
        t.each(x.total(), [&](int k) {  // +inf: no constraint. -inf or NaN stay and spoil this member alone.
            const auto finite = !(x.h[k] > V(huge<T>()));
            x.on[k] = select(finite, V(1), V(0));
            x.h[k] = select(finite, x.h[k], V(0));
        });
    }

    // 1 in the lanes whose derivative needs a factor of another active set than the solve has left. `weighed`: by weights.
    V astray(const V* lam, bool weighed) const {
        if (!weighed && !(plan.below || (plan.lower && plan.upper))) return V(0);
        V found = V(0);
        x.each(t, [&](int k, int, V) {
            auto is = x.idle_equality(k, lam);
            if (weighed) is = is | x.spurious(k, lam);
            found = max(found, select(is, V(1), V(0)));
        });
        t.largest(found);
        return found;
    }

    // The tensors that a value of each side goes to.
    struct Homes { Tensor rows, below, lb, ub; };

    void store_sides(const V* src, const Homes& to, bool divide) const {
        const View<T> r(to.rows), b(to.below), l(to.lb), u(to.ub);
        const T* raw = reinterpret_cast<const T*>(src);
        for (int ln = 0; ln < count; ++ln) {
            const int64_t mem = member[ln];
            t.each(plan.p, [&](int k) { r.of(mem)[plan.kept_row(k)] = raw[size_t(k) * W + ln]; });
            if (plan.below && b) t.each(plan.p, [&](int k) { b.of(mem)[plan.kept_row(k)] = raw[size_t(plan.p + k) * W + ln]; });
            for (int upper = 0; upper < 2; ++upper) {
                if (!(upper ? plan.upper : plan.lower)) continue;
                const View<T>& own = upper ? u : l;
                const T* from = raw + size_t(upper ? x.first_upper() : x.first_lower()) * W + ln;
                t.each(plan.n, [&](int j) {
                    const T v = from[size_t(j) * W];
                    const int row = plan.bound_row(j, upper);
                    if (row >= 0) {
                        T c = coefficient(mem, row, j);
                        const View<T>& home = bool(upper) == (c < T(0)) ? b : r;
                        c = c < T(0) ? -c : c;
                        if (home) home.of(mem)[row] = divide ? v / c : v * c;
                    } else if (own) {
                        own.of(mem)[j] = v;
                    }
                });
            }
        }
    }

    void load_vectors() {
        load(const_cast<V*>(a.q), g.q, plan.n);
        if (plan.m) load(const_cast<V*>(a.b), g.b, plan.m);
    }

    // How large the terms of an infeasible problem's proof may be, relative to its value: the data may be rounded.
    T most_terms() const { return T(g.single ? 1e3 : 1e6); }

    template <class System, class Bad>
    void solve(System& system, Arena& work, Bad bad) {
        Interior<Tm, V, U, System, D> ip(t, a, system, x, out);
        ip.equilibrated = System::proximal, ip.several |= g.given != 0;
        ip.place(work);
        if (!work.base) return;
#ifndef __CUDACC_RTC__
        if (g.smoothing > 0) {
            ip.relax(T(g.smoothing), g.max_iterations);
            out.solved = select(bad, V(0), out.solved);
            return store_answer();
        }
        if constexpr (std::is_same<T, double>::value)  // a given point is improved in double alone
            if (g.given) {
                load_point();
                ip.improve(T(g.tolerance), g.polish != 0);
                out.solved = select(bad, V(0), out.solved);
                if (g.single == 2) round_answer(ip, x, out);
                return store_answer();
            }
#endif
        ip.run(T(g.tolerance), g.max_iterations, g.polish != 0);
        out.solved = select(bad, V(0), out.solved);
        int32_t proof = 0;
#ifndef __CUDACC_RTC__
        if (g.single == 2) round_answer(ip, x, out);
        if constexpr (W == 1)
            if (!(out.solved > V(0))) proof = ip.certify(T(1e-9), most_terms());
#endif
        store_answer();
        if (proof) View<int32_t>(g.status).of(member[0])[0] = proof;
    }

#ifndef __CUDACC_RTC__
    static constexpr bool mixed = std::is_same<V, float>::value;  // factors in float, residuals and refinement in double

    template <class Bad>
    void solve(Active<Tm, V, U>& system, Arena& work, Bad bad) {
        Verdict<Tm, V, U> judge(t, a, x, out);
        judge.place(work);
        if (work.base) {
            system.run(judge, x, out, bad, count, T(g.tolerance), g.max_iterations < usual_iterations ? g.max_iterations : 1 << 30);
            if (g.single == 2) round_answer(judge, x, out);
            if (!mixed) system.certify(judge, out, most_terms());
        }
        if constexpr (mixed) refine_in_double(system, work);
        if (work.base) store_answer();
    }
    // What float has not brought to the tolerance: the same matrices and factors, but vectors and residuals in double.
    void refine_in_double(Active<Tm, V, U>& system, Arena& work) {
        double *q = work.take<double>(a.n), *b = work.take<double>(a.m);
        Data<double, U> data = wide_matrices();
        data.q = q, data.b = b;
        Sides<double> sides{};
        sides.p = x.p, sides.below = x.below, sides.base = x.base, sides.lower = x.lower, sides.upper = x.upper;
        sides.place(work, work);
        Point<double> point{};
        point.place(work, a.n, a.m, plan.rows(), plan.sides());
        const Solo<double> team;
        Verdict<Solo<double>, double, U> judge(team, data, sides, point);
        judge.place(work);
        if (!work.base || out.solved > V(0) || !(system.found > V(0))) return;
        const auto copy = [&](auto* to, const auto* from, int items) {
            t.each(items, [&](int i) { to[i] = std::decay_t<decltype(*to)>(from[i]); });
        };
        copy(q, a.q, a.n), copy(b, a.b, a.m), copy(sides.h, x.h, x.total()), copy(sides.on, x.on, x.total());
        copy(point.z, out.z, a.n), copy(point.nu, out.nu, a.m), copy(point.y, out.y, plan.rows());
        system.refine(judge, sides, point, T(g.tolerance));
        round_answer(judge, sides, point);
        copy(out.z, point.z, a.n), copy(out.nu, point.nu, a.m), copy(out.s, point.s, x.total()), copy(out.lam, point.lam, x.total());
        out.primal = T(point.primal), out.dual = T(point.dual), out.gap = T(point.gap), out.solved = T(point.solved);
    }
    Data<double, U> wide_matrices() const { return {a, a.Q, a.G, a.A, nullptr, nullptr, a.bounds}; }

    // The answer as its receiver will have it, in float32: judged after rounding.
    template <class Judge, class X>
    void round_answer(Judge& judge, const Sides<X>& sides, Point<X>& point) {
        using R = scalar_of<X>;
        auto round = [&](X* v, int items) {
            R* raw = reinterpret_cast<R*>(v);
            for (size_t i = 0; i < size_t(items) * W; ++i) raw[i] = R(float(raw[i]));
        };
        round(point.z, plan.n), round(point.nu, plan.m), round(point.lam, plan.sides());
        t.each(plan.rows(), [&](int i) { point.y[i] = X(0); });
        sides.each(t, [&](int k, int i, X sg) { point.y[i] = fma(sg, point.lam[k], point.y[i]); });
        const X tolerance = X(R(g.tolerance));
        judge.expect_rounded();
        point.solved = select(judge.judge() <= tolerance, point.solved, X(0));
    }
#endif

    // h - G z; of a row that is a bound from whichever side it is.
    void store_slacks(const V* s) const { store_sides(s, {g.s, {nullptr, 0}, {nullptr, 0}, {nullptr, 0}}, false); }

    // After a solve: the lanes whose derivative its factor can find.
    void factor_serves(bool* lanes, bool weighed) const {
        const V wrong = astray(out.lam, weighed);
        for (int l = 0; l < W; ++l) lanes[l] = !(lane(wrong, l) > T(0));
    }

    void store_answer() const {
        store(out.z, g.z, plan.n);
        if (plan.m) store(out.nu, g.nu, plan.m);
        V* s = out.s;
        t.each(x.total(), [&](int k) {
            s[k] = select(x.on[k] > V(0), s[k], V(huge<T>() * T(2)));  // the slack of no constraint is infinite
        });
        store_slacks(s);
        store_sides(out.lam, {g.lam, g.lam_lower, g.lam_lb, g.lam_ub}, true);
        t.one([&] {
            for (int l = 0; l < count; ++l) {
                const int64_t mem = member[l];
                View<int32_t>(g.status).of(mem)[0] = lane(out.solved, l) > T(0.5) || (lane(out.solved, l) > T(0) && (g.single || !g.polish)) ? SOLVED
                    : lane(out.solved, l) > T(0)                                ? ROUGH
                    : lane(out.proven, l) > T(0)                                ? PRIMAL_INFEASIBLE
                    : lane(out.iterations, l) >= T(g.max_iterations)            ? MAX_ITERATIONS
                                                                                : NUMERICAL_ERROR;
                View<int32_t>(g.iterations).of(mem)[0] = int32_t(lane(out.iterations, l));
                View<T>(g.primal_residual).of(mem)[0] = lane(out.primal, l);
                View<T>(g.dual_residual).of(mem)[0] = lane(out.dual, l);
                View<T>(g.gap).of(mem)[0] = lane(out.gap, l);
            }
        });
    }

    // ---- the derivative's system --------------------------------------------------------------------------------
    void zero_unsolved(V* vz, V* vnu, V* vk) const {  // they have no derivative
        for (int l = 0; l < W; ++l) {
            if (View<const int32_t>(g.status).of(member[l])[0] == SOLVED) continue;
            t.each(plan.n, [&](int j) { set_lane(vz[j], l, T(0)); });
            t.each(plan.m, [&](int i) { set_lane(vnu[i], l, T(0)); });
            t.each(plan.sides(), [&](int k) { set_lane(vk[k], l, T(0)); });
        }
    }
    // The multipliers of the sides, in the units of found bounds.
    void load_multipliers(V* lam) const {
        const View<const T> rows(g.lam), below(g.lam_lower), lower(g.lam_lb), upper(g.lam_ub);
        const auto of = [](const View<const T>& x, int64_t mem, int i) { return x ? x.of(mem)[i] : T(0); };
        fill_sides(
            lam, [&](int64_t mem, int r, T c, bool under) { return of(under ? below : rows, mem, r) * c; },
            [&](int64_t mem, int j, bool up) { return of(up ? upper : lower, mem, j); });
    }
    void load_point() {
        load(out.z, g.z, plan.n);
        if (plan.m) load(out.nu, g.nu, plan.m);
        load_multipliers(out.lam);
    }
    // The right-hand side of the sides, in the units of found bounds.
    void load_side_rhs(V* rk) const {
        const View<const T> rl(g.r_lam), rbelow(g.r_lower), rlo(g.r_lb), rup(g.r_ub);
        fill_sides(
            rk, [&](int64_t mem, int r, T c, bool below) {
                const View<const T>& from = below ? rbelow : rl;
                return from ? from.of(mem)[r] / c : T(0);
            },
            [&](int64_t mem, int j, bool up) {
                return up ? (rup ? rup.of(mem)[j] : T(0)) : (rlo ? rlo.of(mem)[j] : T(0));
            });
    }

#ifndef __CUDACC_RTC__
    // Active rows are equalities: one solve with the factor that pivoting ended with.
    void adjoint(Active<Tm, V, U>& system, Arena& w, bool) {
        const int n = plan.n, m = plan.m, R = plan.rows(), S = plan.sides();
        V *rz = w.take<V>(n), *rnu = w.take<V>(m), *rk = w.take<V>(S), *goal = w.take<V>(R);
        V *vz = w.take<V>(n), *vnu = w.take<V>(m), *vk = w.take<V>(S), *vy = w.take<V>(R);
        typename Active<Tm, V, U>::Sums sums{};
        if (mixed) sums.place(w, n, m, R);
        if (!w.base) return;
        t.each(n, [&](int j) { rz[j] = V(0); });
        t.each(m, [&](int i) { rnu[i] = V(0); });
        if (g.r_z.data) load(rz, g.r_z, n);
        if (g.r_nu.data && m) load(rnu, g.r_nu, m);
        t.each(R, [&](int i) { goal[i] = V(0); });
        system.mark_sides();
        const bool sides = g.r_lam.data || g.r_lower.data || g.r_lb.data || g.r_ub.data;
        if (sides) {
            load_side_rhs(rk);
            x.each(t, [&](int k, int i, V sg) {
                for (int l = 0; l < W; ++l)
                    if (system.side_of(i, l) * lane(sg, l) > T(0)) set_lane(goal[i], l, lane(sg * rk[k], l));
            });
        }
        for (int l = 0; l < W; ++l) converged[l] = true;
        if (!mixed || !system.refined()) {
            system.kkt(rz, rnu, goal, vz, vnu, vy);
        } else if constexpr (mixed) {
            load_matrices();  // Q as well
            converged[0] = system.kkt_refined(wide_matrices(), sums, rz, rnu, goal, vz, vnu, vy);
        }
        x.each(t, [&](int k, int i, V sg) {
            vk[k] = V(0);
            for (int l = 0; l < W; ++l)
                if (system.side_of(i, l) * lane(sg, l) > T(0)) set_lane(vk[k], l, lane(sg * vy[i], l));
        });
        zero_unsolved(vz, vnu, vk);
        store(vz, g.v_z, n);
        if (m) store(vnu, g.v_nu, m);
        store_sides(vk, {g.v_lam, g.v_lower, g.v_lb, g.v_ub}, true);
    }
#endif
    template <class System>
    void adjoint(System& system, Arena& w, bool rebuild) {
        const int n = plan.n, m = plan.m, R = plan.rows(), S = plan.sides();
        V *rz = w.take<V>(n), *rnu = w.take<V>(m), *rk = w.take<V>(S), *s = w.take<V>(S), *lam = w.take<V>(S);
        V *vz = w.take<V>(n), *vnu = w.take<V>(m), *vk = w.take<V>(S), *vy = w.take<V>(R), *vt = w.take<V>(R);
        V *gz = w.take<V>(n), *gnu = w.take<V>(m), *rho = w.take<V>(S), *dz = w.take<V>(n), *dnu = w.take<V>(m);
        V* terms = w.take<V>(System::proximal ? 0 : n);  // of each variable's stationarity
        V *before = w.take<V>(System::proximal ? n + m + S : 0), *units = w.take<V>(System::proximal ? n + m + S : 0);
        if (!w.base) return;
        auto zero = [&](V* v, int c) { t.each(c, [&](int i) { v[i] = V(0); }); };
        zero(rz, n), zero(rnu, m), zero(vz, n), zero(vnu, m), zero(vk, S);
        if (g.r_z.data) load(rz, g.r_z, n);
        if (g.r_nu.data && m) load(rnu, g.r_nu, m);
        const View<const T> ps(g.s), pz(g.z), lb(g.lb), ub(g.ub), h_lower(g.h_lower);
        load_side_rhs(rk);
        load_multipliers(lam);
        fill_sides(
            s, [&](int64_t mem, int r, T c, bool below) {
                if (!below) return ps.of(mem)[r] / c;
                return h_lower ? larger(row_value(mem, r) - h_lower.of(mem)[r], T(0)) / c : T(1);
            },
            [&](int64_t mem, int j, bool up) {
                const T z = pz.of(mem)[j];
                if (up) return ub ? max(ub.of(mem)[j] - z, T(0)) : T(1);
                return lb ? max(z - lb.of(mem)[j], T(0)) : T(1);
            });
        if (g.smoothing > 0)  // more exact than differences of rounded numbers; 0 where lb = ub
            t.each(S, [&](int k) { s[k] = select((lam[k] > V(0)) & (s[k] > V(0)), V(T(g.smoothing)) / lam[k], s[k]); });
        if (rebuild) {  // weights from the point alone
            load_sides();
            zero(x.D, R);
            x.each(t, [&](int k, int i, V) {
                const V weight = min(lam[k] / max(s[k], V(T(Tuning<T>::least_slack))), system.hard(i));
                x.weight[k] = select(x.idle_equality(k, lam), system.hard(i), weight);
                x.D[i] = x.D[i] + x.weight[k];
            });
            system.factor(x.D);
        }
        // σ C v_z - w v_k = r_k where w = s/lam, or 0 on the confirmed active set
        const int least = 3, most = System::proximal ? 40 : 12;  // rounds of refinement, as long as the residual halves
        [[maybe_unused]] const V falling = V(T(0.9)), grown = V(T(10));  // a change still falls below so much of the last; a step beyond so much of the first
        using Judge = Verdict<Tm, V, U, D>;
        struct Part { int count; V *rhs, *left, *v, *before, *unit; };
        const Part parts[] = {{n, rz, gz, vz, before, units}, {m, rnu, gnu, vnu, before + n, units + n}, {S, rk, rho, vk, before + n + m, units + n + m}};
        const Part &of_z = parts[0], &of_nu = parts[1], &of_k = parts[2];
        // Residuals are relative: of stationarity to r_z and Q v_z, of the rows to their right-hand sides and to what v_z does
        // to them, so that the units of the objective do not matter; in units of the variables and rows where the system knows
        // them. Else each entry of stationarity is small beside its own terms as well, or it is not seen beside one in larger units.
        if constexpr (System::proximal) {
            t.each(n, [&](int j) { units[j] = system.scale[j]; });
            t.each(m, [&](int i) { units[n + i] = system.scale[n + a.p + i]; });
            x.each(t, [&](int k, int i, V) { units[n + m + k] = V(1) / system.side_unit(i); });
        }
        const auto size = [&](const Part& part, const V* v) {
            return t.max(part.count, V(0), [&](int e) {
                if constexpr (System::proximal) return abs(v[e]) * part.unit[e];
                else return abs(v[e]);
            });
        };
        const auto moves = [&](int i) {
            if constexpr (System::proximal) return abs(vt[i]) / system.side_unit(i);
            else return abs(vt[i]);
        };
        V force = size(of_z, rz), move = max(size(of_nu, rnu), size(of_k, rk));
        [[maybe_unused]] const auto of_rows = move > V(T(0));
        auto relative = [&](V z, V nu, V k) { return max(Judge::relative(z, force), Judge::relative(max(nu, k), move)); };
        auto residual = [&](bool zeros) {
            zero(vy, R), zero(gz, n), zero(gnu, m), zero(vt, R), zero(x.e, R);
            x.each(t, [&](int k, int i, V sg) { vy[i] = fma(sg, vk[k], vy[i]); });
            if (!zeros) {
                a.add_Qz(t, vz, gz);
                force = max(force, size(of_z, gz));
                if constexpr (!System::proximal) t.each(n, [&](int j) { terms[j] = abs(rz[j]) + abs(gz[j]); });
                a.add_rows_t(t, vy, gz);
                if constexpr (!System::proximal) t.each(n, [&](int j) { terms[j] = max(terms[j], abs(gz[j])); });
                a.add_At(t, vnu, gz);
                if (m) a.A_times(t, vz, gnu);
                a.rows_times(t, vz, vt);
                move = max(move, max(size(of_nu, gnu), t.max(R, V(0), moves)));
            }
            t.each(n, [&](int j) { gz[j] = rz[j] - gz[j]; });
            t.each(m, [&](int i) { gnu[i] = rnu[i] - gnu[i]; });
            x.each(t, [&](int k, int i, V sg) {
                const V soft = select(lam[k] > V(0), s[k] / max(lam[k], V(T(1e-37))), V(0));
                const V off = fma(soft, vk[k], rk[k] - sg * vt[i]);
                rho[k] = select(x.weight[k] > V(0), off, V(0));
                x.e[i] = fnma(sg * x.weight[k], rho[k], x.e[i]);
            });
            const V now = relative(size(of_z, gz), size(of_nu, gnu), size(of_k, rho));
            if constexpr (!System::proximal)
                if (!zeros) {
                    const V own = t.max(n, V(0), [&](int j) { return Judge::relative(abs(gz[j]), terms[j]); });
                    return max(now, select(own > V(T(Tuning<T>::fine)), own, V(0)));
                }
            return now;
        };
        // A row's residual beside its own terms, to which belongs by how much the change of its multiplier, relative, would move
        // it: of a vertex, where v_z is zero, no others are left. In units of the rows the largest of both are compared.
        auto misses_of_rows = [&] {
            load(out.z, g.z, n);
            if (m) load(out.nu, g.nu, m);
            V worst = V(0), largest = V(0);
            const auto look = [&](const Part& part, int e, V of_v, V of_z, V multiplier) {
                const V moved = select(multiplier != V(0), of_z * abs(part.v[e] / multiplier), V(0));
                const V miss = abs(part.left[e]), terms = abs(part.rhs[e]) + of_v + moved;
                if constexpr (System::proximal) worst = max(worst, miss * part.unit[e]), largest = max(largest, terms * part.unit[e]);
                else worst = max(worst, Judge::relative(miss, terms));
            };
            t.each(m, [&](int i) { look(of_nu, i, a.A_size(i, vz), a.A_size(i, out.z), out.nu[i]); });
            x.each(t, [&](int k, int i, V) { look(of_k, k, a.row_size(i, vz), a.row_size(i, out.z), lam[k]); });
            t.largest(worst), t.largest(largest);
            return System::proximal ? Judge::relative(worst, largest) : worst;
        };
        const V far = V(T(Tuning<T>::infinity)), half = V(T(0.5));
        V left = far, change = far;  // the residual before the last round; how far that has moved it
        V first = V(0);              // the length of the first step
        auto going = left > V(0);
        for (int round = 0; round < most; ++round) {
            V now = residual(round == 0);
            auto slow = !(now < half * left);
            if constexpr (System::proximal) {
                const V last = change;
                const auto moved = [&](const Part& part) {
                    return t.max(part.count, V(0), [&](int e) { return abs(part.left[e] - part.before[e]) * part.unit[e]; });
                };
                if (round) change = relative(moved(of_z), moved(of_nu), moved(of_k));
                const auto settled = !(change < falling * last);
                // What rounds do not move is the part of the right-hand side outside the system's range, along directions in
                // which nothing determines the solution. It is taken off, and the rest solved anew, from zero and so of least norm.
                const auto outside = going & settled & (now > V(T(Tuning<T>::exact))) & (change <= system.unmoved * now);
                if (any(outside)) {
                    for (const Part& part : parts)
                        t.each(part.count, [&](int e) {
                            part.rhs[e] = select(outside, part.rhs[e] - part.left[e], part.rhs[e]);
                            part.v[e] = select(outside, V(0), part.v[e]);
                        });
                    now = residual(false);
                    left = select(outside, far, left), change = select(outside, far, change);
                }
                slow = slow & !outside & (settled | (now <= V(T(Tuning<T>::converged))));
            }
            const auto exact = going & (now <= V(T(Tuning<T>::exact)));
            left = select(exact, now, left);
            going = going & !exact;
            if (round >= least) going = going & !slow;
            if (!any(going)) break;
            left = select(going, now, left);
            if constexpr (System::proximal)
                for (const Part& part : parts) t.each(part.count, [&](int e) { part.before[e] = part.left[e]; });
            system.kkt(gz, gnu, x.e, dz, dnu, x.dy, x.dt);
            // A factor that growth has spoilt makes each step larger than the one before, and residuals small beside them.
            const V length = t.max(n, V(0), [&](int j) { return abs(dz[j]) / a.unit(j); });
            if (!round) first = length;
            const auto spoilt = going & !(length <= grown * first);
            left = select(spoilt, far, left), going = going & !spoilt;
            t.each(n, [&](int j) { vz[j] = select(going, vz[j] + dz[j], vz[j]); });
            t.each(m, [&](int i) { vnu[i] = select(going, vnu[i] + dnu[i], vnu[i]); });
            x.each(t, [&](int k, int i, V sg) { vk[k] = select(going, fma(x.weight[k], sg * x.dt[i] - rho[k], vk[k]), vk[k]); });
        }
        // refinement that does not converge is no answer: who calls must do better
        auto found = left <= V(T(Tuning<T>::converged));
        if constexpr (System::proximal) {
            // At a point of the central path that was judged as one, v_z may be nothing, as at a vertex: rows are seen beside their multipliers.
            V between = V(0);
            x.each(t, [&](int k, int i, V) { between = max(between, select((x.weight[k] > V(0)) & (x.weight[k] < half * system.hard(i)), V(1), V(0))); });
            if (g.smoothing == 0) found = found | ((between > V(0)) & (left < far) & (size(of_z, gz) <= V(T(Tuning<T>::converged)) * force));
        }
        if (any(found)) found = found & (misses_of_rows() <= V(T(Tuning<T>::converged)));
        if constexpr (System::proximal) found = found & (system.determined(rz, vz) | of_rows);
        for (int l = 0; l < W; ++l) converged[l] = lane(found, l);
        zero_unsolved(vz, vnu, vk);
        store(vz, g.v_z, n);
        if (m) store(vnu, g.v_nu, m);
        store_sides(vk, {g.v_lam, g.v_lower, g.v_lb, g.v_ub}, true);
    }
};

}  // namespace optlayer

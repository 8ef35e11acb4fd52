// One QP on a team of a GPU, from Args to the answer; and, by the same code without data, how much room that takes.
// The kernels of entry.cu, the planning in csrc/device.cpp and the emulation in csrc/tests/ all run what stands here.
#pragma once
#include "machine.h"
#include "solver.h"

#ifndef OPTLAYER_SCHUR
#define OPTLAYER_SCHUR 1  // 0: NORMAL and DIAGONAL alone, half as much to compile
#endif

namespace optlayer {

// What is decided on the host for one call, from sizes and sharing alone: no data are read.
struct DevicePlan {
    void* shared_block;     // what the batch shares, prepared; in the factor tensor when that is kept
    void* scratch;          // slow_bytes for each team
    int64_t shared_bytes;   // 0: nothing is shared, nothing to prepare
    int64_t prepare_bytes;  // scratch of the preparation
    int64_t fast_bytes;     // shared memory of a team (one thread: local memory)
    int64_t vector_bytes;   // of these set aside for vectors
    int64_t slow_bytes;     // global scratch of a team
    int64_t keep_bytes;     // of a member in the factor tensor
    int64_t factor_bytes;   // of the factor tensor
    int64_t hot_bytes;      // shared memory without which every iteration reads global memory
    int32_t method;         // Method
    int32_t threads;        // of a team
    int32_t lower, upper;   // whether there are bounds
    int32_t keep;           // whether the factor tensor is kept

    Plan plan(const Args& g, Method m) const {
        Plan p{};
        p.method = m, p.lanes = 1, p.n = g.n, p.m = g.m, p.p = g.p, p.bounds = lower || upper ? g.n : 0;
        p.diagonal = g.diagonal, p.shared = shared_bytes > 0, p.lower = lower, p.upper = upper, p.below = g.h_lower.data;
        return p;
    }
    size_t flags_bytes(const Args& g) const { return (size_t(g.batch) + 63) / 64 * 64; }
};

// What the device has, for the planning.
struct DeviceLimits {
    int64_t fast_team;            // shared memory that a team may have
    int64_t fast_multiprocessor;  // and that all teams of a multiprocessor have together
    int32_t multiprocessors, teams, warp, unused;  // teams: most of them to a multiprocessor
};

// Matrices that the batch shares, and what follows from them alone. Whether they can be used is a few bits.
enum Flaw : int32_t { NOT_FINITE = 1, INDEFINITE = 2, NO_SCHUR = 4 };
template <class T> struct SharedBlock {
    int32_t* flaws;
    T *Q, *G, *A;
    SchurFactors<T> schur{};

    void place(Arena& w, const Plan& p) {
        flaws = w.take<int32_t>(1);
        Q = w.take<T>(p.diagonal ? p.n : size_t(p.n) * p.n), G = w.take<T>(size_t(p.n) * p.p), A = w.take<T>(size_t(p.n) * p.m);
        if (p.method == SCHUR) schur.place(w, p.n, p.m, p.p, p.diagonal);
    }
};

template <class T, class Tm> struct Task {
    using Members = Group<T, T, Tm>;
    const Args& g;
    const DevicePlan& d;
    Tm t;
    char *fast_at, *slow_at;  // of this team; slow_at null: measure

    struct Sizes { size_t slow = 0, keep = 0, fast = 0, vectors = 0; } sizes{};

    static constexpr size_t align = 16;
    bool measuring() const { return !slow_at; }

    // ---- the whole task ---------------------------------------------------------------------------------------------
    void solve(int64_t member) {
        char* home = d.keep && d.keep_bytes ? keep_at(member) : nullptr;
        int32_t verdict = attempt<false>(Method(d.method), member, home, home, false);
        const bool kept = home && verdict == SOLVED;
        if (d.method != NORMAL && verdict != SOLVED && verdict != INVALID_INPUT)
            verdict = attempt<false>(NORMAL, member, false, nullptr, false);
        t.one([&] {
            View<int32_t>(g.status).of(member)[0] = verdict;
            if (d.keep) flags()[member] = kept;
        });
    }
    void adjoint(int64_t member) {
        if (View<const int32_t>(g.status).of(member)[0] != SOLVED) return no_derivative(member);
        if (d.keep && flags()[member]) attempt<true>(Method(d.method), member, true, keep_at(member), false);
        else attempt<true>(NORMAL, member, false, nullptr, true);
    }
    // The room for all that solve() and adjoint() may do.
    void measure() {
        attempt<false>(Method(d.method), 0, d.keep, nullptr, false);
        if (d.keep) attempt<true>(Method(d.method), 0, true, nullptr, false);
        attempt<false>(NORMAL, 0, false, nullptr, false);
        attempt<true>(NORMAL, 0, false, nullptr, true);
    }
    // What the batch shares: once, by one team, with `room` of prepare_bytes.
    void prepare(void* room) {
        const Plan plan = d.plan(g, Method(d.method));
        Members group(g, plan, t);
        group.choose_members(0);
        SharedBlock<T> s;
        place_shared(s, plan);
        group.copy_matrices(s.Q, s.G, s.A);
        Data<T, T> a = data(plan);
        a.Q = s.Q, a.G = s.G, a.A = s.A;
        int32_t flaws = matrices_finite(group.t, a) ? 0 : NOT_FINITE;
        T* free = static_cast<T*>(room);
        if (!flaws && !is_convex(group.t, a, free, free + size_t(a.n) * a.n, Tuning<T>::convex)) flaws |= INDEFINITE;
        if (OPTLAYER_SCHUR && !flaws && d.method == SCHUR && s.schur.prepare(group.t, a, free)) flaws |= NO_SCHUR;
        group.t.one([&] { *s.flaws = flaws; });
    }
    static size_t prepare_items(const Plan& p) {
        const size_t dual = size_t(p.n) * (p.p + p.m), square = size_t(p.n) * (p.n + 1);
        return dual > square ? dual : square;
    }

    // ---- one elimination ----------------------------------------------------------------------------------------------
    // `keeps`: the factorisation has a home in the factor tensor, where the derivative finds it.
    template <bool adjoint> OPTLAYER_CALL int32_t attempt(Method method, int64_t member, bool keeps, char* home, bool rebuild) {
        const Plan plan = d.plan(g, method);
        Fast fast{fast_at, size_t(d.fast_bytes), size_t(d.vector_bytes), longest(plan)};
        Moved moved[16];
        Arena keep(home), work(slow_at);
        keep.align = work.align = align;
        work.fast = &fast;
        if (keeps && !adjoint) keep.fast = &fast, keep.moved = moved;
        Arena& kept = keeps ? keep : work;

        Members group(g, plan, t);
        group.a = data(plan);
        if (!measuring()) group.choose_members(member);
        group.place_sides(kept, work);
        T *q = work.template take<T>(plan.n), *b = work.template take<T>(plan.m);
        group.a.q = q, group.a.b = b;
        SharedBlock<T> shared{};
        if (plan.shared) place_shared(shared, plan);

        int32_t verdict = SOLVED;
        if (OPTLAYER_SCHUR && method == SCHUR) {
            SchurFactors<T> f = shared.schur;
            Schur<Tm, T, T> system{group.t, group.a, f};
            system.place(kept, work);
            if (!plan.shared) f.place(kept, plan.n, plan.m, plan.p, plan.diagonal);
            T* room = system.F;  // of the preparation; the matrix that F will hold is still to come
            const size_t wanted = size_t(plan.n) * (plan.p + plan.m);
            if (!plan.shared && !adjoint && wanted > size_t(plan.p) * plan.p) room = work.template take<T>(wanted);
            auto check = [&]() -> int32_t {
                const bool bad = plan.shared ? (*shared.flaws & NO_SCHUR) != 0 : bool(f.prepare(group.t, group.a, room));
                return bad ? int32_t(NUMERICAL_ERROR) : int32_t(SOLVED);
            };
            if constexpr (adjoint) differentiate(group, system, shared, work, fast, rebuild);
            else verdict = run(group, system, shared, work, fast, check);
        } else {
            Normal<Tm, T, T> system{group.t, group.a, method == DIAGONAL};
            system.place(kept, work);
            auto check = [&]() -> int32_t {
                const bool fine = plan.shared ? !(*shared.flaws & INDEFINITE) : is_convex(group.t, group.a, system.K, system.iK, Tuning<T>::convex);
                return fine ? int32_t(SOLVED) : int32_t(NOT_CONVEX);
            };
            if constexpr (adjoint) differentiate(group, system, shared, work, fast, rebuild);
            else verdict = run(group, system, shared, work, fast, check);
        }
        if (measuring()) {
            note(sizes.slow, work.used), note(sizes.keep, keep.used), note(sizes.fast, fast.used), note(sizes.vectors, fast.asked);
            return SOLVED;
        }
        if (keep.moved && verdict == SOLVED) bring_home(group.t, moved, keep.count);
        return verdict;
    }

    template <class System, class Check>
    OPTLAYER_CALL int32_t run(Members& group, System& system, SharedBlock<T>& shared, Arena& work, Fast& fast, const Check& check) {
        const Tm& team = group.t;
        Data<T, T>& a = group.a;
        Interior<Tm, T, T, System> ip{team, a, system, group.x, group.out};
        ip.place(work);
        place_matrices(group, shared, work, fast);
        if (measuring()) return SOLVED;
        load_matrices(group, shared);
        group.load_vectors();
        group.load_sides();
        int32_t verdict = SOLVED;
        if (group.plan.shared ? (*shared.flaws & NOT_FINITE) != 0 : !matrices_finite(team, a)) verdict = INVALID_INPUT;
        if (!finite(team, a.n, a.q) || !finite(team, a.m, a.b) || !finite(team, group.x.total(), group.x.h)) verdict = INVALID_INPUT;
        if (verdict == SOLVED) verdict = check();
        if (verdict != SOLVED) {
            no_answer(group);
            return verdict;
        }
        if (contradicts(group)) {
            group.out.primal = group.out.dual = group.out.gap = huge<T>() * T(2), group.out.iterations = T(0);
            group.store_answer();
            return PRIMAL_INFEASIBLE;
        }
        constexpr bool single = std::is_same<T, float>::value;
        ip.run(T(g.tolerance), g.max_iterations, g.polish != 0);
        if (group.out.solved > T(0)) verdict = SOLVED;
        else if (const int32_t proof = ip.certify(T(single ? 1e-4 : 1e-9), group.most_terms())) verdict = proof;
        else verdict = group.out.iterations >= T(g.max_iterations) ? MAX_ITERATIONS : NUMERICAL_ERROR;
        group.store_answer();
        return verdict;
    }

    template <class System>
    OPTLAYER_CALL void differentiate(Members& group, System& system, SharedBlock<T>& shared, Arena& work, Fast& fast, bool rebuild) {
        place_matrices(group, shared, work, fast);
        if (!measuring()) {
            load_matrices(group, shared);
            system.find_unit();
            group.load_sides(), group.load_multipliers(group.x.lam);
            rebuild = rebuild || group.astray(group.x.lam, true) > T(0);
        }
        group.adjoint(system, work, rebuild);
    }

    // A row without variables that cannot hold, or bounds that cross: the proof in `out`, scaled to the value -1.
    OPTLAYER_CALL bool contradicts(Members& group) const {
        const Tm& team = group.t;
        const Data<T, T>& a = group.a;
        const Sides<T>& x = group.x;
        Point<T>& out = group.out;
        const int both = x.lower && x.upper ? a.n : 0;
        const auto gap = [&](int j) { return x.on[x.first_lower() + j] * x.on[x.first_upper() + j] * (x.h[x.first_lower() + j] + x.h[x.first_upper() + j]); };
        const T of_rows = team.max(x.p + x.below, T(-1), [&](int k) {
            return x.on[k] > T(0) && x.h[k] < T(0) && a.row_largest(k < x.p ? k : k - x.p) == T(0) ? T(k) : T(-1);
        });
        const T of_bounds = team.max(both, T(-1), [&](int j) { return gap(j) < T(0) ? T(j) : T(-1); });
        const T of_equalities = team.max(a.m, T(-1), [&](int i) { return a.b[i] != T(0) && a.A_largest(i) == T(0) ? T(i) : T(-1); });
        if (of_rows < T(0) && of_bounds < T(0) && of_equalities < T(0)) return false;
        const bool rows = of_rows >= T(0), bounds = !rows && of_bounds >= T(0);
        const int k = int(of_rows), j = int(of_bounds), e = int(of_equalities);
        team.each(x.total(), [&](int i) {
            const bool pressed = rows ? i == k : bounds && (i == x.first_lower() + j || i == x.first_upper() + j);
            out.lam[i] = pressed ? T(-1) / (rows ? x.h[k] : gap(j)) : T(0), out.s[i] = T(0);
        });
        team.each(a.m, [&](int i) { out.nu[i] = !rows && !bounds && i == e ? T(-1) / a.b[e] : T(0); });
        team.each(a.n, [&](int i) { out.z[i] = T(0); });
        return true;
    }

    // ---- pieces -----------------------------------------------------------------------------------------------------------
    static void note(size_t& most, size_t now) { most = now > most ? now : most; }
    static size_t longest(const Plan& p) {
        const int a = p.n > p.m ? p.n : p.m, b = p.sides() > p.rows() ? p.sides() : p.rows();
        return ((a > b ? a : b) * sizeof(T) + align - 1) / align * align;
    }
    static Data<T, T> data(const Plan& p) {
        Data<T, T> a{};
        a.n = p.n, a.m = p.m, a.p = p.p, a.bounds = p.bounds, a.diagonal = p.diagonal;
        return a;
    }
    char* flags() const { return static_cast<char*>(g.factor.data); }
    char* keep_at(int64_t member) const {
        return flags() + d.flags_bytes(g) + d.shared_bytes + member * d.keep_bytes;
    }
    void place_shared(SharedBlock<T>& s, const Plan& p) const {
        Plan first = p;
        first.method = Method(d.method);
        Arena at(d.shared_block);
        at.align = align;
        s.place(at, first);
    }
    void place_matrices(Members& group, const SharedBlock<T>& shared, Arena& work, Fast& fast) const {
        Data<T, T>& a = group.a;
        if (group.plan.shared) {
            a.Q = shared.Q, a.G = shared.G, a.A = shared.A;
            return;
        }
        // constraints are read where the user has them, unless they fit into fast memory
        const size_t G = size_t(a.n) * a.p, A = size_t(a.n) * a.m;
        a.A = A && fast.fits(round(A)) ? work.template take<T>(A) : nullptr;
        a.G = G && fast.fits(round(G)) ? work.template take<T>(G) : nullptr;
        a.Q = work.template take<T>(a.diagonal ? a.n : size_t(a.n) * a.n);
    }
    static size_t round(size_t items) { return (items * sizeof(T) + align - 1) / align * align; }
    void load_matrices(Members& group, const SharedBlock<T>&) const {
        Data<T, T>& a = group.a;
        if (group.plan.shared) return;
        group.copy_Q(const_cast<T*>(a.Q));
        const T *G = View<const T>(g.G).of(group.member[0]), *A = View<const T>(g.A).of(group.member[0]);
        if (a.G) copy(group.t, const_cast<T*>(a.G), G, a.n * a.p);
        else a.G = G;
        if (a.A) copy(group.t, const_cast<T*>(a.A), A, a.n * a.m);
        else a.A = A;
    }
    static void copy(const Tm& team, T* to, const T* from, int items) {
        team.each(items, [&](int i) { to[i] = from[i]; });
    }
    static void bring_home(const Tm& team, const Moved* moved, int count) {
        for (int k = 0; k < count; ++k) {
            const Moved& piece = moved[k];
            team.each(int(piece.bytes / 8), [&](int i) {
                reinterpret_cast<int64_t*>(piece.to)[i] = reinterpret_cast<const int64_t*>(piece.from)[i];
            });
        }
    }
    static OPTLAYER_CALL bool finite(const Tm& team, int n, const T* x) {  // 0 x is 0 or NaN
        return team.max(n, T(0), [&](int i) { return T(0) * x[i] == T(0) ? T(0) : T(1); }) == T(0);
    }
    static bool matrices_finite(const Tm& team, const Data<T, T>& a) {
        return finite(team, a.diagonal ? a.n : a.n * a.n, a.Q) && finite(team, a.n * a.p, a.G) && finite(team, a.n * a.m, a.A);
    }
    void no_answer(Members& group) const {
        const Tm& team = group.t;
        const T nothing = T(0);
        auto fill = [&](const Tensor& x, int n, T value) {
            if (x.data) team.each(n, [&](int i) { View<T>(x).of(group.member[0])[i] = value; });
        };
        fill(g.z, g.n, nothing), fill(g.nu, g.m, nothing), fill(g.s, g.p, nothing), fill(g.lam, g.p, nothing);
        fill(g.lam_lb, g.n, nothing), fill(g.lam_ub, g.n, nothing);
        const T unknown = huge<T>() * T(2);
        fill(g.primal_residual, 1, unknown), fill(g.dual_residual, 1, unknown), fill(g.gap, 1, unknown);
        team.one([&] { View<int32_t>(g.iterations).of(group.member[0])[0] = 0; });
    }
    void no_derivative(int64_t member) const {
        auto fill = [&](const Tensor& x, int n) {
            if (x.data) t.each(n, [&](int i) { View<T>(x).of(member)[i] = T(0); });
        };
        fill(g.v_z, g.n), fill(g.v_nu, g.m), fill(g.v_lam, g.p), fill(g.v_lb, g.n), fill(g.v_ub, g.n), fill(g.v_lower, g.p);
    }
};

}  // namespace optlayer

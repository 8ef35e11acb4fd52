// The elimination where matrices are sparse: LDLᵀ of the quasi-definite KKT matrix
//     [ Q + R + D_bounds   G'          A' ]
//     [ G                 -D⁻¹ - R         ]
//     [ A                             -R   ]
// in a static order. R, small beside the entries of its row, makes every order stable enough (Vanderbei 1995; Friedlander
// and Orban 2012): in the loop it is a proximal term at the last iterate, which does not move the solution, and where a
// system is to be solved exactly, refinement against the data takes it out. Where active rows depend on each other the
// multipliers that refinement finds are the nearest ones to where it starts.
#pragma once
#include "ldl.h"
#include "system.h"
#include "verdict.h"

namespace optlayer {

// Factor: Ldl, or what pivots where that loses its digits (csrc/sparse_lu.h).
template <class Tm, class V, class U, class Factor = Ldl<V>>
struct SparseSystem : PointSystem<SparseSystem<Tm, V, U, Factor>, Tm, V, SparseData<V, U>> {
    using Base = PointSystem<SparseSystem, Tm, V, SparseData<V, U>>;
    using T = scalar_of<V>;
    using S = Tuning<T>;
    using Base::t, Base::a, Base::z, Base::nu, Base::y, Base::rd, Base::rp, Base::vz, Base::vnu;
    using Base::unit, Base::unit_dual, Base::stationarity, Base::most_dual, Base::kappa;
    static constexpr bool proximal = true, pivots = !std::is_same<Factor, Ldl<V>>::value;
    Factor ldl{};

    V *W, *R;                              // kept: D⁻¹ of the rows of G and D of the bounds; R, in the order of elimination
    V* scale;                              // kept: equilibration in the user's order
    V *diagonal, *solution;                // scratch in the order of elimination
    V *found, *residual, *rows;            // scratch of refinement
    V regularisation = V(T(S::regularisation)), unmoved = V(T(S::unmoved));  // of the strong R; of derivatives (tuning.h)
    bool rounded = false;  // the data hold float32's numbers
    V weak;                                // 1 where R is, having been in the way
    V left = V(T(0));                      // of complementarity, relative, in the loop
    bool predicted = false;
    void (*pause)() = nullptr;  // called before a factorisation; may throw

    SparseSystem(const Tm& team, const SparseData<V, U>& data) : Base(team, data) {}

    void place(Arena& keep, Arena& work) {
        const int N = a.pattern->order();
        ldl.place(*a.pattern->kkt, keep, work);
        W = keep.take<V>(a.rows()), R = keep.take<V>(N), scale = keep.take<V>(N);
        diagonal = work.take<V>(N), solution = work.take<V>(N), found = work.take<V>(N), residual = work.take<V>(N);
        rows = work.take<V>(a.rows());
        Base::place(work);
    }

    // R, from the sizes that Ruiz's equilibration of the KKT matrix gives each variable and row: so units do not matter. That
    // leaves a choice; by_curvature: it starts with each variable's own.
    void equilibrate(bool by_curvature = false) {
        const SparsePattern& s = *a.pattern;
        const int n = a.n, p = a.p, m = a.m;
        V* size = diagonal;  // 1 / scale², in the user's order
        t.each(s.order(), [&](int i) {
            const V curvature = by_curvature && i < n ? a.curvature(i) : V(T(0));
            size[i] = select(curvature > V(T(0)), curvature, V(T(1)));
        });
        V* most = solution;
        for (int round = 0; round < 4; ++round) {  // the first of these for the rows alone
            t.each(s.order(), [&](int i) { most[i] = V(T(0)); });
            // |K_ij| / sqrt(size_i size_j), squared
            const auto meet = [&](int i, int j, V entry) {
                const V value = entry * entry / (size[i] * size[j]);
                most[i] = max(most[i], value), most[j] = max(most[j], value);
            };
            for (int e = 0; e < s.diagonals; ++e) meet(s.diagonal[e], s.diagonal[e], V(a.Q[e]));
            for (int e = 0; e < s.lowers; ++e) meet(s.row[e], s.col[e], V(a.Q[s.diagonals + e]));
            for (int i = 0; i < p; ++i)
                for (int e = s.G.first[i]; e < s.G.first[i + 1]; ++e) meet(n + i, s.G.col[e], V(a.G[e]));
            for (int i = 0; i < m; ++i)
                for (int e = s.A.first[i]; e < s.A.first[i + 1]; ++e) meet(n + p + i, s.A.col[e], V(a.A[e]));
            t.each(s.order(), [&](int i) {
                V by = sqrt(most[i]);
                if (!round && by_curvature) by = i < n ? V(T(1)) : most[i];
                size[i] = size[i] * select(most[i] > V(T(0)), by, V(T(1)));
            });
        }
        t.each(s.order(), [&](int i) { scale[i] = V(T(1)) / sqrt(size[i]); });
        weak = V(T(0));
        regularise(mask_of<V>(true));
    }
    template <class M> void regularise(M which) {
        const SparsePattern& s = *a.pattern;
        const V much = select(weak > V(T(0)), V(T(S::weak_regularisation)), regularisation);
        t.each(s.order(), [&](int i) { R[s.place[i]] = select(which, much / (scale[i] * scale[i]), R[s.place[i]]); });
    }
    // The weak R for the strong one, or the other way round, where they differ.
    mask_of<V> exchangeable() const { return regularisation > V(T(S::weak_regularisation)); }
    template <class M> void exchange(M which) {
        weak = select(which, V(T(1)) - weak, weak);
        regularise(which);
    }
    // A larger R, where a factor has lost its digits to growth: LDLᵀ without pivoting loses them as 1/R². Returns the lanes that have one.
    template <class M> M firmer(M which) {
        which = which & (regularisation < V(T(S::firmest)));
        regularisation = select(which, regularisation * V(T(1) / T(S::shrink)), regularisation);
        weak = select(which, V(T(0)), weak);
        regularise(which);
        return which;
    }
    // Instead of `equilibrate`: for a derivative that R has left too far from the truth.
    void equilibrate_firmly() {
        regularisation = V(T(rounded ? S::firm_rounded : S::firm)), unmoved = V(T(rounded ? S::unmoved_rounded : S::unmoved));
        equilibrate(true);
        rounded = false;
    }
    // Whether the curvature along vz, where K vz = rz, is not what the rounding of float32's data may be.
    mask_of<V> determined(const V* rz, const V* vz_) const {
        return rounded ? curvature_known(t, a.n, rz, vz_, [&](int j) { return R[a.pattern->place[j]]; }) : mask_of<V>(true);
    }
    template <class M> void shrink(M which) {
        t.each(a.pattern->order(), [&](int i) { R[i] = select(which, V(T(S::shrink)) * R[i], R[i]); });
    }

    OPTLAYER_CALL void factor(const V* D) {
        const SparsePattern& s = *a.pattern;
        predicted = false;
        if (pause) pause();
        const V far = V(T(S::absent));
        t.each(a.rows(), [&](int i) { W[i] = i < a.p ? select(D[i] > V(T(0)), V(T(1)) / max(D[i], V(T(1)) / far), far) : D[i]; });
        t.each(a.n, [&](int j) {
            const int at = s.place[j];
            const V own = a.curvature(j) + R[at];
            diagonal[at] = a.bounds ? own + W[a.p + j] : own;
        });
        t.each(a.p, [&](int i) {
            const int at = s.place[a.n + i];
            diagonal[at] = -(W[i] + R[at]);
        });
        t.each(a.m, [&](int i) { diagonal[s.place[a.n + a.p + i]] = -R[s.place[a.n + a.p + i]]; });
        ldl.factor(a.Q + s.diagonals, diagonal, R);
    }

    // Q vz + A'vnu + C'vy = rz,  A vz = rnu,  vy = D vt + e,  vt = C vz;  but for R: of a row of G, vt = g'vz - R vy.
    OPTLAYER_CALL void kkt(const V* rz, const V* rnu, const V* e, V* vz_, V* vnu_, V* vy, V* vt) const {
        solve(rz, rnu, e, vz_, vnu_, vy, vt, false);
    }
    // The multipliers of G's rows are unknowns, G vz - D⁻¹ vy = -D⁻¹ e; those of bounds are not. If `refined`, one step
    // of refinement, which takes out R as well, where the residual of some part is worth it.
    OPTLAYER_CALL void solve(const V* rz, const V* rnu, const V* e, V* vz_, V* vnu_, V* vy, V* vt, bool refined) const {
        const SparsePattern& s = *a.pattern;
        const int n = a.n, p = a.p, m = a.m, N = s.order();
        V *right = diagonal, *x = found;  // (scratch since the factor is there), in the user's order
        t.each(n, [&](int j) { right[j] = a.bounds ? rz[j] - e[p + j] : rz[j]; });
        t.each(p, [&](int i) { right[n + i] = -(W[i] * e[i]); });
        t.each(m, [&](int i) { right[n + p + i] = rnu[i]; });
        eliminate(right);
        t.each(N, [&](int i) { x[i] = solution[s.place[i]]; });
        if (refined) {
            multiply(x, residual);
            t.each(N, [&](int i) { residual[i] = right[i] - residual[i]; });
            const auto much = [&](int from, int count, V least) {
                const V size = t.max(count, least, [&](int i) { return abs(right[from + i]) * scale[from + i]; });
                const V off = t.max(count, V(T(0)), [&](int i) { return abs(residual[from + i]) * scale[from + i]; });
                return !(off <= V(T(S::worth_refining)) * size);
            };
            const V least = V(T(S::nothing));
            const V enough = max(least, V(T(S::early)) * left);
            const auto worth = much(0, n, least * unit_dual) | much(n, p, least * unit) | much(n + p, m, enough * unit);  // each lane for itself
            if (any(worth)) {
                eliminate(residual);
                t.each(N, [&](int i) { x[i] = select(worth, x[i] + solution[s.place[i]], x[i]); });
            }
        }
        t.each(n, [&](int j) { vz_[j] = x[j]; });
        t.each(m, [&](int i) { vnu_[i] = x[n + p + i]; });
        t.each(p, [&](int i) { vy[i] = x[n + i], vt[i] = fma(W[i], vy[i], right[n + i]); });
        for (int i = p; i < a.rows(); ++i) vt[i] = vz_[i - p], vy[i] = fma(W[i], vt[i], e[i]);
    }
    // out = K x without R
    void multiply(const V* x, V* out) const {
        const int n = a.n, p = a.p;
        t.each(n, [&](int j) { out[j] = a.bounds ? W[p + j] * x[j] : V(T(0)); });
        a.add_Qz(t, x, out);
        t.each(p, [&](int i) { rows[i] = x[n + i]; });
        for (int i = p; i < a.rows(); ++i) rows[i] = V(T(0));
        a.add_rows_t(t, rows, out);
        a.add_At(t, x + n + p, out);
        a.rows_times(t, x, rows);
        t.each(p, [&](int i) { out[n + i] = fnma(W[i], x[n + i], rows[i]); });
        a.A_times(t, x, out + n + p);
    }
    void eliminate(const V* b) const {
        const SparsePattern& s = *a.pattern;
        t.each(s.order(), [&](int i) { solution[s.place[i]] = b[i]; });
        ldl.solve(solution);
    }
    using Base::curvature, Base::advance, Base::recover, Base::begin;
    static constexpr double least_norm = 0;
    static constexpr double linear = 1;  // share of the linear term in the typical curvature, at the start [maros, benchmarks/sparse.py]
    void start(Sides<V>& x) {
        unit = unit_dual = V(T(1));
        equilibrate();
        Base::start(x);
    }

    void row_values(V* v) {
        a.rows_times(t, z, v);
        t.each(a.n, [&](int j) { rd[j] = a.q[j]; });
        a.add_Qz(t, z, rd);
        a.add_rows_t(t, y, rd);
        a.add_At(t, nu, rd);
        a.A_times(t, z, rp);
        t.each(a.m, [&](int i) { rp[i] = rp[i] - a.b[i]; });
        stationarity = max(t.max(a.n, V(T(0)), [&](int j) { return abs(rd[j]); }) / most_dual,
                           t.max(a.m, V(T(0)), [&](int i) { return abs(rp[i]); }));
        t.each(a.n, [&](int j) { rd[j] = -rd[j]; });
        t.each(a.m, [&](int i) { rp[i] = -rp[i]; });
    }
    // The first one with a factor predicts; only the second, which is gone, is refined.
    void direction(const V* e, V* dy, V* dt) {
        solve(rd, rp, e, vz, vnu, dy, dt, predicted);
        predicted = true;
    }

    // An equality with one variable holds exactly, as a bound does.
    template <class M> void keep_fixed(V* z_, M which) const {
        const Incidence& A = a.pattern->A;
        for (int i = 0; i < a.m; ++i)
            if (A.first[i + 1] == A.first[i] + 1) {
                const int e = A.first[i], j = A.col[e];
                z_[j] = select(which & (abs(V(a.A[e])) > V(T(0))), a.b[i] / V(a.A[e]), z_[j]);
            }
    }
    // What makes a slack a number of size one.
    V side_unit(int i) const { return i < a.p ? V(T(1)) / scale[a.n + i] : scale[i - a.p]; }
    V equality_unit(int i) const { return V(T(1)) / scale[a.n + a.p + i]; }
    // The weight of an active row or bound: so that R does not matter beside it.
    V hard(int i) const {
        if (i < a.p) return V(T(1e-2)) / R[a.pattern->place[a.n + i]];
        const V s = scale[i - a.p];
        return V(T(S::hard_bound)) / (s * s);
    }
};

}  // namespace optlayer

// LDLᵀ of a sparse symmetric matrix with a static order: supernodes (columns that share their rows) are dense panels, and
// a panel is updated by the panels before it ("left-looking"), so that what is in work stays near.
// Over a value type V: a scalar, or a Pack whose lanes are matrices of the same pattern. Each entry is the same sequence
// of operations in both: the bits of a member do not depend on what lies beside it.
#pragma once
#include "tuning.h"

namespace optlayer {

// What is found once for a pattern (csrc/sparse_plan.h). Positions are those of the elimination order.
struct LdlPlan {
    int size = 0, supernodes = 0;
    // Leaves, the columns that no other one updates, come first, by how many rows they have below: few[c] is the first with at
    // least c. Those with few rows are often most of all columns: short loops that are alike take them, and what they subtract
    // is listed term by term. [benchmarks/sparse.py]
    static constexpr int most_few = 7, most_termwise = 4;
    int leaves = 0, few[most_few + 2];
    const int* first;       // supernodes + 1: columns of a supernode
    const int* rows_at;     // supernodes + 1: where its rows below begin
    const int* rows;        // ascending
    const int64_t* panel;   // supernodes + 1: where its panel begins, column-major, as high as columns and rows below
    struct Source {         // rows of an earlier supernode, of which the first `count` are columns of this one
        int64_t left;       // where they are in L
        int height, depth, pivot, high, count;  // of that panel: its height, columns, first column; rows here and below
        int rows;           // where in `rows`
        int to;             // where in `targets` its targets begin, column by column, each from its diagonal on; -1: too many to list
    };
    const int* sources_at;  // supernodes + 1: those that are not listed as terms
    const Source* sources;
    const int* targets;     // in the panel
    const char* listed;     // of each supernode: whether all of its sources' targets are
    struct Term { int target, left, right; };  // of a leaf: in the panel, in L, among the values
    const int* terms_at;    // supernodes + 1
    const Term* terms;
    const int* entries_at;  // supernodes + 1: entries of the matrix below its diagonal: which value, where in the panel
    const int *entry, *place;
    const signed char* sign;  // of each pivot
    int tallest = 0, widest = 0;

    // Sources whose few targets are listed.
    static bool narrow(int depth, int high, int count) { return depth <= 4 && high * count <= 96; }

    int64_t entries() const { return panel[supernodes]; }
    int columns(int s) const { return first[s + 1] - first[s]; }
    int below(int s) const { return rows_at[s + 1] - rows_at[s]; }
};

namespace detail {

// to[at[i]] -= sum[i]
template <class Unit, class V> OPTLAYER_INLINE void subtract_at(Unit sum, V* to, const int* at, int count) {
    if constexpr (std::is_same<Unit, V>::value) {
        to[at[0]] = to[at[0]] - sum;
    } else {
        V part[sizeof(Unit) / sizeof(V)];
        sum.store(part);
        for (int i = 0; i < count; ++i) to[at[i]] -= part[i];
    }
}

// C columns of R units of rows, the last of `count` rows:  target(row, c) -= Σ_k left(row, k) right(k, c).  `at`: rows of the
// target, or nullptr where they follow each other.
template <class Unit, int R, int C, bool full, class V>
OPTLAYER_INLINE void subtract_block(int depth, const V* left, int ld, const V* right, int ld_right, V* target, int ld_target, const int* at, int count) {
    constexpr int step = sizeof(Unit) / sizeof(V);
    Unit sum[R][C];
    OPTLAYER_UNROLL for (int r = 0; r < R; ++r)
        OPTLAYER_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = Unit(V(0));
    for (int k = 0; k < depth; ++k, left += ld, right += ld_right) {
        Unit x[R];
        OPTLAYER_UNROLL for (int r = 0; r < R; ++r) x[r] = load_rows<Unit, full>(left + r * step, count);
        OPTLAYER_UNROLL for (int c = 0; c < C; ++c) {
            const Unit y = Unit(right[c]);
            OPTLAYER_UNROLL for (int r = 0; r < R; ++r) sum[r][c] = fma(x[r], y, sum[r][c]);
        }
    }
    OPTLAYER_UNROLL for (int c = 0; c < C; ++c) {
        V* to = target + size_t(c) * ld_target;
        OPTLAYER_UNROLL for (int r = 0; r < R; ++r) {
            if (!at) store_rows<full>(load_rows<Unit, full>(to + r * step, count) - sum[r][c], to + r * step, count);
            else subtract_at(sum[r][c], to, at + r * step, full ? step : count);
        }
    }
}
template <class Unit, int R, bool full, class V>
OPTLAYER_INLINE void subtract_rows(int columns, int depth, const V* left, int ld, const V* right, int ld_right, V* target, int ld_target, const int* at, int count = 0) {
    int c = 0;
    for (; c + 4 <= columns; c += 4)
        subtract_block<Unit, R, 4, full>(depth, left, ld, right + c, ld_right, target + size_t(c) * ld_target, ld_target, at, count);
    V* to = target + size_t(c) * ld_target;
    if (columns - c == 3) subtract_block<Unit, R, 3, full>(depth, left, ld, right + c, ld_right, to, ld_target, at, count);
    if (columns - c == 2) subtract_block<Unit, R, 2, full>(depth, left, ld, right + c, ld_right, to, ld_target, at, count);
    if (columns - c == 1) subtract_block<Unit, R, 1, full>(depth, left, ld, right + c, ld_right, to, ld_target, at, count);
}
// All rows; those above the diagonal of the target's columns, of which the caller leaves few, are scrap.
template <class V>
OPTLAYER_NOINLINE void subtract_product(int rows, int columns, int depth, const V* left, int ld, const V* right, int ld_right, V* target, int ld_target, const int* at) {
    using Unit = typename Rows<V>::Unit;
    constexpr int step = Rows<V>::step, units = step == 1 ? 4 : 2;
    int r = 0;
    const auto to = [&](int row) { return at ? target : target + row; };
    const auto places = [&](int row) { return at ? at + row : nullptr; };
    for (; r + units * step <= rows; r += units * step)
        subtract_rows<Unit, units, true>(columns, depth, left + r, ld, right, ld_right, to(r), ld_target, places(r));
    for (; r + step <= rows; r += step)
        subtract_rows<Unit, 1, true>(columns, depth, left + r, ld, right, ld_right, to(r), ld_target, places(r));
    if constexpr (step > 1) {
        if (rows - r > loose_rows)
            return subtract_rows<Unit, 1, false>(columns, depth, left + r, ld, right, ld_right, to(r), ld_target, places(r), rows - r);
        for (; r < rows; ++r) subtract_rows<V, 1, true>(columns, depth, left + r, ld, right, ld_right, to(r), ld_target, places(r));
    }
}

}  // namespace detail

// The factor of one matrix (or of one in each lane): panels of L, unit diagonal not stored, and 1 / D.
template <class V>
struct Ldl {
    const LdlPlan* plan;
    using T = scalar_of<V>;
    V *L, *pivot, *inverse;  // kept: L, D, 1 / D
    V *right, *x;    // scratch: D Lᵀ of a source's rows; a solve's vector in the order of elimination
    int* at;         // scratch: row of the panel in work

    template <class Arena>
    void place(const LdlPlan& p, Arena& keep, Arena& work) {
        plan = &p;
        L = keep.template take<V>(size_t(p.entries()));
        pivot = keep.template take<V>(p.size), inverse = keep.template take<V>(p.size);
        right = work.template take<V>(size_t(p.widest) * p.widest + 4 * size_t(p.widest));
        x = work.template take<V>(p.size + size_t(p.tallest));
        at = work.template take<int>(p.size + size_t(p.tallest));
    }

    // values: U of the entries that the plan names; diagonal: in the order of elimination. A pivot of the wrong sign, or
    // smaller than half of `least`, is replaced by that: it is rounding, for the matrix is quasi-definite. Returns the lanes
    // that had none.
    template <class U>
    mask_of<V> factor(const U* values, const V* diagonal, const V* least) const {
        V worst = V(T(1));
        const LdlPlan& p = *plan;
        int* rows = at + p.size;
        for (int k = 0; k < p.leaves; ++k) {
            const V inv = find_pivot(k, diagonal[k], least, worst);
            V* column = L + p.panel[k] + 1;
            for (int e = p.entries_at[k]; e < p.entries_at[k + 1]; ++e) *column++ = V(values[p.entry[e]]) * inv;
        }
        for (int s = p.leaves; s < p.supernodes; ++s) {
            const int first = p.first[s], columns = p.columns(s), below = p.below(s), ld = columns + below;
            V* panel = L + p.panel[s];
            for (int64_t i = 0; i < int64_t(ld) * columns; ++i) panel[i] = V(0);
            for (int e = p.entries_at[s]; e < p.entries_at[s + 1]; ++e) panel[p.place[e]] = panel[p.place[e]] + V(values[p.entry[e]]);
            for (int k = 0; k < columns; ++k) panel[size_t(k) * (ld + 1)] = panel[size_t(k) * (ld + 1)] + diagonal[first + k];
            for (int e = p.terms_at[s]; e < p.terms_at[s + 1]; ++e) {
                const LdlPlan::Term& m = p.terms[e];
                panel[m.target] = fnma(L[m.left], V(values[m.right]), panel[m.target]);
            }
            if (!p.listed[s]) {
                for (int k = 0; k < columns; ++k) at[first + k] = k;
                const int* mine = p.rows + p.rows_at[s];
                for (int i = 0; i < below; ++i) at[mine[i]] = columns + i;
            }
            for (int e = p.sources_at[s]; e < p.sources_at[s + 1]; ++e) subtract_source(p.sources[e], panel, ld, rows);
            if (columns == 1) {
                const V inv = find_pivot(first, panel[0], least, worst);
                for (int i = 1; i <= below; ++i) panel[i] = panel[i] * inv;
            } else {
                worst = min(worst, factor_panel(panel, columns, ld, first, least));
            }
        }
        return worst > V(T(0));
    }

    // x := K⁻¹ x, in the order of elimination
    void solve(V* x_) const {
        const LdlPlan& p = *plan;
        const int others = p.few[LdlPlan::most_few + 1];
        forward_leaves(x_);
        for (int s = others; s < p.supernodes; ++s) forward(s, x_);
        for (int i = 0; i < p.size; ++i) x_[i] = x_[i] * inverse[i];
        for (int s = p.supernodes - 1; s >= others; --s) backward(s, x_);
        backward_leaves(x_);
    }

  private:
    // panel -= (rows of an earlier supernode) D (those of its rows that are columns here)ᵀ
    void subtract_source(const LdlPlan::Source& source, V* panel, int ld, int* rows) const {
        const LdlPlan& p = *plan;
        const int depth = source.depth, height = source.height, high = source.high, count = source.count;
        const V *left = L + source.left, *d = pivot + source.pivot;
        if (source.to >= 0) {  // the same operations, without what it takes to arrange them in blocks
            const int* to = p.targets + source.to;
            if (depth == 1) return subtract_listed<1>(left, height, d, high, count, panel, to);
            if (depth == 2) return subtract_listed<2>(left, height, d, high, count, panel, to);
            if (depth == 3) return subtract_listed<3>(left, height, d, high, count, panel, to);
            return subtract_listed<4>(left, height, d, high, count, panel, to);
        }
        const int* theirs = p.rows + source.rows;
        const int column = at[theirs[0]];
        for (int j = 0; j < depth; ++j)
            for (int c = 0; c < count; ++c) right[size_t(j) * count + c] = left[size_t(j) * height + c] * d[j];
        const bool columns_follow = at[theirs[count - 1]] - column == count - 1;
        if (columns_follow && at[theirs[high - 1]] - column == high - 1) {
            detail::subtract_product(high, count, depth, left, height, right, count, panel + size_t(column) * ld + column, ld, nullptr);
            return;
        }
        for (int i = 0; i < high; ++i) rows[i] = at[theirs[i]];
        if (columns_follow) {
            detail::subtract_product(high, count, depth, left, height, right, count, panel + size_t(column) * ld, ld, rows);
            return;
        }
        using Unit = typename detail::Rows<V>::Unit;
        constexpr int step = detail::Rows<V>::step;
        for (int c = 0; c < count; ++c) {
            V* to = panel + size_t(rows[c]) * ld;
            int r = c;
            for (; r + step <= high; r += step)
                detail::subtract_block<Unit, 1, 1, true>(depth, left + r, height, right + c, count, to, ld, rows + r, step);
            if (high - r > loose_rows) {
                detail::subtract_block<Unit, 1, 1, false>(depth, left + r, height, right + c, count, to, ld, rows + r, high - r);
                continue;
            }
            for (; r < high; ++r) detail::subtract_block<V, 1, 1, true>(depth, left + r, height, right + c, count, to, ld, rows + r, 1);
        }
    }

    template <int depth>
    static OPTLAYER_INLINE void subtract_listed(const V* left, int height, const V* d, int high, int count, V* panel, const int* to) {
        for (int c = 0; c < count; ++c, ++left, --high) {
            V weight[depth];
            OPTLAYER_UNROLL for (int j = 0; j < depth; ++j) weight[j] = left[size_t(j) * height] * d[j];
            for (int i = 0; i < high; ++i, ++to) {
                V sum = left[i] * weight[0];
                OPTLAYER_UNROLL for (int j = 1; j < depth; ++j) sum = fma(left[size_t(j) * height + i], weight[j], sum);
                panel[*to] = panel[*to] - sum;
            }
        }
    }

    // Blocks of four columns: updated by those before them, factored, and the rows below solved for.
    V factor_panel(V* panel, int columns, int ld, int first, const V* least) const {
        V worst = V(T(1));  // 0 where a pivot was replaced
        for (int j = 0; j < columns; j += 4) {
            const int width = columns - j < 4 ? columns - j : 4;
            V* block = panel + size_t(j) * ld + j;
            if (j) {
                for (int k = 0; k < j; ++k)
                    for (int c = 0; c < width; ++c) right[size_t(k) * width + c] = panel[size_t(k) * ld + j + c] * pivot[first + k];
                detail::subtract_product(ld - j, width, j, panel + j, ld, right, width, block, ld, nullptr);
            }
            if (width == 4) factor_block<4>(block, ld, ld - j, first + j, least, worst);
            else if (width == 3) factor_block<3>(block, ld, ld - j, first + j, least, worst);
            else if (width == 2) factor_block<2>(block, ld, ld - j, first + j, least, worst);
            else factor_block<1>(block, ld, ld - j, first + j, least, worst);
        }
        return worst;
    }
    // Keeps the pivot d of column k, and returns its inverse.
    OPTLAYER_INLINE V find_pivot(int k, V d, const V* least, V& worst) const {
        const V sign = V(T(plan->sign[k])), floor = V(T(0.5)) * least[k];
        const auto sound = sign * d > floor;
        worst = select(sound, worst, V(T(0)));
        pivot[k] = select(sound, d, sign * floor);
        return inverse[k] = V(1) / pivot[k];
    }
    template <int C>
    OPTLAYER_INLINE void factor_block(V* block, int ld, int height, int first, const V* least, V& worst) const {
        V a[C][C]{}, inv[C];  // a[c][j], j < c: D_j L_cj
        OPTLAYER_UNROLL for (int j = 0; j < C; ++j) {
            V d = block[size_t(j) * ld + j];
            for (int k = 0; k < j; ++k) d = fnma(a[j][k], block[size_t(k) * ld + j], d);
            inv[j] = find_pivot(first + j, d, least, worst);
            for (int c = j + 1; c < C; ++c) {
                V v = block[size_t(j) * ld + c];
                for (int k = 0; k < j; ++k) v = fnma(a[j][k], block[size_t(k) * ld + c], v);
                a[c][j] = v;
                block[size_t(j) * ld + c] = v * inv[j];
            }
        }
        using Unit = typename detail::Rows<V>::Unit;
        constexpr int step = detail::Rows<V>::step;
        int r = C;
        for (; r + step <= height; r += step) below<Unit, C, true>(block + r, ld, a, inv, step);
        if (height - r > loose_rows) return below<Unit, C, false>(block + r, ld, a, inv, height - r);
        for (; r < height; ++r) below<V, C, true>(block + r, ld, a, inv, 1);
    }
    template <class Unit, int C, bool full>
    OPTLAYER_INLINE void below(V* row, int ld, const V (&a)[C][C], const V (&inv)[C], int count) const {
        Unit l[C];
        OPTLAYER_UNROLL for (int j = 0; j < C; ++j) {
            Unit v = detail::load_rows<Unit, full>(row + size_t(j) * ld, count);
            for (int k = 0; k < j; ++k) v = fnma(l[k], Unit(a[j][k]), v);
            l[j] = v * Unit(inv[j]);
            detail::store_rows<full>(l[j], row + size_t(j) * ld, count);
        }
    }

    // The leaves with `count` rows below, and those with more.
    template <int count = 1>
    void forward_leaves(V* x_) const {
        const int from = plan->few[count], until = plan->few[count + 1];
        const V* column = L + plan->panel[from] + 1;
        const int* rows = plan->rows + plan->rows_at[from];
        for (int k = from; k < until; ++k, column += count + 1, rows += count) spread<1>(count, column, 0, x_ + k, x_, rows);
        if constexpr (count < LdlPlan::most_few) forward_leaves<count + 1>(x_);
    }
    template <int count = 1>
    void backward_leaves(V* x_) const {
        const int from = plan->few[count], until = plan->few[count + 1];
        const V* column = L + plan->panel[from] + 1;
        const int* rows = plan->rows + plan->rows_at[from];
        for (int k = from; k < until; ++k, column += count + 1, rows += count)
            x_[k] = x_[k] - few<count>(column, [&](int i) { return x_[rows[i]]; });
        if constexpr (count < LdlPlan::most_few) backward_leaves<count + 1>(x_);
    }

    void forward(int s, V* x_) const {
        const LdlPlan& p = *plan;
        const int first = p.first[s], columns = p.columns(s), count = p.below(s), ld = columns + count;
        const V* panel = L + p.panel[s];
        const int* rows = p.rows + p.rows_at[s];
        V* mine = x_ + first;
        for (int k = 0; k < columns; ++k)
            for (int i = k + 1; i < columns; ++i) mine[i] = fnma(panel[size_t(k) * ld + i], mine[k], mine[i]);
        const bool row_by_row = is_pack<V> || count < 2 * detail::Rows<V>::step;
        if (row_by_row && columns == 1) return spread<1>(count, panel + 1, ld, mine, x_, rows);
        if (row_by_row && columns == 2) return spread<2>(count, panel + 2, ld, mine, x_, rows);
        if (row_by_row && columns == 3) return spread<3>(count, panel + 3, ld, mine, x_, rows);
        if (row_by_row && columns == 4) return spread<4>(count, panel + 4, ld, mine, x_, rows);
        detail::subtract_product(count, 1, columns, panel + columns, ld, mine, 1, x_, 0, rows);
    }
    template <int columns>
    static OPTLAYER_INLINE void spread(int count, const V* panel, int ld, const V* mine, V* x_, const int* rows) {
        V weight[columns];
        OPTLAYER_UNROLL for (int k = 0; k < columns; ++k) weight[k] = mine[k];
        for (int i = 0; i < count; ++i) {
            V sum = panel[i] * weight[0];
            OPTLAYER_UNROLL for (int k = 1; k < columns; ++k) sum = fma(panel[size_t(k) * ld + i], weight[k], sum);
            x_[rows[i]] = x_[rows[i]] - sum;
        }
    }

    void backward(int s, V* x_) const {
        const LdlPlan& p = *plan;
        const int first = p.first[s], columns = p.columns(s), count = p.below(s), ld = columns + count;
        const V* panel = L + p.panel[s];
        const int* rows = p.rows + p.rows_at[s];
        V *mine = x_ + first, *far = x + p.size;
        if (columns == 1 && (is_pack<V> || count < parts)) {
            if (count) mine[0] = mine[0] - dot(count, panel + 1, [&](int i) { return x_[rows[i]]; });
            return;
        }
        if (!is_pack<V> && count >= parts) {
            for (int i = 0; i < count; i += parts) {
                const int some = count - i < parts ? count - i : parts;
                Partial::gather_first(reinterpret_cast<const T*>(x_), rows + i, some).store_first(reinterpret_cast<T*>(far) + i, some);
            }
        } else {
            for (int i = 0; i < count; ++i) far[i] = x_[rows[i]];
        }
        for (int k = columns - 1; k >= 0; --k) {
            V v = mine[k];
            if (count) v = v - dot(count, panel + size_t(k) * ld + columns, [&](int i) { return far[i]; }, far);
            for (int i = columns - 1; i > k; --i) v = fnma(panel[size_t(k) * ld + i], mine[i], v);  // the one just found last
            mine[k] = v;
        }
    }
    static constexpr int parts = native_width<T>;
    using Partial = Pack<T, parts>;
    // Σ a_i b(i) in as many partial sums as a register has scalars: the same for a lane as for a matrix alone. `all`: where the
    // b(i) lie, of a matrix alone with so many.
    template <class At>
    static OPTLAYER_INLINE V dot(int count, const V* a, At&& b, [[maybe_unused]] const V* all = nullptr) {
        if (count < parts) {
            if (count == 1) return few<1>(a, b);
            if (count == 2) return few<2>(a, b);
            if (count == 3) return few<3>(a, b);
            if (count == 4) return few<4>(a, b);
            if (count == 5) return few<5>(a, b);
            return count == 6 ? few<6>(a, b) : few<7>(a, b);
        }
        static_assert(parts <= 8, "as many cases as a register has scalars");
        if constexpr (is_pack<V> || parts == 1) {
            V sum[parts];
            OPTLAYER_UNROLL for (int i = 0; i < parts; ++i) sum[i] = a[i] * b(i);
            int i = parts;
            for (; i + parts <= count; i += parts)
                OPTLAYER_UNROLL for (int j = 0; j < parts; ++j) sum[j] = fma(a[i + j], b(i + j), sum[j]);
            for (; i < count; ++i) sum[i % parts] = fma(a[i], b(i), sum[i % parts]);
            for (int half = parts / 2; half; half /= 2)
                for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
            return sum[0];
        } else {
            Partial sum = Partial::load(a) * Partial::load(all);
            int i = parts;
            for (; i + parts <= count; i += parts) sum = fma(Partial::load(a + i), Partial::load(all + i), sum);
            if (i < count) sum = fma(Partial::load_first(a + i, count - i), Partial::load_first(all + i, count - i), sum);
            return sum.folded();
        }
    }
    // The same where some partial sums have no term.
    template <int count, class At>
    static OPTLAYER_INLINE V few(const V* a, At&& b) {
        V part[count];
        OPTLAYER_UNROLL for (int i = 0; i < count; ++i) part[i] = a[i] * b(i);
        int left = count;
        OPTLAYER_UNROLL for (int half = 4; half; half /= 2) {
            OPTLAYER_UNROLL for (int i = 0; i < half; ++i)
                if (i + half < left) part[i] = part[i] + part[i + half];
            left = left < half ? left : half;
        }
        return part[0];
    }
};

}  // namespace optlayer

// The matrices of one QP. A kind of matrix is a struct for rows (G, A) and one for what is symmetric (Q), with
//
//     times(t, z, out)          out = M z                 row(i), column(j)    lines: each(f) is f(index, entry) over
//     add_t(t, y, out, sign)    out += ±M'y                                    what they store
//     add_times(t, z, out)      out += Q z                diagonal(j)          an entry of Q
//
// and one that says which these are and how many terms their sums have. `QP` is made of that. How entries lie is known to the
// door and to the eliminations, normal.h, schur.h and active.h of dense matrices, sparse.h of sparse ones; and to two places
// of verdict.h where dense ones are read entry by entry.
#pragma once
#include "workspace.h"

namespace optlayer {

struct LdlPlan;  // ldl.h

// Σ |entry||x|: a measure, the order of whose sum is free.
template <class Line, class V>
OPTLAYER_INLINE V magnitude(const Line& line, const V* x) {
    V sum = V(0);
#ifndef __CUDACC_RTC__
    if constexpr (Line::strided && std::is_floating_point<V>::value)
        if (line.step == 1) {
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < line.count; ++i) sum += std::fabs(V(line.values[i]) * x[line.first + i]);
            return sum;
        }
#endif
    line.each([&](int i, auto entry) { sum = fma(abs(V(entry)), abs(x[i]), sum); });
    return sum;
}
template <class Line, class V>
V dot(const Line& line, const V* x) {
    V sum = V(0);
    line.each([&](int i, auto entry) { sum = fma(V(entry), x[i], sum); });
    return sum;
}
template <class V, class Line>
V largest(const Line& line) {
    V top = V(0);
    line.each([&](int, auto entry) { top = max(top, abs(V(entry))); });
    return top;
}

// ---- dense: a row is contiguous, so the transpose is column-major

template <class U>
struct DenseLine {
    static constexpr bool strided = true;
    const U* values;
    int step, count, first = 0;  // first: index of values[0]
    template <class F> void each(F&& f) const {
        for (int i = 0; i < count; ++i) f(first + i, values[size_t(i) * step]);
    }
    // Whether `sum` and the magnitude reach `wanted` in all lanes; they mostly do within a few entries.
    template <class V> bool reaches(const V* x, V& sum, V wanted) const {
        constexpr int few = 32;
        for (int i = 0; i < count && !all(sum >= wanted); i += few)
            sum = sum + magnitude(DenseLine{values + size_t(i) * step, step, count - i < few ? count - i : few, first + i}, x);
        return all(sum >= wanted);
    }
};
template <class U>
struct DenseRows {
    const U* entries;
    int n, count;
    DenseLine<U> row(int i) const { return {entries + size_t(i) * n, 1, n}; }
    DenseLine<U> column(int j) const { return {entries + j, n, count}; }
    template <class Tm, class V> void times(const Tm& t, const V* z, V* out) const {
        t.each(count, [&](int i) { out[i] = V(0); });
        if (count) t.gemv_t(n, count, entries, n, z, out);
    }
    template <class Tm, class V> void add_t(const Tm& t, const V* y, V* out, int sign) const {
        if (count) t.gemv(n, count, entries, n, y, out, sign);
    }
};
template <class U>
struct DenseSymmetric {  // or its diagonal alone
    const U* entries;
    int n;
    bool narrow;
    U diagonal(int j) const { return narrow ? entries[j] : entries[size_t(j) * n + j]; }
    DenseLine<U> row(int j) const {
        if (narrow) return {entries + j, 1, 1, j};
        return {entries + size_t(j) * n, 1, n};
    }
    template <class Tm, class V> void add_times(const Tm& t, const V* z, V* out) const {
        if (narrow) t.each(n, [&](int j) { out[j] = fma(V(entries[j]), z[j], out[j]); });
        else t.gemv(n, n, entries, n, z, out);
    }
};

struct Dense {
    static constexpr bool has_units = false;
    int n, m, p;
    bool diagonal;  // Q is its diagonal
    template <class U> DenseSymmetric<U> quadratic(const U* Q) const { return {Q, n, diagonal}; }
    template <class U> DenseRows<U> inequalities(const U* G) const { return {G, n, p}; }
    template <class U> DenseRows<U> equalities(const U* A) const { return {A, n, m}; }
    int row_terms(int) const { return n; }
    int A_terms(int) const { return n; }
    int force_terms(int) const { return n; }
};

// ---- sparse

// The rows of G or A, and the same entries by columns.
struct Incidence {
    const int *first, *col;                   // of each row: entries first[i] to first[i + 1], their columns
    const int *col_first, *col_row, *col_at;  // of each column: rows and entries
    int row(int i) const { return first[i + 1] - first[i]; }  // how many entries it has
    int column(int j) const { return col_first[j + 1] - col_first[j]; }
};

// Values of a QP lie together: the diagonal of Q, as far as it is stored, its entries below the diagonal, G, A.
struct SparsePattern {
    int n, m, p;
    int diagonals, lowers, G_entries, A_entries;
    const int* diagonal;          // variable of each stored diagonal entry
    const int* diagonal_at;       // and its place in the values, or -1
    const int *row, *col;         // of the entries below the diagonal
    const int *Q_first, *Q_other, *Q_at;  // of each variable: those that Q couples it with, itself included, and the entries
    Incidence G, A;
    const LdlPlan* kkt;
    const int* place;             // of variable, row of G, row of A in the order of elimination

    int Q_entries() const { return diagonals + lowers; }
    int entries() const { return Q_entries() + G_entries + A_entries; }
    int order() const { return n + p + m; }
};

template <class U>
struct SparseLine {
    static constexpr bool strided = false;
    const U* values;
    const int *index, *at;  // of each entry: column or row, and which value it is (nullptr: its own)
    int from, to;
    template <class F> void each(F&& f) const {
        for (int e = from; e < to; ++e) f(index[e], values[at ? at[e] : e]);
    }
};
template <class U>
struct SparseRows {
    const Incidence& of;
    const U* values;
    int count;
    SparseLine<U> row(int i) const { return {values, of.col, nullptr, of.first[i], of.first[i + 1]}; }
    SparseLine<U> column(int j) const { return {values, of.col_row, of.col_at, of.col_first[j], of.col_first[j + 1]}; }
    template <class Tm, class V> void times(const Tm&, const V* z, V* out) const {
        for (int i = 0; i < count; ++i) out[i] = dot(row(i), z);
    }
    template <class Tm, class V> void add_t(const Tm&, const V* y, V* out, int sign) const {
        for (int i = 0; i < count; ++i) {
            const V weight = sign > 0 ? y[i] : -y[i];
            row(i).each([&](int j, U entry) { out[j] = fma(V(entry), weight, out[j]); });
        }
    }
};
template <class U>
struct SparseSymmetric {
    const SparsePattern& of;
    const U* values;
    U diagonal(int j) const { return of.diagonal_at[j] < 0 ? U(0) : values[of.diagonal_at[j]]; }
    SparseLine<U> row(int j) const { return {values, of.Q_other, of.Q_at, of.Q_first[j], of.Q_first[j + 1]}; }
    template <class Tm, class V> void add_times(const Tm&, const V* z, V* out) const {
        for (int e = 0; e < of.diagonals; ++e) out[of.diagonal[e]] = fma(V(values[e]), z[of.diagonal[e]], out[of.diagonal[e]]);
        const U* lower = values + of.diagonals;
        for (int e = 0; e < of.lowers; ++e) {
            const int i = of.row[e], j = of.col[e];
            out[i] = fma(V(lower[e]), z[j], out[i]);
            out[j] = fma(V(lower[e]), z[i], out[j]);
        }
    }
};

struct Sparse {
    static constexpr bool has_units = true;
    int n, m, p;
    const SparsePattern* pattern;
    template <class U> SparseSymmetric<U> quadratic(const U* Q) const { return {*pattern, Q}; }
    template <class U> SparseRows<U> inequalities(const U* G) const { return {pattern->G, G, p}; }
    template <class U> SparseRows<U> equalities(const U* A) const { return {pattern->A, A, m}; }
    int row_terms(int i) const { return i < p ? pattern->G.row(i) : 1; }
    int A_terms(int i) const { return pattern->A.row(i); }
    int force_terms(int j) const { return pattern->Q_first[j + 1] - pattern->Q_first[j] + pattern->G.column(j) + pattern->A.column(j); }
};

// ---- one QP, whatever its matrices

// V: value of a member; U: entry of a matrix, scalar when the batch shares all matrices.
template <class V, class U, class Kind>
struct QP : Kind {
    using T = scalar_of<V>;
    using Kind::n, Kind::m, Kind::p, Kind::quadratic, Kind::inequalities, Kind::equalities;
    const U *Q, *G, *A;
    const V *q, *b;
    int bounds = 0;            // n when variables have bounds: rows p..p+n of C = [G; I]
    const V* units = nullptr;  // of the variables, by which the judge takes them for equally large, where it knows them

    int rows() const { return p + bounds; }
    void point_to(const U* values) { Q = values, G = Q + this->pattern->Q_entries(), A = G + this->pattern->G_entries; }
    V unit(int j) const { return Kind::has_units ? units[j] : V(1); }
    V curvature(int j) const { return V(quadratic(Q).diagonal(j)); }

    // out += Q z,  out = C z,  out += C'y,  out = A z,  out += A'nu
    template <class Tm> OPTLAYER_CALL void add_Qz(const Tm& t, const V* z, V* out) const { quadratic(Q).add_times(t, z, out); }
    template <class Tm> OPTLAYER_CALL void rows_times(const Tm& t, const V* z, V* out) const {
        inequalities(G).times(t, z, out);
        t.each(bounds, [&](int j) { out[p + j] = z[j]; });
    }
    template <class Tm> OPTLAYER_CALL void add_rows_t(const Tm& t, const V* y, V* out, int sign = 1) const {
        inequalities(G).add_t(t, y, out, sign);
        const V sg = V(sign);
        t.each(bounds, [&](int j) { out[j] = fma(sg, y[p + j], out[j]); });
    }
    template <class Tm> OPTLAYER_CALL void A_times(const Tm& t, const V* z, V* out) const { equalities(A).times(t, z, out); }
    template <class Tm> OPTLAYER_CALL void add_At(const Tm& t, const V* nu, V* out, int sign = 1) const { equalities(A).add_t(t, nu, out, sign); }

    // One entry of a product with the sizes of everything: Σ |M_ij||x_j|.
    V Q_size(int j, const V* z) const { return magnitude(quadratic(Q).row(j), z); }
    V row_size(int i, const V* z) const { return i < p ? magnitude(inequalities(G).row(i), z) : abs(z[i - p]); }
    V rows_t_size(int j, const V* y) const {
        const V sum = magnitude(inequalities(G).column(j), y);
        return bounds ? sum + abs(y[p + j]) : sum;
    }
    V A_size(int i, const V* z) const { return magnitude(equalities(A).row(i), z); }
    V At_size(int j, const V* nu) const { return magnitude(equalities(A).column(j), nu); }
    // Of dense matrices, whether the same reaches `wanted` in all lanes, or |q_j| + (|Q||z| + |C'||y| + |A'||nu|)_j does.
    bool row_reaches(int i, const V* z, V wanted) const {
        V sum = i < p ? V(0) : abs(z[i - p]);
        return i < p ? inequalities(G).row(i).reaches(z, sum, wanted) : all(sum >= wanted);
    }
    bool A_reaches(int i, const V* z, V wanted) const {
        V sum = V(0);
        return equalities(A).row(i).reaches(z, sum, wanted);
    }
    bool stationarity_reaches(int j, const V* z, const V* y, const V* nu, V wanted) const {
        const V own = abs(curvature(j) * z[j]);
        V sum = abs(q[j]) + (bounds ? abs(y[p + j]) : V(0)) + own;
        if (all(sum >= wanted)) return true;
        if (!this->diagonal) sum = sum - own;
        return equalities(A).column(j).reaches(nu, sum, wanted) || inequalities(G).column(j).reaches(y, sum, wanted) ||
               (!this->diagonal && quadratic(Q).row(j).reaches(z, sum, wanted));
    }

    // The largest entry of a row of Q, of C, of A.
    V Q_largest(int j) const { return largest<V>(quadratic(Q).row(j)); }
    V row_largest(int i) const { return i < p ? largest<V>(inequalities(G).row(i)) : V(1); }
    V A_largest(int i) const { return largest<V>(equalities(A).row(i)); }
    // f(variable, entry) over row i of C
    template <class F> void each_of_row(int i, F&& f) const {
        if (i >= p) return f(i - p, V(1));
        inequalities(G).row(i).each([&](int j, U entry) { f(j, V(entry)); });
    }
    // Row i of the user's G times his z.
    T row_value(const T* values, int i, const T* x) const { return dot(inequalities(values).row(i), x); }
};
template <class V, class U> using Data = QP<V, U, Dense>;
template <class V, class U> using SparseData = QP<V, U, Sparse>;

}  // namespace optlayer

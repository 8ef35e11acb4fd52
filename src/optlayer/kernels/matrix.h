// The matrices of one QP, dense or sparse, and their products.
#pragma once
#include "workspace.h"

namespace optlayer {

struct LdlPlan;  // ldl.h

// Data of one QP. V: value of a member; U: entry of a matrix, scalar when the batch shares all matrices.
// Column-major: Q is n×n symmetric (or its diagonal), G is n×p and A n×m: a row of the constraint is contiguous.
template <class V, class U>
struct Data {
    int n, m, p;
    bool diagonal;
    const U *Q, *G, *A;
    const V *q, *b;

    int bounds = 0;  // n when variables have bounds: rows p..p+n of C = [G; I]
    int rows() const { return p + bounds; }

    // out += Q z
    template <class Tm>
    OPTLAYER_CALL void add_Qz(const Tm& t, const V* z, V* out) const {
        if (diagonal)
            t.each(n, [&](int j) { out[j] = fma(V(Q[j]), z[j], out[j]); });
        else
            t.gemv(n, n, Q, n, z, out);
    }
    // out = C z
    template <class Tm>
    OPTLAYER_CALL void rows_times(const Tm& t, const V* z, V* out) const {
        t.each(p, [&](int i) { out[i] = V(0); });
        if (p) t.gemv_t(n, p, G, n, z, out);
        t.each(bounds, [&](int j) { out[p + j] = z[j]; });
    }
    // out += C'y
    template <class Tm>
    OPTLAYER_CALL void add_rows_t(const Tm& t, const V* y, V* out, int sign = 1) const {
        if (p) t.gemv(n, p, G, n, y, out, sign);
        const V sg = V(sign);
        t.each(bounds, [&](int j) { out[j] = fma(sg, y[p + j], out[j]); });
    }
    // out = A z
    template <class Tm>
    OPTLAYER_CALL void A_times(const Tm& t, const V* z, V* out) const {
        t.each(m, [&](int i) { out[i] = V(0); });
        if (m) t.gemv_t(n, m, A, n, z, out);
    }
    // out += A'nu
    template <class Tm>
    OPTLAYER_CALL void add_At(const Tm& t, const V* nu, V* out, int sign = 1) const {
        if (m) t.gemv(n, m, A, n, nu, out, sign);
    }

    // One entry of a product with the sizes of everything: Σ |M_ij||x_j|.
    V Q_size(int j, const V* z) const { return diagonal ? abs(V(Q[j]) * z[j]) : sizes(Q + size_t(j) * n, 1, n, z); }
    V row_size(int i, const V* z) const { return i < p ? sizes(G + size_t(i) * n, 1, n, z) : abs(z[i - p]); }
    V rows_t_size(int j, const V* y) const {
        const V sum = sizes(G + j, n, p, y);
        return bounds ? sum + abs(y[p + j]) : sum;
    }
    // Whether the same reaches `wanted` in all lanes; it mostly does within a few entries.
    bool row_reaches(int i, const V* z, V wanted) const {
        V sum = i < p ? V(0) : abs(z[i - p]);
        return i < p ? reaches(G + size_t(i) * n, 1, n, z, sum, wanted) : all(sum >= wanted);
    }
    bool A_reaches(int i, const V* z, V wanted) const {
        V sum = V(0);
        return reaches(A + size_t(i) * n, 1, n, z, sum, wanted);
    }
    // Whether |q_j| + (|Q||z| + |C'||y| + |A'||nu|)_j does.
    bool stationarity_reaches(int j, const V* z, const V* y, const V* nu, V wanted) const {
        V sum = abs(q[j]) + (bounds ? abs(y[p + j]) : V(0)) + abs(curvature(j) * z[j]);
        if (all(sum >= wanted)) return true;
        if (!diagonal) sum = sum - abs(curvature(j) * z[j]);
        return reaches(A + j, n, m, nu, sum, wanted) || reaches(G + j, n, p, y, sum, wanted) ||
               (!diagonal && reaches(Q + size_t(j) * n, 1, n, z, sum, wanted));
    }
    V A_size(int i, const V* z) const { return sizes(A + size_t(i) * n, 1, n, z); }
    V At_size(int j, const V* nu) const { return sizes(A + j, n, m, nu); }
    static constexpr bool has_units = false;  // whether the variables' own units are known (sparse.h)
    V unit(int) const { return V(1); }
    int row_terms(int) const { return n; }  // of a row, and of an entry of stationarity: how many sums take up
    int A_terms(int) const { return n; }
    int force_terms(int) const { return n; }
    V curvature(int j) const { return V(diagonal ? Q[j] : Q[size_t(j) * n + j]); }
    // f(variable, entry) over row i of C
    template <class F> void each_of_row(int i, F&& f) const {
        if (i >= p) return f(i - p, V(1));
        for (int j = 0; j < n; ++j) f(j, V(G[size_t(i) * n + j]));
    }
    // The largest entry of a row of Q, of C, of A.
    V Q_largest(int j) const { return diagonal ? abs(V(Q[j])) : largest(Q + size_t(j) * n); }
    V row_largest(int i) const { return i < p ? largest(G + size_t(i) * n) : V(1); }
    V A_largest(int i) const { return largest(A + size_t(i) * n); }

  private:
    static bool reaches(const U* x, int step, int count, const V* y, V& sum, V wanted) {
        constexpr int few = 32;
        for (int i = 0; i < count && !all(sum >= wanted); i += few)
            sum = sum + sizes(x + size_t(i) * step, step, count - i < few ? count - i : few, y + i);
        return all(sum >= wanted);
    }
    static V sizes(const U* x, int step, int count, const V* y) {
        V sum = V(0);
#ifndef __CUDACC_RTC__
        if constexpr (std::is_floating_point<V>::value) {  // (a measure: the order of its sum is free)
            if (step == 1) {
#pragma omp simd reduction(+ : sum)
                for (int i = 0; i < count; ++i) sum += std::fabs(V(x[i]) * y[i]);
                return sum;
            }
        }
#endif
        for (int i = 0; i < count; ++i) sum = fma(abs(V(x[size_t(i) * step])), abs(y[i]), sum);
        return sum;
    }
    V largest(const U* row) const {
        V top = V(0);
        for (int j = 0; j < n; ++j) top = max(top, abs(V(row[j])));
        return top;
    }
};

// The rows of G or A, and the same entries by columns.
struct Incidence {
    const int *first, *col;                   // of each row: entries first[i] to first[i + 1], their columns
    const int *col_first, *col_row, *col_at;  // of each column: rows and entries
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

// V: value of a member; U: entry of a matrix, scalar when the batch shares all matrices.
template <class V, class U>
struct SparseData {
    using T = scalar_of<V>;
    int n, m, p;
    int bounds = 0;
    const SparsePattern* pattern;
    const U *Q, *G, *A;  // values
    const V *q, *b;
    const V* units = nullptr;  // of the variables, by which the judge takes them for equally large

    int rows() const { return p + bounds; }
    void point_to(const U* values) { Q = values, G = values + pattern->Q_entries(), A = G + pattern->G_entries; }

    template <class Tm>
    void add_Qz(const Tm&, const V* z, V* out) const {
        const SparsePattern& s = *pattern;
        for (int e = 0; e < s.diagonals; ++e) out[s.diagonal[e]] = fma(V(Q[e]), z[s.diagonal[e]], out[s.diagonal[e]]);
        const U* lower = Q + s.diagonals;
        for (int e = 0; e < s.lowers; ++e) {
            const int i = s.row[e], j = s.col[e];
            out[i] = fma(V(lower[e]), z[j], out[i]);
            out[j] = fma(V(lower[e]), z[i], out[j]);
        }
    }
    template <class Tm>
    void rows_times(const Tm&, const V* z, V* out) const {
        times(pattern->G, G, p, z, out);
        for (int j = 0; j < bounds; ++j) out[p + j] = z[j];
    }
    template <class Tm>
    void add_rows_t(const Tm&, const V* y, V* out, int sign = 1) const {
        add_transposed(pattern->G, G, p, y, out, sign);
        const V sg = V(T(sign));
        for (int j = 0; j < bounds; ++j) out[j] = fma(sg, y[p + j], out[j]);
    }
    template <class Tm>
    void A_times(const Tm&, const V* z, V* out) const { times(pattern->A, A, m, z, out); }
    template <class Tm>
    void add_At(const Tm&, const V* nu, V* out, int sign = 1) const { add_transposed(pattern->A, A, m, nu, out, sign); }

    V Q_size(int j, const V* z) const { return over(Q, pattern->Q_first, pattern->Q_other, pattern->Q_at, j, z); }
    V row_size(int i, const V* z) const { return i < p ? over(G, pattern->G.first, pattern->G.col, nullptr, i, z) : abs(z[i - p]); }
    V rows_t_size(int j, const V* y) const {
        const V sum = over(G, pattern->G.col_first, pattern->G.col_row, pattern->G.col_at, j, y);
        return bounds ? sum + abs(y[p + j]) : sum;
    }
    V A_size(int i, const V* z) const { return over(A, pattern->A.first, pattern->A.col, nullptr, i, z); }
    V At_size(int j, const V* nu) const { return over(A, pattern->A.col_first, pattern->A.col_row, pattern->A.col_at, j, nu); }
    // How many terms a row has, and an entry of stationarity.
    int row_terms(int i) const { return i < p ? pattern->G.first[i + 1] - pattern->G.first[i] : 1; }
    int A_terms(int i) const { return pattern->A.first[i + 1] - pattern->A.first[i]; }
    int force_terms(int j) const {
        const SparsePattern& s = *pattern;
        return s.Q_first[j + 1] - s.Q_first[j] + s.G.col_first[j + 1] - s.G.col_first[j] + s.A.col_first[j + 1] - s.A.col_first[j];
    }
    V curvature(int j) const { return pattern->diagonal_at[j] < 0 ? V(T(0)) : V(Q[pattern->diagonal_at[j]]); }
    static constexpr bool has_units = true;
    V unit(int j) const { return units[j]; }
    template <class F> void each_of_row(int i, F&& f) const {
        if (i >= p) return f(i - p, V(T(1)));
        for (int e = pattern->G.first[i]; e < pattern->G.first[i + 1]; ++e) f(pattern->G.col[e], V(G[e]));
    }
    // Row i of the user's G times his z.
    T row_value(const T* values, int i, const T* x) const {
        T sum = T(0);
        for (int e = pattern->G.first[i]; e < pattern->G.first[i + 1]; ++e) sum = fma(values[e], x[pattern->G.col[e]], sum);
        return sum;
    }
    V Q_largest(int j) const {
        V top = V(T(0));
        for (int e = pattern->Q_first[j]; e < pattern->Q_first[j + 1]; ++e) top = max(top, abs(V(Q[pattern->Q_at[e]])));
        return top;
    }
    V row_largest(int i) const { return i < p ? largest(pattern->G, G, i) : V(T(1)); }
    V A_largest(int i) const { return largest(pattern->A, A, i); }

  private:
    static void times(const Incidence& M, const U* values, int rows, const V* z, V* out) {
        for (int i = 0; i < rows; ++i) {
            V sum = V(T(0));
            for (int e = M.first[i]; e < M.first[i + 1]; ++e) sum = fma(V(values[e]), z[M.col[e]], sum);
            out[i] = sum;
        }
    }
    static void add_transposed(const Incidence& M, const U* values, int rows, const V* y, V* out, int sign) {
        for (int i = 0; i < rows; ++i) {
            const V weight = sign > 0 ? y[i] : -y[i];
            for (int e = M.first[i]; e < M.first[i + 1]; ++e) out[M.col[e]] = fma(V(values[e]), weight, out[M.col[e]]);
        }
    }
    // Σ |entry||x| over a row or column
    static V over(const U* values, const int* first, const int* other, const int* at, int i, const V* x) {
        V sum = V(T(0));
        for (int e = first[i]; e < first[i + 1]; ++e) sum = fma(abs(V(values[at ? at[e] : e])), abs(x[other[e]]), sum);
        return sum;
    }
    static V largest(const Incidence& M, const U* values, int i) {
        V top = V(T(0));
        for (int e = M.first[i]; e < M.first[i + 1]; ++e) top = max(top, abs(V(values[e])));
        return top;
    }
};

}  // namespace optlayer

// One QP as the kernels see it, and the arena its vectors live in.
#pragma once
#include "team.h"

namespace optlayer {

// Fast memory of a GPU's team, asked first: vectors always (`vectors` bytes are set aside for them), then matrices in
// the order of asking, while they fit.
struct Fast {
    char* base;
    size_t size, vectors, longest;  // a piece of up to `longest` bytes is a vector
    size_t used = 0, asked = 0;

    bool fits(size_t bytes) const { return bytes <= longest ? used + bytes <= size : used + bytes + vectors_left() <= size; }
    size_t vectors_left() const { return vectors > asked ? vectors - asked : 0; }
    char* take(size_t bytes) {
        if (!fits(bytes)) return nullptr;
        char* piece = base + used;
        used += bytes;
        if (bytes <= longest) asked += bytes;
        return piece;
    }
};
struct Moved {  // a piece that lives in fast memory until it is brought home
    char *from, *to;
    size_t bytes;
};

// Hands out aligned pieces of one block. With base == nullptr it only measures.
struct Arena {
    char* base;
    size_t used = 0, align = 64;  // (a power of two)
    Fast* fast = nullptr;    // pieces come from here if they fit
    Moved* moved = nullptr;  // then each piece has a home in this block too, and is listed
    int count = 0;

    explicit Arena(void* b = nullptr) : base(static_cast<char*>(b)) {}

    template <class X>
    X* take(size_t items) {
        return reinterpret_cast<X*>(piece((items * sizeof(X) + align - 1) & ~(align - 1)));
    }
    OPTLAYER_CALL char* piece(size_t bytes) {
        char* home = base + used;  // offset only while measuring
        char* quick = fast ? fast->take(bytes) : nullptr;
        if (quick && !moved) return quick;
        if (quick) moved[count++] = {quick, home, bytes};
        used += bytes;
        return quick ? quick : home;
    }
};

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

// The inequalities, one entry a side: the upper sides of the p rows of G, their lower sides if they have any, then n lower
// and n upper bounds. Side k belongs to row i of C = [G; I] with sign σ:  σ c_i'z + s_k = h_k,  s_k, lam_k >= 0.
template <class V>
struct Sides {
    int p, below, lower, upper, base;  // below: p if rows have lower sides, else 0; base: first row of C that is a bound
    V *h, *on, *s, *lam, *ds, *dlam, *r, *c;
    V *active;                   // 1 where the last step shrank s rather than lam
    V *weight;                   // per side: its share of D, kept for the derivative
    V *D, *e, *v, *dy, *dt, *d, *goal;  // per row: weight, constant, C z, net multiplier step, C dz, scale, active value
    V count;                     // number of finite sides
    V soft = V(0), soft_equality = V(0);  // what may be violated:  σ c'z + s − soft lam = h in G,  A z − soft nu = b

    V soft_side(int k) const { return k < first_lower() ? soft : V(0); }
    V soft_row(int i) const { return i < p ? soft : V(0); }
    int total() const { return p + below + lower + upper; }
    int rows() const { return base + (lower > upper ? lower : upper); }
    int first_lower() const { return p + below; }
    int first_upper() const { return p + below + lower; }
    // The lower side of the row or variable whose upper side k is, or -1.
    int opposite(int k) const {
        if (k < p) return below ? p + k : -1;
        return k >= first_upper() && lower ? first_lower() + k - first_upper() : -1;
    }

    void place(Arena& keep, Arena& work) {
        weight = keep.take<V>(total());
        V** of_sides[] = {&h, &on, &s, &lam, &ds, &dlam, &r, &c, &active};
        V** of_rows[] = {&D, &e, &v, &dy, &dt, &d, &goal};
        for (V** x : of_sides) *x = work.take<V>(total());
        for (V** x : of_rows) *x = work.take<V>(rows());
    }

    // f(side, row, sign) over all sides
    template <class Tm, class F>
    void each(const Tm& t, F&& f) const {
        if constexpr (Tm::by_rows) {  // both sides of a row by one thread: one pass, one barrier, and the body once
            t.each(rows(), [&](int i) {
                OPTLAYER_ROLLED
                for (int above = 0; above < 2; ++above) {
                    const bool bound = i >= p;
                    const int j = bound ? i - base : i, count = bound ? (above ? upper : lower) : (above ? p : below);
                    if (j >= count) continue;
                    const int first = bound ? (above ? first_upper() : first_lower()) : (above ? 0 : p);
                    f(first + j, i, V(above ? 1 : -1));
                }
            });
            return;
        }
        const struct { int count, side, row, sign; } parts[] = {
            {p, 0, 0, 1}, {below, p, 0, -1}, {lower, first_lower(), base, -1}, {upper, first_upper(), base, 1}};
        for (const auto& part : parts) {  // (one loop: so that the body is part of it)
            const V sign = V(scalar_of<V>(part.sign));
            t.each(part.count, [&](int k) { f(part.side + k, part.row + k, sign); });
        }
    }
};

}  // namespace optlayer

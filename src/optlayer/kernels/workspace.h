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
    size_t used = 0, align = 64;
    Fast* fast = nullptr;    // pieces come from here if they fit
    Moved* moved = nullptr;  // then each piece has a home in this block too, and is listed
    int count = 0;

    explicit Arena(void* b = nullptr) : base(static_cast<char*>(b)) {}

    template <class X>
    X* take(size_t items) {
        return reinterpret_cast<X*>(piece((items * sizeof(X) + align - 1) / align * align));
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
};

// The inequalities, one entry a side: p rows of G, then n lower, then n upper bounds.
// Side k belongs to row i of C = [G; I] with sign σ:  σ c_i'z + s_k = h_k,  s_k, lam_k >= 0.
template <class V>
struct Sides {
    int p, lower, upper, base;  // base: first row of C that is a bound
    V *h, *on, *s, *lam, *ds, *dlam, *r, *c;
    V *active;                   // 1 where the last step shrank s rather than lam
    V *weight;                   // per side: its share of D, kept for the derivative
    V *D, *e, *v, *dy, *dt, *d, *goal;  // per row: weight, constant, C z, net multiplier step, C dz, scale, active value
    V count;                     // number of finite sides

    int total() const { return p + lower + upper; }
    int rows() const { return base + (lower > upper ? lower : upper); }

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
                for (int above = i < p; above < 2; ++above) {
                    const int j = i - base;
                    if (i >= p && j >= (above ? upper : lower)) continue;
                    f(i < p ? i : p + j + (above ? lower : 0), i, V(above ? 1 : -1));
                }
            });
            return;
        }
        t.each(p, [&](int k) { f(k, k, V(1)); });
        t.each(lower, [&](int k) { f(p + k, base + k, V(-1)); });
        t.each(upper, [&](int k) { f(p + lower + k, base + k, V(1)); });
    }
};

}  // namespace optlayer

// The sides of one QP, and the arena its vectors live in.
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

// A side and its row of C; or, of one QP alone on a CPU, as many that follow each other as a register holds (`full`: all of it;
// else its lanes behind the first `count` read 0 and write nothing). W: their values.
template <class V, class W = V, bool full = true>
struct Strip {
    int side, at, count, phase;  // phase: which of the partial sums of a Tally
    OPTLAYER_INLINE W operator()(const V* of_sides) const { return detail::load_rows<W, full>(of_sides + side, count); }
    OPTLAYER_INLINE W row(const V* of_rows) const { return detail::load_rows<W, full>(of_rows + at, count); }
    OPTLAYER_INLINE void put(V* of_sides, W x) const { detail::store_rows<full>(x, of_sides + side, count); }
    OPTLAYER_INLINE void put_row(V* of_rows, W x) const { detail::store_rows<full>(x, of_rows + at, count); }
};
// A sum over sides, in as many parts as a register has scalars: the same for a lane as for a QP alone.
template <class V, class W>
struct Tally {
    static constexpr int parts = lanes_of<W> > lanes_of<V> ? 1 : native_width<scalar_of<V>>;
    W part[parts];
    OPTLAYER_INLINE Tally() {
        for (W& x : part) x = W(scalar_of<V>(0));
    }
    template <class S> OPTLAYER_INLINE void add(const S& strip, W x) { W& to = part[parts > 1 ? strip.phase : 0]; to = to + x; }
    OPTLAYER_INLINE V sum() const {
        if constexpr (parts == 1 && !std::is_same<V, W>::value) {
            return part[0].folded();
        } else {
            W x[parts];
            for (int i = 0; i < parts; ++i) x[i] = part[i];
            for (int half = parts / 2; half; half /= 2)
                for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
            return x[0];
        }
    }
};
template <class V, class W> OPTLAYER_INLINE V largest_of(const W& x) {
    if constexpr (std::is_same<V, W>::value) return x;
    else {
        V most = lane(x, 0);
        for (int i = 1; i < lanes_of<W>; ++i) most = max(most, lane(x, i));
        return most;
    }
}
template <class V, class W> OPTLAYER_INLINE V smallest_of(const W& x) { return -largest_of<V>(-x); }

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
    // The other side of the row or variable of side k, or -1.
    int other(int k) const {
        if (k < first_lower()) return k >= p ? k - p : below ? p + k : -1;
        if (k < first_upper()) return upper ? k + lower : -1;
        return lower ? k - lower : -1;
    }
    // The lower side of the row or variable whose upper side k is, or -1.
    int opposite(int k) const { return k < p || k >= first_upper() ? other(k) : -1; }
    // Whether sides k and l of one row or variable leave no room between them.
    auto closed(int k, int l) const { return (on[k] * on[l] > V(0)) & (h[k] + h[l] == V(0)); }
    // Whether they do, k the upper one, though neither has a multiplier: an equality that the multipliers do not tell.
    template <class X> auto idle_equality(int k, const X* lam) const {
        const int there = opposite(k), l = there < 0 ? k : there;
        const auto idle = closed(k, l) & (lam[k] + lam[l] == X(0));
        return there < 0 ? idle & !idle : idle;
    }
    // Whether the factor takes side k for active though it has no multiplier, as a row of zeros, or both bounds of a variable
    // that are near each other: the point is right all the same, its derivative is not. (Without room between them one has all.)
    template <class X> auto spurious(int k, const X* lam) const {
        const int there = other(k);
        const auto alone = (weight[k] > V(0)) & !(lam[k] > X(0));
        return there < 0 ? alone : alone & !closed(k, there);
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
        } else {
            each_part([&](int count, int side, int row, V sign) { t.each(count, [&](int k) { f(side + k, row + k, sign); }); });
        }
    }
    // f(strip, sign) over all of them, by the register
    template <class Tm, class F>
    void strips(const Tm& t, F&& f) const {
        using W = typename Tm::Wide;
        constexpr int step = lanes_of<W> / lanes_of<V>, phases = native_width<scalar_of<V>>;
        if constexpr (Tm::by_rows) {
            each(t, [&](int k, int i, V sign) { f(Strip<V>{k, i, 1, 0}, sign); });
        } else {
            each_part([&](int count, int side, int row, V sign) {
                const int full = count / step;
                t.each(full, [&](int k) { f(Strip<V, W>{side + k * step, row + k * step, step, k % phases}, sign); });
                if (step > 1 && full * step < count) f(Strip<V, W, false>{side + full * step, row + full * step, count - full * step, 0}, sign);
            });
        }
    }

  private:
    template <class F>
    void each_part(F&& f) const {
        const struct { int count, side, row, sign; } parts[] = {
            {p, 0, 0, 1}, {below, p, 0, -1}, {lower, first_lower(), base, -1}, {upper, first_upper(), base, 1}};
        for (const auto& part : parts) f(part.count, part.side, part.row, V(scalar_of<V>(part.sign)));  // (one loop: so that the body is part of it)
    }
};

}  // namespace optlayer

// The gradients of the data from the derivative's solution v (eq. 8): products of v and the point.
// A batched tensor gets one for each member; one that the batch shares, their sum, in the order of the members.
#pragma once
#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "kernels/solver.h"
#include "pool.h"

namespace optlayer {

struct Gradients {  // nullptr: not wanted; stride 0: shared by the batch
    Tensor Q, q, G, h, A, b, lb, ub, h_lower;
};

// The same derivative everywhere: zero for members that are not solved, NaN where NaN comes from above.
template <class T>
void same_derivative(const Args& g, int64_t k, T value) {
    const auto fill = [&](const Tensor& x, int count) {
        if (x.data) std::fill_n(View<T>(x).of(k), count, value);
    };
    fill(g.v_z, g.n), fill(g.v_lam, g.p), fill(g.v_nu, g.m), fill(g.v_lb, g.n), fill(g.v_ub, g.n), fill(g.v_lower, g.p);
}
// Whether the right-hand side of the derivative is finite; 0 x is 0 or NaN.
template <class T>
bool finite_rhs(const Args& g, int64_t k) {
    const auto spoilt = [&](const Tensor& x, int count) {
        const T* v = x.data ? View<const T>(x).of(k) : nullptr;
        T sum = T(0);
        for (int i = 0; v && i < count; ++i) sum += T(0) * v[i];
        return !(sum == T(0));
    };
    return !(spoilt(g.r_z, g.n) || spoilt(g.r_lam, g.p) || spoilt(g.r_nu, g.m) || spoilt(g.r_lb, g.n) || spoilt(g.r_ub, g.n)
             || spoilt(g.r_lower, g.p));
}

template <class T>
class Products {
  public:
    Products(const Args& args, const Gradients& gradients)
        : g(args), to(gradients), lam(net(g.lam, g.lam_lower, net_lam)), v_lam(net(g.v_lam, g.v_lower, net_v_lam)) {}

    // Threads take chunks of members for the batched tensors, and chunks of columns for the sums.
    void run() const {
        const int width = 16, chunk = int(std::max<int64_t>(1, std::min<int64_t>(g.batch / 16, 32)));
        const int64_t members = batched() ? (g.batch + chunk - 1) / chunk : 0;
        const Sum sums[] = {
            matrix(to.Q, g.diagonal ? 0 : g.n, g.z, nullptr), matrix(to.G, g.p, lam, &v_lam), matrix(to.A, g.m, g.nu, &g.v_nu)};
        int64_t count = members + 1;
        for (const Sum& s : sums) count += (s.columns + width - 1) / width;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};
        // a thread wants enough to do, or waking it up costs more than it does (call.h)
        const int64_t multiplied = int64_t(g.batch) * g.n * (1 + (g.diagonal ? 0 : g.n) + g.p + g.m);
        Pool::run(int(std::min<int64_t>({std::max(g.threads, 1), count, 1 + multiplied / 200000})), [&](int) {
            try {
                for (int64_t task; (task = next.fetch_add(1)) < count;) take(task, members, chunk, sums, width);
            } catch (...) {  // (the only one is bad_alloc)
                failed = true;
            }
        });
        if (failed) throw std::bad_alloc();
        if (sums[0].columns) symmetric_part();
        for (int64_t k = 0; g.v_least.data && k < g.batch; ++k) {
            if (shared(to.G)) least(View<T>(to.G).of(0), k, 0, g.p);
            if (shared(to.A)) least(View<T>(to.A).of(0), k, g.p, g.m);
        }
    }

  private:
    const Args& g;
    const Gradients& to;
    std::vector<T> net_lam, net_v_lam;
    Tensor lam, v_lam;  // of the rows of G: upper less lower side

    // Upper less lower side of the rows of G, where they have lower sides.
    Tensor net(const Tensor& upper, const Tensor& lower, std::vector<T>& room) const {
        if (!lower.data || !to.G.data) return upper;
        room.resize(size_t(g.batch) * g.p);
        for (int64_t k = 0; k < g.batch; ++k)
            for (int i = 0; i < g.p; ++i) room[size_t(k) * g.p + i] = row(upper, k)[i] - row(lower, k)[i];
        return {room.data(), g.p};
    }

    // −Σ v_z yᵀ + z v_yᵀ, columns as long as z; of Q with only the first term
    struct Sum {
        T* out;
        int columns;
        const Tensor *y, *v_y;
    };

    // A chunk of members; the vectors that are shared; or some columns of one of the sums.
    template <int count>
    void take(int64_t task, int64_t members, int chunk, const Sum (&sums)[count], int width) const {
        if (task < members) {
            const int64_t last = std::min<int64_t>(g.batch, (task + 1) * chunk);
            for (int64_t k = task * chunk; k < last; ++k) member(k);
            return;
        }
        task -= members;
        if (task-- == 0) return vectors();
        for (const Sum& s : sums) {
            const int64_t own = (s.columns + width - 1) / width;
            if (task < own) return sum(s, int(task) * width, std::min(width, s.columns - int(task) * width));
            task -= own;
        }
    }

    bool solved(int64_t k) const { return derivable(View<const int32_t>(g.status).of(k)[0]); }
    static const T* row(const Tensor& x, int64_t k) { return View<const T>(x).of(k); }
    static bool alone(const Tensor& x) { return x.data && x.stride; }
    static bool shared(const Tensor& x) { return x.data && !x.stride; }
    bool batched() const {
        return alone(to.Q) || alone(to.q) || alone(to.G) || alone(to.h) || alone(to.A) || alone(to.b) || alone(to.lb) || alone(to.ub)
            || alone(to.h_lower);
    }

    // ---- one member
    void member(int64_t k) const {
        const int n = g.n;
        const bool good = solved(k);
        const T *z = row(g.z, k), *v = row(g.v_z, k);
        if (alone(to.q)) copy(to.q, g.v_z, k, n, T(-1), good);
        if (alone(to.h)) copy(to.h, g.v_lam, k, g.p, T(1), good);
        if (alone(to.h_lower)) copy(to.h_lower, g.v_lower, k, g.p, T(-1), good);
        if (alone(to.b)) copy(to.b, g.v_nu, k, g.m, T(1), good);
        if (alone(to.lb)) copy(to.lb, g.v_lb, k, n, T(-1), good);
        if (alone(to.ub)) copy(to.ub, g.v_ub, k, n, T(1), good);
        if (alone(to.Q)) {
            T* out = View<T>(to.Q).of(k);
            if (g.diagonal) {
                for (int j = 0; j < n; ++j) out[j] = good ? -v[j] * z[j] : T(0);
            } else {
                for (int i = 0; i < n; ++i) line(out + size_t(i) * n, n, z[i] / 2, v, v[i] / 2, z, good);
            }
        }
        if (alone(to.G)) rows(to.G, lam, v_lam, k, g.p, good), least(View<T>(to.G).of(k), k, 0, g.p);
        if (alone(to.A)) rows(to.A, g.nu, g.v_nu, k, g.m, good), least(View<T>(to.A).of(k), k, g.p, g.m);
    }
    bool is_closest(int64_t k) const { return g.v_least.data && View<const int32_t>(g.status).of(k)[0] == CLOSEST; }
    // −τ w' of a CLOSEST member, added to `count` rows; the first τ is `from`.
    void least(T* out, int64_t k, int from, int count) const {
        if (!is_closest(k)) return;
        const T *w = row(g.v_least, k), *tau = w + g.n + from;
        for (int i = 0; i < count; ++i)
            for (int j = 0; tau[i] != T(0) && j < g.n; ++j) out[size_t(i) * g.n + j] -= tau[i] * w[j];
    }
    void copy(const Tensor& dst, const Tensor& src, int64_t k, int count, T sign, bool good) const {
        T* out = View<T>(dst).of(k);
        const T* in = row(src, k);
        for (int i = 0; i < count; ++i) out[i] = good ? sign * in[i] : T(0);
    }
    void rows(const Tensor& dst, const Tensor& y, const Tensor& v_y, int64_t k, int count, bool good) const {
        T* out = View<T>(dst).of(k);
        const T *a = row(y, k), *b = row(v_y, k);
        for (int i = 0; i < count; ++i) line(out + size_t(i) * g.n, g.n, a[i], row(g.v_z, k), b[i], row(g.z, k), good);
    }
    // out = −(a v + b z), as most rows of G have it: zero
    static void line(T* out, int n, T a, const T* v, T b, const T* z, bool good) {
        if (!good || (a == T(0) && b == T(0))) {
            std::fill(out, out + n, T(0));
        } else {
            for (int j = 0; j < n; ++j) out[j] = -(a * v[j] + b * z[j]);
        }
    }

    // ---- sums over the batch
    // In blocks, whose sums are added: float32 would lose digits in one long sum.
    template <class F>
    void blocks(T* out, size_t size, F&& accumulate) const {  // accumulate(sum, from, end)
        const int64_t block = 1024;
        std::fill(out, out + size, T(0));
        if (g.batch <= block) return accumulate(out, 0, g.batch);
        std::vector<T> part(size);
        for (int64_t from = 0; from < g.batch; from += block) {
            std::fill(part.begin(), part.end(), T(0));
            accumulate(part.data(), from, std::min<int64_t>(from + block, g.batch));
            for (size_t i = 0; i < size; ++i) out[i] += part[i];
        }
    }
    void vectors() const {
        add(to.q, g.v_z, g.n, T(-1)), add(to.h, g.v_lam, g.p, T(1)), add(to.b, g.v_nu, g.m, T(1));
        add(to.lb, g.v_lb, g.n, T(-1)), add(to.ub, g.v_ub, g.n, T(1)), add(to.h_lower, g.v_lower, g.p, T(-1));
        if (!shared(to.Q) || !g.diagonal) return;
        blocks(View<T>(to.Q).of(0), g.n, [&](T* sum, int64_t k, int64_t end) {
            for (; k < end; ++k)
                for (int j = 0; solved(k) && j < g.n; ++j) sum[j] -= row(g.v_z, k)[j] * row(g.z, k)[j];
        });
    }
    void add(const Tensor& dst, const Tensor& src, int count, T sign) const {
        if (!shared(dst)) return;
        blocks(View<T>(dst).of(0), count, [&](T* sum, int64_t k, int64_t end) {
            for (; k < end; ++k)
                for (int i = 0; solved(k) && i < count; ++i) sum[i] += sign * row(src, k)[i];
        });
    }

    Sum matrix(const Tensor& x, int columns, const Tensor& y, const Tensor* v_y) const {
        return shared(x) ? Sum{View<T>(x).of(0), columns, &y, v_y} : Sum{nullptr, 0, nullptr, nullptr};
    }
    void sum(const Sum& s, int first, int count) const {
        const int n = g.n;
        blocks(s.out + size_t(first) * n, size_t(count) * n, [&](T* sum, int64_t k, int64_t last) {
            for (int64_t end; k < last; k = end + 1) {  // runs of solved members: what the others hold may be NaN
                for (end = k; end < last && solved(end);) ++end;
                if (end == k) continue;
                const int run = int(end - k);
                update(n, count, run, sum, n, row(g.v_z, k), int(g.v_z.stride), row(*s.y, k) + first, int(s.y->stride));
                if (s.v_y)
                    update(n, count, run, sum, n, row(g.z, k), int(g.z.stride), row(*s.v_y, k) + first, int(s.v_y->stride));
            }
        });
    }
    void symmetric_part() const {
        T* out = View<T>(to.Q).of(0);
        for (int j = 0; j < g.n; ++j)
            for (int i = 0; i <= j; ++i) {
                T &a = out[size_t(j) * g.n + i], &b = out[size_t(i) * g.n + j];
                a = b = (a + b) / 2;
            }
    }
};

}  // namespace optlayer

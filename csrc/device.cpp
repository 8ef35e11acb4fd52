// Plans a call for a GPU: which elimination, and how much room it takes. Sizes alone are read, no data, no device.
#include "kernels/device.h"
#include "ladder.h"

#if defined(_WIN32)
#define OPTLAYER_API extern "C" __declspec(dllexport)
#else
#define OPTLAYER_API extern "C" __attribute__((visibility("default")))
#endif

namespace optlayer {
namespace {

// The team that measures: it has no thread, so nothing happens.
template <class Value> struct Nobody {
    using V = Value;
    static constexpr bool by_rows = true;
    using Wide = V;
    template <class F> void each(int, F&&) const {}
    template <class F> void each_pair(int, int, F&&) const {}
    template <class F> void each_lower(int, F&&) const {}
    template <class F> void one(F&&) const {}
    template <class F> V sum(int, F&&) const { return V(0); }
    template <class F> V max(int, V r, F&&) const { return r; }
    template <class F> V min(int, V r, F&&) const { return r; }
    void total(V&) const {}
    void largest(V&) const {}
    void smallest(V&) const {}
    void update_lower(int, int, V*, int, const V*, int, const V*, int) const {}
    void update(int, int, int, V*, int, const V*, int, const V*, int) const {}
    bool cholesky(int, V*, int, V*, V) const { return false; }
    void trsm_right(int, int, V*, int, const V*, int, const V*) const {}
    void solve_lower(int, const V*, int, const V*, V*) const {}
    void solve_lower_t(int, const V*, int, const V*, V*) const {}
    void gemv(int, int, const V*, int, const V*, V*, int = 1) const {}
    void gemv_t(int, int, const V*, int, const V*, V*, int = 1) const {}
    void symv_lower(int, const V*, int, const V*, V*) const {}
};

// Matrices that every iteration writes and reads.
int64_t hot_items(const Args& g, Method method, bool shared) {
    const int64_t n = g.n, m = g.m, p = g.p;
    if (method == SCHUR) return p * p * (shared ? 1 : 2);
    const int64_t k = m + (method == DIAGONAL ? p : 0), H = g.diagonal && (p == 0 || method == DIAGONAL) ? 0 : n * n;
    return H + k * k + n * k;
}

template <class T> void plan(const Args& g, const DeviceLimits& limits, DevicePlan& d) {
    d.lower = g.lb.data != nullptr, d.upper = g.ub.data != nullptr, d.keep = g.keep;
    const bool shared = !g.Q.stride && !g.G.stride && !g.A.stride;
    const unsigned offered = 1u << NORMAL | 1u << DIAGONAL | unsigned(d.threads > 1) << SCHUR;  // (a thread alone knows few)
    d.shared_bytes = shared;  // measured next
    d.method = offered >> g.method & 1 ? g.method : cheapest_elimination(d.plan(g, AUTO), true, offered);
    if (shared) {
        const Plan p = d.plan(g, Method(d.method));
        Arena block;
        block.align = 16;
        SharedBlock<T>().place(block, p);
        d.shared_bytes = int64_t((block.used + 63) / 64 * 64);
        d.prepare_bytes = int64_t(Task<T, Nobody<T>>::prepare_items(p) * sizeof(T));
    }
    const auto measure = [&](int64_t fast) {
        d.fast_bytes = fast;
        Task<T, Nobody<T>> task{g, d, {}, nullptr, nullptr};
        task.measure();
        return task.sizes;
    };
    const auto all = measure(int64_t(1) << 60);  // as if everything were fast
    const int64_t whole = int64_t(all.fast);
    d.vector_bytes = int64_t(all.vectors);
    d.hot_bytes = d.vector_bytes + hot_items(g, Method(d.method), shared) * int64_t(sizeof(T));
    if (d.hot_bytes > whole) d.hot_bytes = whole;
    // As many teams to a multiprocessor as there is work for, while each has room for what is hot.
    const int64_t room = d.threads > 1 ? (d.threads + 2 * d.threads / limits.warp) * int64_t(sizeof(T)) : 0;
    int64_t most = limits.fast_team - room;
    const int64_t wanted = (g.batch + limits.multiprocessors - 1) / limits.multiprocessors;
    for (int64_t k = 2; k <= wanted && k <= limits.teams; ++k) {
        const int64_t share = limits.fast_multiprocessor / k - 1024 - room;
        if (share >= d.hot_bytes && share < most) most = share;
    }
    if (most < 0) most = 0;
    const auto found = measure(whole < most ? whole : most / 16 * 16);
    d.slow_bytes = int64_t((found.slow + 255) / 256 * 256);
    d.keep_bytes = d.keep && d.threads > 1 ? int64_t((found.keep + 63) / 64 * 64) : 0;
    d.factor_bytes = d.keep ? int64_t(d.flags_bytes(g)) + d.shared_bytes + g.batch * d.keep_bytes : 0;
}

}  // namespace
}  // namespace optlayer

using namespace optlayer;

OPTLAYER_API int64_t optlayer_device_plan_size() { return sizeof(DevicePlan); }
// Room and elimination for `threads` threads to a QP; d has zeros but for that.
OPTLAYER_API void optlayer_device_plan(const Args* g, const DeviceLimits* limits, DevicePlan* d) {
    if (g->single) plan<float>(*g, *limits, *d);
    else plan<double>(*g, *limits, *d);
}

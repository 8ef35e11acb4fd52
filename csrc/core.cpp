// The compiled core as a plain C interface (ctypes calls it and drops the GIL): no Python, no torch.
#include <cstddef>
#include <vector>

#include "calls.h"
#include "interrupt.h"
#include "kernels/pack.h"
#include "memory.h"
#include "sparse.h"

#if defined(_WIN32)
#define OPTLAYER_API extern "C" __declspec(dllexport)
#else
#define OPTLAYER_API extern "C" __attribute__((visibility("default")))
#endif

namespace {
// What f returns; -1 without memory; -2 if Ctrl-C ended it.
template <class F> int guarded(F&& f) {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return -1;
    } catch (const optlayer::Interrupted&) {
        return -2;
    }
}
}  // namespace

OPTLAYER_API int64_t optlayer_args_size() { return sizeof(optlayer::Args); }
// Offsets of the first and the last number, of both reals, and of each tensor.
OPTLAYER_API void optlayer_args_layout(int64_t* out) {
    using optlayer::Args;
    *out++ = offsetof(Args, n), *out++ = offsetof(Args, given), *out++ = offsetof(Args, tolerance), *out++ = offsetof(Args, smoothing);
    for (size_t at = offsetof(Args, Q); at <= offsetof(Args, factor); at += sizeof(optlayer::Tensor)) *out++ = int64_t(at);
}
OPTLAYER_API int optlayer_lanes(int single) { return single ? optlayer::native_width<float> : optlayer::native_width<double>; }

// Solves and returns the number of members that are not solved; with `keep`, args.factor becomes a block with the factors and its size, until optlayer_release.
OPTLAYER_API int optlayer_solve(optlayer::Args* g) {
    return guarded([&] { return g->single == 1 ? optlayer::solve_float(*g) : optlayer::solve_double(*g); });
}
// The derivative's system at the solution, with the factors or, where there are none, without; returns 0.
OPTLAYER_API int optlayer_kkt_solve(optlayer::Args* g) {
    return guarded([&] { return g->single == 1 ? optlayer::kkt_solve_float(*g) : optlayer::kkt_solve_double(*g); });
}
// The products of eq. 8 from v, and the same after optlayer_kkt_solve if that leaves no member.
OPTLAYER_API int optlayer_products(const optlayer::Args* g, const optlayer::Gradients* to) {
    return guarded([&] { return g->single == 1 ? optlayer::products_float(*g, *to) : optlayer::products_double(*g, *to); });
}
OPTLAYER_API int optlayer_pullback(optlayer::Args* g, const optlayer::Gradients* to) {
    std::vector<char> least;  // (zero for members that are not CLOSEST)
    if (g->closest) {
        const int64_t width = g->n + g->p + g->m;
        least.resize(size_t(g->batch) * width * (g->single ? sizeof(float) : sizeof(double)));
        g->v_least = {least.data(), width};
    }
    const int left = optlayer_kkt_solve(g);
    return left ? left : optlayer_products(g, to);
}
// A block of at least so many bytes, and a block (this or a kept factor) given back for the next who asks.
OPTLAYER_API void* optlayer_take(int64_t bytes) {
    int64_t size;
    try {
        return optlayer::Blocks::take(size_t(bytes), size);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
OPTLAYER_API void optlayer_release(void* block) { optlayer::Blocks::give(block); }

// The same for matrices that are sparse, whose pattern a plan knows; made once, and kept with the structure of the problem.
OPTLAYER_API optlayer::SparsePlan* optlayer_sparse_plan(const optlayer::SparseShape* x) {
    try {
        return optlayer::sparse_plan(*x);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
OPTLAYER_API void optlayer_sparse_free(optlayer::SparsePlan* plan) { optlayer::sparse_free(plan); }
OPTLAYER_API void optlayer_sparse_cost(const optlayer::SparsePlan* plan, double* out) { optlayer::sparse_cost(*plan, out); }
OPTLAYER_API int optlayer_sparse_solve(const optlayer::SparsePlan* plan, optlayer::Args* g) {
    return guarded([&] { return optlayer::sparse_solve(*plan, *g); });
}
OPTLAYER_API int optlayer_sparse_kkt_solve(const optlayer::SparsePlan* plan, optlayer::Args* g) {
    return guarded([&] { return optlayer::sparse_kkt_solve(*plan, *g); });
}
OPTLAYER_API int optlayer_sparse_products(const optlayer::SparsePlan* plan, const optlayer::Args* g, const optlayer::Gradients* to) {
    return guarded([&] { return optlayer::sparse_products(*plan, *g, *to), 0; });
}
OPTLAYER_API int optlayer_sparse_pullback(const optlayer::SparsePlan* plan, optlayer::Args* g, const optlayer::Gradients* to) {
    const int left = optlayer_sparse_kkt_solve(plan, g);
    return left ? left : optlayer_sparse_products(plan, g, to);
}

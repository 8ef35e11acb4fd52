// The compiled core: plans a call, spreads groups of members over threads, and runs the kernels.
// A plain C interface (ctypes calls it and drops the GIL): no Python, no torch.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/solver.h"
#include "pool.h"

#if defined(_WIN32)
#define OPTLAYER_API extern "C" __declspec(dllexport)
#else
#define OPTLAYER_API extern "C" __attribute__((visibility("default")))
#endif

namespace optlayer {
namespace {

// 64-byte aligned memory that a thread keeps from call to call.
struct Block {
    void* data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
    void* reserve(size_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = (bytes + 4095) / 4096 * 4096;
            data = nullptr;
#if defined(_WIN32)
            data = std::malloc(size);
#else
            if (posix_memalign(&data, 64, size)) data = nullptr;
#endif
            if (!data) { size = 0; throw std::bad_alloc(); }
        }
        return data;
    }
};
thread_local Block scratch;
thread_local Block prepared;

// ---- structure ----------------------------------------------------------------------------------------------------
struct Structure {
    Plan plan{};
    std::vector<int> kept, lower_row, upper_row;
};

template <class T>
bool diagonal_everywhere(const Args& g) {
    if (g.diagonal) return true;
    const View<const T> Q(g.Q);
    const int64_t members = g.Q.stride ? g.batch : 1;
    for (int64_t k = 0; k < members; ++k)
        for (int i = 0; i < g.n; ++i)
            for (int j = 0; j < g.n; ++j)
                if (i != j && Q.of(k)[size_t(i) * g.n + j] != T(0)) return false;
    return true;
}

// Variable whose bound row i of G is in every member, or -1.
template <class T>
int bound_variable(const Args& g, int i) {
    const View<const T> G(g.G);
    const int64_t members = g.G.stride ? g.batch : 1;
    int variable = -1;
    bool positive = false;
    for (int64_t k = 0; k < members; ++k) {
        const T* row = G.of(k) + size_t(i) * g.n;
        int found = -1;
        for (int j = 0; j < g.n; ++j) {
            if (row[j] == T(0)) continue;
            if (found >= 0) return -1;
            found = j;
        }
        if (found < 0 || !(row[found] - row[found] == T(0))) return -1;
        if (k == 0) variable = found, positive = row[found] > T(0);
        if (found != variable || (row[found] > T(0)) != positive) return -1;
    }
    return variable;
}

// The cost model: multiply-adds of one iteration, and a tenth of what is done once.
Method cheapest(const Plan& p, bool equalities_shared) {
    const double n = p.n, m = p.m, r = p.p, R = p.rows(), k = n - m, dual = m + r;
    const bool only_rows = p.p > 0 && p.bounds == 0;
    const double once = p.shared ? 0 : ((p.diagonal ? 0 : n * n * n / 6 + n * n * dual / 2) + n * dual * dual / 2) / 10;
    const double dense_n = p.diagonal && r == 0 ? 0 : n * n * n / 6 + m * n * n / 2;
    double cost[5] = {0};
    cost[SCHUR] = only_rows ? r * r * r / 6 + 3 * r * r + once : 1e300;
    cost[NORMAL] = dense_n + r * n * n / 2 + m * m * n / 2 + m * m * m / 6 + 2 * (n * n + n * R + n * m);
    cost[DIAGONAL] = p.diagonal && r > 0 ? dual * dual * n / 2 + dual * dual * dual / 6 + 2 * n * dual : 1e300;
    cost[NULL_SPACE] = p.shared && equalities_shared && m > 0 && k > 0
                           ? R * k * k / 2 + k * k * k / 6 + 3 * n * k + 3 * n * R / 2 : 1e300;
    Method best = NORMAL;
    for (Method x : {SCHUR, DIAGONAL, NULL_SPACE})
        if (cost[x] < cost[best]) best = x;
    return best;
}

template <class T>
void find_structure(const Args& g, Structure& s) {
    Plan& p = s.plan;
    p.n = g.n, p.m = g.m;
    p.shared = (!g.Q.stride) && (!g.G.data || !g.G.stride) && (!g.A.data || !g.A.stride);
    p.diagonal = diagonal_everywhere<T>(g);
    s.lower_row.assign(g.n, -1), s.upper_row.assign(g.n, -1);
    const View<const T> G(g.G);
    for (int i = 0; i < g.p; ++i) {
        const int j = bound_variable<T>(g, i);
        bool taken = false;
        if (j >= 0) {
            const bool upper = G.of(0)[size_t(i) * g.n + j] > T(0);
            int& row = upper ? s.upper_row[j] : s.lower_row[j];
            if (row < 0 && !(upper ? g.ub.data : g.lb.data)) row = i, taken = true;
        }
        if (!taken) s.kept.push_back(i);
    }
    p.p = int(s.kept.size());
    p.lower = g.lb.data, p.upper = g.ub.data;
    for (int j = 0; j < g.n; ++j) p.lower |= s.lower_row[j] >= 0, p.upper |= s.upper_row[j] >= 0;
    p.bounds = p.lower || p.upper ? g.n : 0;
    p.kept = s.kept.data(), p.lower_row = s.lower_row.data(), p.upper_row = s.upper_row.data();
}

// ---- one group under a plan ---------------------------------------------------------------------------------------
template <class T>
struct Shared {  // what the batch shares, prepared once
    Data<T, T> a{};
    SchurFactors<T> schur{};
    NullSpace<T> null{};
    bool bad = false;

    void place(Arena& w, const Plan& p, Arena& once) {
        a.n = p.n, a.m = p.m, a.p = p.p, a.bounds = p.bounds, a.diagonal = p.diagonal;
        a.Q = w.take<T>(p.diagonal ? p.n : size_t(p.n) * p.n);
        a.G = w.take<T>(size_t(p.n) * p.p), a.A = w.take<T>(size_t(p.n) * p.m);
        if (p.method == SCHUR) {
            schur.place(w, p.n, p.m, p.p, p.diagonal);
            once.take<T>(size_t(p.n) * (p.p + p.m));
        } else if (p.method == NULL_SPACE) {
            null.n = p.n, null.m = p.m;
            null.place(w, p.rows());
            once.take<T>(NullSpace<T>::scratch(p.n, p.m));
        }
        flag = w.take<int32_t>(1);
    }
    void prepare(const Args& g, const Plan& p, void* once) {
        Group<T, T> group(g, p);
        group.choose_members(0);
        group.copy_matrices(const_cast<T*>(a.Q), const_cast<T*>(a.G), const_cast<T*>(a.A));
        Solo<T> t;
        if (p.method == SCHUR) bad = schur.prepare(t, a, static_cast<T*>(once));
        if (p.method == NULL_SPACE) bad = !null.prepare(t, a, static_cast<T*>(once));
        *flag = bad;
    }
    int32_t* flag;
};

// One layout for the solve, the derivative and the measuring of both.
template <class V, class U>
void run_group(const Args& g, const Plan& p, const Shared<scalar_of<V>>* shared, int64_t first, void* keep_at, void* work_at,
               bool adjoint, bool rebuild, size_t* keep_bytes = nullptr, size_t* work_bytes = nullptr) {
    Group<V, U> group(g, p);
    Arena keep(keep_at), work(work_at);
    const bool measure = keep_bytes != nullptr;
    Arena& kept = measure || keep_at ? keep : work;  // nothing to keep: the factors are scratch
    const U *Q = nullptr, *G = nullptr, *A = nullptr;
    if constexpr (std::is_same<U, scalar_of<V>>::value)
        if (shared && p.shared) Q = shared->a.Q, G = shared->a.G, A = shared->a.A;
    group.place_matrices(work, Q, G, A);
    group.place_sides(kept, work);
    if (!measure) {
        group.choose_members(first);
        group.load_matrices();
        if (!adjoint) group.load_vectors(), group.load_sides();
    }
    auto& a = group.a;
    auto finish = [&](auto& system, auto bad) {
        if (adjoint) {
            group.adjoint(system, work, rebuild);
        } else {
            group.solve(system, work, bad);
        }
    };
    const auto fine = V(0) > V(1);
    if (p.method == SCHUR) {
        SchurFactors<U> own{};
        const SchurFactors<U>* f = &own;
        auto bad = fine;
        if (p.shared) {
            if constexpr (std::is_same<U, scalar_of<V>>::value) {
                if (shared) f = &shared->schur, bad = mask_of<V>(shared->bad);
            }
        } else {
            own.place(kept, p.n, p.m, p.p, p.diagonal);
            U* x = work.take<U>(size_t(p.n) * (p.p + p.m));
            if constexpr (std::is_same<U, V>::value)
                if (!measure && !adjoint) bad = own.prepare(group.t, a, x);
        }
        Schur<Solo<V>, V, U> system{group.t, a, *f};
        system.place(kept, work);
        finish(system, bad);
    } else if (p.method == NULL_SPACE) {
        if constexpr (std::is_same<U, scalar_of<V>>::value) {
            static const NullSpace<U> empty{};
            NullSpace<U> f = shared ? shared->null : empty;
            f.n = p.n, f.m = p.m;
            Reduced<Solo<V>, V, U> system(group.t, a, f);
            system.place(kept, work);
            finish(system, mask_of<V>(shared ? shared->bad : false));
        }
    } else {
        Normal<Solo<V>, V, U> system{group.t, a, p.method == DIAGONAL};
        system.place(kept, work);
        if (!measure && adjoint) system.kappa = system.curvature();
        finish(system, fine);
    }
    if (measure) {
        *keep_bytes = (keep.used + 63) / 64 * 64, *work_bytes = (work.used + 63) / 64 * 64;
    }
}

template <class V, class T>
void dispatch(const Args& g, const Plan& p, const Shared<T>* s, int64_t first, void* keep, void* work, bool adjoint,
              bool rebuild, size_t* kb = nullptr, size_t* wb = nullptr) {
    if (p.shared) run_group<V, T>(g, p, s, first, keep, work, adjoint, rebuild, kb, wb);
    else run_group<V, V>(g, p, s, first, keep, work, adjoint, rebuild, kb, wb);
}

template <class T>
struct Call {
    using Lanes = Pack<T, native_width<T>>;
    const Args& g;
    Structure structure;
    Plan& plan = structure.plan;
    Plan spare{};  // the second method, one member at a time
    Shared<T> shared;
    bool lanes = false;

    explicit Call(Args& args) : g(args) {
        find_structure<T>(g, structure);
        plan.method = cheapest(plan, !g.A.data || !g.A.stride);
        if (g.method != AUTO) plan.method = possible(Method(g.method)) ? Method(g.method) : NORMAL;
        spare = plan;
        spare.method = NORMAL, spare.shared = false, spare.lanes = 1;
        plan.lanes = 1;
        measure(spare);
        measure(plan);
        // several QPs to a register while a group stays in the second-level cache
        const size_t group = (plan.keep_bytes + plan.work_bytes) * native_width<T>;
        lanes = g.lanes > 1 || (g.lanes == 0 && group <= size_t(1) << 20 && g.batch > 1);
        if (lanes) plan.lanes = native_width<T>, measure(plan);
        args.method = plan.method, args.lanes = plan.lanes;
    }
    bool possible(Method x) const {
        if (x == SCHUR) return plan.p > 0 && plan.bounds == 0;
        if (x == DIAGONAL) return plan.diagonal && plan.p > 0;
        if (x == NULL_SPACE) return plan.shared && plan.m > 0 && plan.m < plan.n;
        return x == NORMAL;
    }
    void measure(Plan& p) {
        size_t keep = 0, work = 0;
        if (p.lanes > 1) dispatch<Lanes, T>(g, p, nullptr, 0, nullptr, nullptr, false, false, &keep, &work);
        else dispatch<T, T>(g, p, nullptr, 0, nullptr, nullptr, false, false, &keep, &work);
        p.keep_bytes = keep, p.work_bytes = work;
        if (p.lanes > 1) dispatch<Lanes, T>(g, p, nullptr, 0, nullptr, nullptr, true, false, &keep, &work);
        else dispatch<T, T>(g, p, nullptr, 0, nullptr, nullptr, true, false, &keep, &work);
        if (work > p.work_bytes) p.work_bytes = work;
        Arena block, once;
        Shared<T> s;
        if (p.shared) s.place(block, p, once);
        p.shared_bytes = block.used, p.shared_scratch = once.used;
    }
    int64_t groups() const { return (g.batch + plan.lanes - 1) / plan.lanes; }
    // factor tensor: [a byte a member: 1 = factor kept][shared][group]...
    size_t flags_bytes() const { return (size_t(g.batch) + 63) / 64 * 64; }
    size_t factor_bytes() const { return 64 + flags_bytes() + plan.shared_bytes + groups() * plan.keep_bytes; }

    char* aligned() const {
        const auto at = reinterpret_cast<uintptr_t>(g.factor.data);
        return reinterpret_cast<char*>((at + 63) / 64 * 64);
    }

    void run(bool adjoint) {
        char* base = g.factor.data ? aligned() : nullptr;
        char* flags = base;
        if (plan.shared) {
            char* block = base ? base + flags_bytes() : static_cast<char*>(prepared.reserve(plan.shared_bytes + plan.shared_scratch));
            Arena at(block), once;
            shared.place(at, plan, once);
            if (!adjoint) {
                void* room = base ? prepared.reserve(plan.shared_scratch) : block + plan.shared_bytes;
                shared.prepare(g, plan, room);
            } else {
                shared.bad = *shared.flag;
            }
        }
        char* kept = base ? base + flags_bytes() + plan.shared_bytes : nullptr;
        const int64_t count = groups();
        int workers = g.threads < 1 ? 1 : g.threads;
        if (workers > count) workers = int(count);
        std::atomic<int64_t> next{0};
        const View<int32_t> status(g.status);
        Pool::run(workers, [&](int) {
            const size_t most = (plan.work_bytes > spare.work_bytes ? plan.work_bytes : spare.work_bytes) + plan.keep_bytes
                              + spare.keep_bytes;
            char* work = static_cast<char*>(scratch.reserve(most));
            for (int64_t i; (i = next.fetch_add(1)) < count;) {
                const int64_t first = i * plan.lanes;
                char* keep = kept ? kept + i * plan.keep_bytes : nullptr;
                const int64_t last = first + plan.lanes < g.batch ? first + plan.lanes : g.batch;
                bool any_kept = !adjoint;
                if (adjoint)
                    for (int64_t k = first; k < last; ++k) any_kept |= base && flags[k];
                if (any_kept) {
                    if (lanes) dispatch<Lanes, T>(g, plan, &shared, first, keep, work, adjoint, false);
                    else dispatch<T, T>(g, plan, &shared, first, keep, work, adjoint, false);
                }
                for (int64_t k = first; k < last; ++k) {
                    const int32_t& verdict = status.of(k)[0];
                    if (!adjoint) {
                        const bool again = verdict != SOLVED;
                        if (base) flags[k] = !again;
                        if (again && (plan.method != NORMAL || plan.lanes > 1)) dispatch<T, T>(g, spare, nullptr, k, nullptr, work, false, false);
                    } else if (verdict == SOLVED && !(base && flags[k])) {
                        dispatch<T, T>(g, spare, nullptr, k, nullptr, work, true, true);
                    }
                }
            }
        });
    }
};

template <class F>
int guarded(F&& f) {
    try {
        f();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (...) {
        return 2;
    }
}

}  // namespace
}  // namespace optlayer

using namespace optlayer;

OPTLAYER_API int optlayer_core_abi() { return 1; }
OPTLAYER_API int64_t optlayer_args_size() { return sizeof(Args); }
OPTLAYER_API int optlayer_lanes(int single) { return single ? native_width<float> : native_width<double>; }

// Bytes of the factor tensor for this call.
OPTLAYER_API int64_t optlayer_factor_bytes(Args* g) {
    int64_t bytes = -1;
    guarded([&] { bytes = g->single ? int64_t(Call<float>(*g).factor_bytes()) : int64_t(Call<double>(*g).factor_bytes()); });
    return bytes;
}
OPTLAYER_API int optlayer_solve(Args* g) {
    return guarded([&] { if (g->single) Call<float>(*g).run(false); else Call<double>(*g).run(false); });
}
OPTLAYER_API int optlayer_kkt_solve(Args* g) {
    return guarded([&] { if (g->single) Call<float>(*g).run(true); else Call<double>(*g).run(true); });
}

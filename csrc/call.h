// One call of the core for one dtype: the plan, what the batch shares, and the groups of members spread over threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "interrupt.h"
#include "ladder.h"
#include "memory.h"
#include "products.h"
#include "rescue.h"
#include "sparse.h"

namespace optlayer {

// ---- structure and plan ----------------------------------------------------------------------------------------------
// Structure is looked for in what the batch shares: the data of one member must not decide how others are solved.

template <class T>
bool is_diagonal(const Args& g) {
    if (g.diagonal) return true;
    if (g.Q.stride) return false;
    const T* Q = View<const T>(g.Q).of(0);
    for (int i = 0; i < g.n; ++i)
        for (int j = 0; j < g.n; ++j)
            if (i != j && Q[size_t(i) * g.n + j] != T(0)) return false;
    return true;
}

// Variable whose bound row i of G is, or -1.
template <class T>
int bound_variable(const Args& g, int i) {
    if (g.G.stride) return -1;
    const T* row = View<const T>(g.G).of(0) + size_t(i) * g.n;
    int found = -1;
    for (int j = 0; j < g.n; ++j) {
        if (row[j] == T(0)) continue;
        if (found >= 0) return -1;
        found = j;
    }
    return found >= 0 && row[found] - row[found] == T(0) ? found : -1;
}

// ---- what the batch shares -----------------------------------------------------------------------------------------
template <class T>
struct Shared {
    Data<T, T> a{};
    SchurFactors<T> schur{};
    ActiveFactors<T> active{};
    NullSpace<T> null{};
    T* room = nullptr;  // scratch of the preparation
    int32_t* flags = nullptr;  // bad; M was inverted
    bool bad = false;

    void place(Arena& w, const Plan& p, Arena& once) {
        a.n = p.n, a.m = p.m, a.p = p.p, a.bounds = p.bounds, a.diagonal = p.diagonal;
        a.Q = w.take<T>(p.diagonal ? p.n : size_t(p.n) * p.n);
        a.G = w.take<T>(size_t(p.n) * p.p), a.A = w.take<T>(size_t(p.n) * p.m);
        if (p.method == ACTIVE) {
            active.place(w, w, once, p.n, p.m, p.p, p.bounds, p.diagonal, p.whole, inverts(p));
        } else if (p.method == SCHUR) {
            schur.place(w, p.n, p.m, p.p, p.diagonal);
            room = once.take<T>(size_t(p.n) * (p.p + p.m));
        } else if (p.method == NULL_SPACE) {
            null.n = p.n, null.m = p.m;
            null.place(w, p.rows());
            room = once.take<T>(NullSpace<T>::scratch(p.n, p.m));
        }
        flags = w.take<int32_t>(2);
    }
    void recall() {
        bad = flags[0];
        if (!flags[1]) active.N = nullptr;
    }
    void prepare(const Args& g, const Plan& p) {
        Group<T, T> group(g, p);
        group.choose_members(0);
        group.copy_matrices(const_cast<T*>(a.Q), const_cast<T*>(a.G), const_cast<T*>(a.A));
        Solo<T> t;
        if (p.method == ACTIVE) bad = active.prepare(t, a);
        if (p.method == SCHUR) bad = schur.prepare(t, a, room);
        if (p.method == NULL_SPACE) bad = !null.prepare(t, a, room);
        flags[0] = bad, flags[1] = active.N != nullptr;
    }
};

// ---- one group ------------------------------------------------------------------------------------------------------

enum class Task { SOLVE, ADJOINT, REBUILD };  // REBUILD: the derivative, with the factors made anew

// One layout for the solve, the derivative and the measuring of both (work_at == nullptr: only measure).
// converged: of each lane, whether its derivative was found, or can be found with the kept factor.
template <class V, class U>
void run_group(const Args& g, const Plan& p, const Shared<scalar_of<V>>* shared, int64_t first, Arena& keep, Arena& work, Task task,
               bool* converged) {
    constexpr bool matrices_shared = std::is_same<U, scalar_of<V>>::value;
    const bool measure = work.base == nullptr, adjoint = task != Task::SOLVE;
    Group<V, U> group(g, p);
    Arena& kept = measure || keep.base ? keep : work;  // nothing to keep: the factors are scratch
    const U *Q = nullptr, *G = nullptr, *A = nullptr;
    if constexpr (matrices_shared)
        if (shared && p.shared) Q = shared->a.Q, G = shared->a.G, A = shared->a.A;
    group.place_matrices(work, Q, G, A);
    group.place_sides(kept, work);
    if (!measure) {
        group.choose_members(first);
        group.load_matrices(p.method != ACTIVE || !adjoint);
        if (!adjoint) group.load_vectors(), group.load_sides();
    }
    auto& a = group.a;
    auto finish = [&](auto& system, auto bad) {
        if (!adjoint) group.solve(system, work, bad);
        else group.adjoint(system, work, task == Task::REBUILD);
        if (measure || !converged) return;
        if (!adjoint) group.factor_serves(converged, p.method != ACTIVE);
        else std::copy_n(group.converged, lanes_of<V>, converged);
    };
    auto bad = V(0) > V(1);  // no lane
    if (p.method == ACTIVE) {
        ActiveFactors<U> f{};
        if (p.shared) {
            if constexpr (matrices_shared)
                if (shared) f = shared->active, bad = mask_of<V>(shared->bad);
        } else {
            f.place(kept, work, work, p.n, p.m, p.p, p.bounds, p.diagonal, p.whole);
            if constexpr (std::is_same<U, V>::value)
                if (!measure && !adjoint) bad = f.prepare(group.t, a);
        }
        Active<Solo<V>, V, U> system(group.t, a, f);
        system.place(kept, work);
        finish(system, bad);
    } else if constexpr (sizeof(scalar_of<V>) == 4) {  // what else there is, is done in double (single.h)
    } else if (p.method == SCHUR) {  // (only NORMAL and ACTIVE come in lanes: each costs seconds to compile)
        if constexpr (lanes_of<V> == 1) {
            SchurFactors<U> f{};
            if (p.shared) {
                if constexpr (matrices_shared)
                    if (shared) f = shared->schur, bad = mask_of<V>(shared->bad);
            } else {
                f.place(kept, p.n, p.m, p.p, p.diagonal);
                U* x = work.take<U>(size_t(p.n) * (p.p + p.m));
                if constexpr (std::is_same<U, V>::value)
                    if (!measure && !adjoint) bad = f.prepare(group.t, a, x);
            }
            Schur<Solo<V>, V, U> system(group.t, a, f);
            system.place(kept, work);
            finish(system, bad);
        }
    } else if (p.method == NULL_SPACE) {
        if constexpr (matrices_shared && lanes_of<V> == 1) {
            NullSpace<U> f{};
            if (shared) f = shared->null, bad = mask_of<V>(shared->bad);
            f.n = p.n, f.m = p.m;
            Reduced<Solo<V>, V, U> system(group.t, a, f);
            system.place(kept, work);
            finish(system, bad);
        }
    } else {
        Normal<Solo<V>, V, U> system(group.t, a, p.method == DIAGONAL);
        system.place(kept, work);
        if (!measure && (adjoint || g.given)) system.find_unit();
        finish(system, bad);
    }
}

// ---- a call ---------------------------------------------------------------------------------------------------------

inline size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// What stands at the head of a kept factor: offsets of what follows.
struct FactorHeader {
    Plan plan;
    size_t lists, flags, shared, groups;
    size_t size, doubled;  // of this factor; of the one in double that follows, or 0 (single.h)
};

// Which rung of the ladder settles a member, or finds its derivative: that of its group, those of `Call::climb`, none.
enum class Way { GROUP, DATA, PATTERN, UNITS, SPARE, LAST, NONE };

template <class T>
class Call {
  public:
    // The number of members without answer.
    static int solve(Args& g) { return Call(g, true).run(Task::SOLVE); }
    // float: the members whose derivative is left to double; double leaves none.
    static std::vector<int64_t> kkt_solve(Args& g) {
        Call call(g, g.factor.data == nullptr);
        call.underived.assign(size_t(g.batch), 0);
        call.run(Task::ADJOINT);
        std::vector<int64_t> left;
        for (int64_t k = 0; k < g.batch; ++k)
            if (call.underived[size_t(k)]) left.push_back(k);
        return left;
    }

  protected:  // (csrc/tests/test_ladder.cpp climbs one member at a time)
    using Lanes = Pack<T, native_width<T>>;
    // Double climbs the whole ladder; in float there is one rung, and AUTO where it cannot be used.
    static constexpr bool twice = sizeof(T) == 8;

    Args& g;
    Plan plan{};
    Plan spare{};  // the second method, one member at a time
    std::vector<int> lists;
    std::vector<uint8_t> underived;  // members whose derivative this precision does not find
    FactorHeader* header = nullptr;
    size_t before = 0;  // bytes to be left free in front of it
    Shared<T> shared;
    std::once_flag judged;  // the curvature of a Q that the batch shares
    bool shared_convex = false;

    Call(Args& args, bool anew) : g(args) {
        if (anew) {
            before = size_t(g.factor.stride);
            find_structure();
            choose(Method(g.method), true);
        } else {
            header = static_cast<FactorHeader*>(g.factor.data);
            plan = header->plan;
            point_to(reinterpret_cast<int*>(at(header->lists)));
        }
        if (!twice) return;
        spare = plan;
        spare.shared = false, spare.lanes = 1, spare.method = cheapest_elimination(spare, false);
        measure(spare);
    }

    char* at(size_t offset) const { return reinterpret_cast<char*>(header) + offset; }

    void find_structure() {
        plan.n = g.n, plan.m = g.m;
        const bool batched = g.q.stride || g.h.stride || g.b.stride || g.lb.stride || g.ub.stride;
        plan.shared = batched && !g.Q.stride && !g.G.stride && !g.A.stride;
        plan.diagonal = is_diagonal<T>(g);
        plan.lower = g.lb.data, plan.upper = g.ub.data, plan.below = g.h_lower.data;
        lists.assign(size_t(g.p) + 2 * size_t(g.n), -1);
        point_to(lists.data());
        const View<const T> G(g.G);
        for (int i = 0; i < g.p; ++i) {
            const int j = bound_variable<T>(g, i);
            if (j >= 0) {  // a bound, where the user has given none of that kind; of both kinds if the row has two sides
                const bool upper = G.of(0)[size_t(i) * g.n + j] > T(0);
                const auto open = [&](bool up) { return (up ? plan.upper_row : plan.lower_row)[j] < 0 && !(up ? g.ub.data : g.lb.data); };
                const auto take = [&](bool up) { (up ? plan.upper_row : plan.lower_row)[j] = i, (up ? plan.upper : plan.lower) = true; };
                if (open(upper) && (!plan.below || open(!upper))) {
                    take(upper);
                    if (plan.below) take(!upper);
                    continue;
                }
            }
            plan.kept[plan.p++] = i;
        }
        plan.bounds = plan.lower || plan.upper ? g.n : 0;
    }
    void point_to(int* list) { plan.kept = list, plan.lower_row = list + g.p, plan.upper_row = plan.lower_row + g.n; }

    void choose(Method wanted, bool definite) {
        if (g.given) plan.method = NORMAL;  // (of any rank, and one factor is enough)
        else if (work_of(wanted, plan) < never) plan.method = wanted;
        else plan.method = definite && g.polish && !relaxed() ? ACTIVE : cheapest_elimination(plan, definite);
        if (!twice && plan.method != ACTIVE) plan.method = AUTO, plan.shared = false;
        plan.lanes = methods[plan.method].lanes && (g.lanes > 1 || (g.lanes == 0 && tiny(plan))) ? native_width<T> : 1;
        plan.whole = forms_whole(plan);
        measure(plan);
        g.lanes = plan.lanes;
    }

    void dispatch(const Plan& p, int64_t first, Arena keep, Arena work, Task task, bool* converged) {
        const Shared<T>* s = p.shared && work.base ? &shared : nullptr;
        dispatch(p, s, first, keep, work, task, converged);
    }
    void dispatch(const Plan& p, const Shared<T>* s, int64_t first, Arena& keep, Arena& work, Task task, bool* converged) {
        if (p.lanes > 1 && p.shared) run_group<Lanes, T>(g, p, s, first, keep, work, task, converged);
        else if (p.lanes > 1) run_group<Lanes, Lanes>(g, p, s, first, keep, work, task, converged);
        else run_group<T, T>(g, p, s, first, keep, work, task, converged);
    }
    void measure(Plan& p) {
        p.keep_bytes = p.work_bytes = p.shared_bytes = p.shared_scratch = 0;
        if (p.method == AUTO) return;
        for (Task task : {Task::SOLVE, Task::ADJOINT}) {
            Arena keep, work;
            dispatch(p, nullptr, 0, keep, work, task, nullptr);
            p.keep_bytes = keep.used;
            if (work.used > p.work_bytes) p.work_bytes = work.used;
        }
        Arena block, once;
        Shared<T> s;
        if (p.shared) s.place(block, p, once);
        p.shared_bytes = block.used, p.shared_scratch = once.used;
    }

    int64_t groups() const { return (g.batch + plan.lanes - 1) / plan.lanes; }

    // The kept factor: header, lists, a byte for each member that has one, what is shared, the groups.
    void allocate_factor() {
        FactorHeader h{plan, whole_lines(sizeof(FactorHeader)), 0, 0, 0, 0, 0};
        h.flags = h.lists + whole_lines(lists.size() * sizeof(int));
        h.shared = h.flags + whole_lines(size_t(g.batch));
        h.groups = h.shared + plan.shared_bytes;
        h.size = h.groups + size_t(groups()) * plan.keep_bytes;
        header = reinterpret_cast<FactorHeader*>(static_cast<char*>(Blocks::take(before + h.size, g.factor.stride)) + before);
        g.factor.data = header;
        *header = h;
        std::memcpy(at(h.lists), lists.data(), lists.size() * sizeof(int));
    }

    void share(Task task) {
        char* room = static_cast<char*>(prepared().reserve(plan.shared_scratch + (header ? 0 : plan.shared_bytes)));
        Arena lasting(header ? at(header->shared) : room + plan.shared_scratch), passing(room);
        shared.place(lasting, plan, passing);
        if (task == Task::SOLVE) shared.prepare(g, plan);
        else shared.recall();
    }

    int run(Task task) {
        const bool solving = task == Task::SOLVE;
        if (solving && g.keep) allocate_factor();
        if (plan.shared && (solving || header)) {
            share(task);
            if (solving && shared.bad && methods[plan.method].proves) {  // not strictly convex
                choose(AUTO, false);
                if (header) Blocks::give(at(0) - before), header = nullptr, allocate_factor();
                if (plan.shared) share(task);
            }
        }
        g.method = plan.method;
        if (plan.method == AUTO) return refuse(task);
        char* flags = header ? at(header->flags) : nullptr;
        std::atomic<int> unsolved{0};
        const size_t room = std::max(plan.work_bytes, spare.work_bytes) + std::max(plan.keep_bytes, spare.keep_bytes);
        const int64_t count = groups(), chunk = std::max<int64_t>(1, std::min<int64_t>(count / 128, 16));
        const double expected = microseconds(task);
        const int workers = int(std::min<double>({double(std::max(g.threads, 1)), double(count), 1 + expected / 100}));
        over_threads(workers, count, chunk, room, Interruptible(expected), [&](int64_t i, char* work) {
            const int64_t first = i * plan.lanes, last = std::min<int64_t>(first + plan.lanes, g.batch);
            const Arena keep(header ? at(header->groups) + i * plan.keep_bytes : nullptr);
            bool converged[Lanes::width] = {}, usable = false;
            if (solving) {
                dispatch(plan, first, keep, Arena(work), task, flags ? converged : nullptr);
                for (int64_t k = first; k < last; ++k) {
                    const bool by_first = status(k) == SOLVED && converged[k - first];
                    if (twice) climb(k, work);
                    if (flags) flags[k] = by_first && status(k) == SOLVED;
                    unsolved += !derivable(status(k));
                }
                return;
            }
            for (int64_t k = first; flags && k < last; ++k) usable |= flags[k];
            if (usable) dispatch(plan, first, keep, Arena(work), task, converged);
            for (int64_t k = first; k < last; ++k) differentiate(k, work, flags && flags[k] && converged[k - first]);
        });
        return unsolved;
    }

    int32_t& status(int64_t k) const { return View<int32_t>(g.status).of(k)[0]; }
    int32_t& iterations(int64_t k) const { return View<int32_t>(g.iterations).of(k)[0]; }
    template <class F>
    void each_of_answer(int64_t k, F&& f) const {
        const auto visit = [&](const Tensor& x, int size) {
            if (x.data) f(View<T>(x).of(k), size);
        };
        for (const Tensor& x : {g.z, g.lam_lb, g.lam_ub}) visit(x, g.n);
        for (const Tensor& x : {g.s, g.lam, g.lam_lower}) visit(x, g.p);
        for (const Tensor& x : {g.primal_residual, g.dual_residual, g.gap}) visit(x, 1);
        visit(g.nu, g.m);
    }
    static bool settled(int32_t status) { return status != MAX_ITERATIONS && status != NUMERICAL_ERROR && status != ROUGH; }

    // What follows the first rung. An answer that meets the tolerance is put aside while later rungs try to do better.
    Way climb(int64_t k, char* work) {
        std::vector<T> aside;
        const int32_t count = iterations(k);
        if (status(k) == ROUGH) each_of_answer(k, [&](const T* x, int size) { aside.insert(aside.end(), x, x + size); });
        const Way way = try_others(k, work);
        if (aside.empty() || settled(status(k))) return way;
        const T* from = aside.data();
        each_of_answer(k, [&](T* x, int size) { std::copy_n(from, size, x), from += size; });
        status(k) = SOLVED, iterations(k) = count;
        return Way::GROUP;
    }
    // One member at a time: bad data, another elimination, and the rest (rescue.h).
    Way try_others(int64_t k, char* work) {
        const auto ended = [&] { return settled(status(k)) && !(status(k) == PRIMAL_INFEASIBLE && g.closest); };
        if (ended()) {
            if (methods[plan.method].proves || relaxed() || convex(k)) return Way::GROUP;
            return status(k) = NOT_CONVEX, Way::DATA;
        }
        if (!valid(k)) return reject(k), Way::DATA;
        if (!relaxed() && !convex(k)) return reject(k, NOT_CONVEX), Way::DATA;
        if (g.given) return Way::NONE;
        const int size = g.n + g.m + g.p;
        const bool ordinary = !g.closest && !relaxed();
        const ByPattern early = ordinary && size >= by_pattern_from ? solve_by_pattern(g, k, false) : ByPattern::UNFIT;
        if (early == ByPattern::SETTLED) return Way::PATTERN;
        const bool open = status(k) != PRIMAL_INFEASIBLE && !relaxed() && g.polish, uneven = plan.method == ACTIVE && units_apart(k);
        if (open && uneven && rescale(g, k)) return Way::UNITS;
        if (!g.single && status(k) != PRIMAL_INFEASIBLE && (plan.method != spare.method || plan.lanes > 1)) {
            dispatch(spare, k, Arena(), Arena(work), Task::SOLVE, nullptr);
            if (ended()) return Way::SPARE;
        }
        if (status(k) == MAX_ITERATIONS && g.max_iterations < usual_iterations) return Way::NONE;  // the user does not want more
        rescue(g, k, !open || uneven);
        // Degenerate faces of solutions, as of linear programs with ties: the proximal polish bears them.
        const bool untried = ordinary && size <= most_by_pattern && early == ByPattern::UNFIT;
        return !settled(status(k)) && untried && solve_by_pattern(g, k, true) == ByPattern::SETTLED ? Way::PATTERN : Way::LAST;
    }

    // Whether the curvatures are so far apart that it is the variables' units that stop an active set.
    bool units_apart(int64_t k) const {
        const T* Q = View<const T>(g.Q).of(k);
        T least = std::numeric_limits<T>::max(), most = T(0);
        for (int j = 0; j < g.n; ++j) {
            const T curvature = g.diagonal ? Q[j] : Q[size_t(j) * (g.n + 1)];
            if (curvature > T(0)) least = std::min(least, curvature), most = std::max(most, curvature);
        }
        return double(most) * even_units > double(least);
    }

    // The derivative of one member: `done` by the kept factors, else with factors made anew, else by the last rung.
    Way differentiate(int64_t k, char* work, bool done) {
        if (!derivable(status(k))) return same_derivative(g, k, T(0)), Way::NONE;
        if (!finite_rhs<T>(g, k)) return same_derivative(g, k, std::numeric_limits<T>::quiet_NaN()), Way::NONE;
        if (done && (g.single != 2 || determined(k))) return Way::GROUP;
        if (!twice) return underived[size_t(k)] = 1, Way::NONE;
        bool converged = false;
        if (status(k) == SOLVED && !g.single) dispatch(spare, k, Arena(), Arena(work), Task::REBUILD, &converged);
        if (converged) return Way::SPARE;
        return rescue_derivative(g, k), Way::LAST;
    }

    // Of float32's data, where only z has a gradient.
    bool determined(int64_t k) const {
        if (!g.r_z.data || g.r_nu.data || g.r_lam.data || g.r_lower.data || g.r_lb.data || g.r_ub.data) return true;
        const T *Q = View<const T>(g.Q).of(k), *r = View<const T>(g.r_z).of(k), *v = View<const T>(g.v_z).of(k);
        return curvature_known(Solo<T>(), g.n, r, v, [&](int j) {
            return T(Tuning<double>::regularisation) * (g.diagonal ? Q[j] : Q[size_t(j) * (g.n + 1)]);
        });
    }

    // Whether the point of a relaxed problem is asked for; its members have been solved before, so they are convex.
    bool relaxed() const { return g.smoothing > 0; }

    // Whether the data are finite, but for the infinite sides that mean no constraint.
    bool valid(int64_t k) const {
        const T top = std::numeric_limits<T>::infinity();
        const auto fine = [&](const Tensor& x, int count, bool below, bool above) {  // may be -inf, inf; never NaN
            const T* v = x.data ? View<const T>(x).of(k) : nullptr;
            return !v || std::all_of(v, v + count, [=](T value) {
                return (below ? value >= -top : value > -top) && (above ? value <= top : value < top);
            });
        };
        return fine(g.Q, g.diagonal ? g.n : g.n * g.n, false, false) && fine(g.q, g.n, false, false)
            && fine(g.G, g.p * g.n, false, false) && fine(g.h, g.p, false, true) && fine(g.A, g.m * g.n, false, false)
            && fine(g.b, g.m, false, false) && fine(g.lb, g.n, true, false) && fine(g.ub, g.n, false, true)
            && fine(g.h_lower, g.p, true, false);
    }
    void reject(int64_t k, int32_t why = INVALID_INPUT) const {
        each_of_answer(k, [](T* x, int size) { std::fill_n(x, size, T(0)); });
        status(k) = why, iterations(k) = 0;
    }

    // Leave all members to double.
    int refuse(Task task) {
        for (int64_t k = 0; k < g.batch; ++k) {
            if (task == Task::ADJOINT) {
                differentiate(k, nullptr, false);
                continue;
            }
            status(k) = NUMERICAL_ERROR;
            if (header) at(header->flags)[k] = 0;
        }
        return g.batch;
    }

    bool convex(int64_t k) {
        if (g.Q.stride || !twice) return is_convex(g, k);
        std::call_once(judged, [&] { shared_convex = is_convex(g, 0); });
        return shared_convex;
    }

    // About how long it will take: a thread wants 100 µs of work, or waking it up costs more than it does.
    double microseconds(Task task) const {
        const double size = plan.n + plan.m + plan.rows(), solve = 0.4 + 2e-5 * size * size * size;
        return g.batch * (task == Task::SOLVE ? solve : 0.3 * solve);
    }
};

}  // namespace optlayer

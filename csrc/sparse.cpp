#include "sparse.h"

#include <atomic>
#include <memory>

#include "in_units.h"
#include "interrupt.h"
#include "kernels/solver.h"
#include "memory.h"
#include "products.h"
#include "rescue.h"
#include "sparse_lu.h"
#include "sparse_plan.h"

namespace optlayer {
namespace {

constexpr int least_lanes = 3;  // members from which a register of members is quicker than one after the other
constexpr size_t most_dense = 1000;  // variables and rows up to which the last rung finds a derivative: FITS_DENSE of backends/base.py

RowPattern row_pattern(int64_t rows, const int64_t* first, const int64_t* col) {
    RowPattern M;
    M.rows = int(rows), M.first.assign(1, 0);
    for (int64_t i = 0; first && i < rows; ++i) M.first.push_back(int(first[i + 1]));
    if (first) M.col.assign(col, col + first[rows]);
    else M.rows = 0;
    return M;
}

// The lower triangle of Q, of which both are stored: an entry is the mean of two.
LowerPattern lower_pattern(int64_t n, const int64_t* first, const int64_t* col) {
    LowerPattern Q;
    if (!first) {
        for (int j = 0; j < n; ++j) Q.row.push_back(j), Q.col.push_back(j), Q.one.push_back(j), Q.other.push_back(j);
        return Q;
    }
    std::vector<std::vector<std::pair<int, int>>> rows(n);  // of the lower triangle: column, value
    for (int i = 0; i < n; ++i)
        for (int64_t e = first[i]; e < first[i + 1]; ++e) rows[std::max<int64_t>(i, col[e])].emplace_back(int(std::min<int64_t>(i, col[e])), int(e));
    for (int i = 0; i < n; ++i) {
        std::sort(rows[i].begin(), rows[i].end());
        for (size_t k = 0; k < rows[i].size(); ++k) {
            const bool both = k + 1 < rows[i].size() && rows[i][k + 1].first == rows[i][k].first;
            Q.row.push_back(i), Q.col.push_back(rows[i][k].first);
            Q.one.push_back(rows[i][k].second), Q.other.push_back(rows[i][k + both].second);
            k += both;
        }
    }
    return Q;
}

struct Header {  // of a kept factor
    int lanes;
    size_t flags, groups, keep_bytes;
};

enum class Task { SOLVE, ADJOINT, REBUILD, FIRM };  // derivatives: by the kept factors, by new ones, by new ones with a firmer R

struct Outcome {  // of each lane
    bool served[native_width<double>] = {};  // the kept factor serves; of a derivative: it was found
    bool spoilt[native_width<double>] = {};  // growth has cost a factor its digits
};

class SparseCall {
  public:
    using T = double;
    using Lanes = Pack<T, native_width<T>>;

    SparseCall(const SparsePlan& plan, Args& args) : s(plan), pattern(plan.pattern), g(args) {
        p.method = AUTO, p.n = g.n, p.m = g.m, p.p = g.p;
        p.shared = !g.Q.stride && !g.G.stride && !g.A.stride;
        p.below = g.h_lower.data && g.p, p.lower = g.lb.data, p.upper = g.ub.data;
        p.bounds = p.lower || p.upper ? g.n : 0;
        p.lanes = g.lanes ? g.lanes : g.batch < least_lanes ? 1 : native_width<T>;
    }

    int run(Task task) {
        if (g.factor.data) {
            header = static_cast<Header*>(g.factor.data);
            p.lanes = header->lanes;
        } else if (task == Task::ADJOINT) {
            task = Task::REBUILD;
        }
        g.lanes = p.lanes;
        measure();
        if (task == Task::SOLVE && g.keep && !header) allocate_factor();  // (there is one where Ctrl-C has ended the call before)
        if (p.shared) share(task);
        const int64_t groups = (g.batch + p.lanes - 1) / p.lanes;
        std::atomic<int> unsolved{0};
        const Interruptible watch(microseconds(task));
        pause = watch.pause();
        const int workers = int(std::min<int64_t>(std::max(g.threads, 1), groups));
        over_threads(workers, groups, 1, keep_bytes + work_bytes, watch, [&](int64_t i, char* room) {
            Arena keep(header ? reinterpret_cast<char*>(header) + header->groups + i * header->keep_bytes : room);
            Outcome all;
            dispatch(p.lanes, i * p.lanes, keep, Arena(room + keep_bytes), task, &all);
            const int64_t last = std::min<int64_t>((i + 1) * p.lanes, g.batch);
            for (int64_t k = i * p.lanes; k < last; ++k) {
                int32_t& status = View<int32_t>(g.status).of(k)[0];
                if (task == Task::SOLVE) {
                    if (status == ROUGH) status = SOLVED;  // (nobody can do better)
                    if (status != SOLVED) all.served[k - i * p.lanes] = false, judge_failure(k, room, all.spoilt[k - i * p.lanes]);
                    if (header) flags()[k] = all.served[k - i * p.lanes];
                    unsolved += status != SOLVED;
                } else if (status == SOLVED) {
                    bool found = all.served[k - i * p.lanes];
                    if (!finite_rhs<T>(g, k)) {
                        same_derivative(g, k, std::numeric_limits<T>::quiet_NaN());
                        continue;
                    }
                    const auto derived = [&](Task by, bool pivoting) { return alone(k, room, by, pivoting).served[0] && finite(g.v_z, k, g.n); };
                    if (task == Task::ADJOINT && !flags()[k]) found = derived(Task::REBUILD, false);
                    else found = found && finite(g.v_z, k, g.n);
                    if (!(found || derived(Task::FIRM, false) || derived(Task::REBUILD, true) || derive_densely(k)))
                        same_derivative(g, k, std::numeric_limits<T>::quiet_NaN());  // (better none than a wrong one)
                }
            }
        });
        return unsolved;
    }

  private:
    const SparsePlan& s;
    const SparsePattern& pattern;
    Args& g;
    Plan p{};
    Header* header = nullptr;
    size_t keep_bytes = 0, work_bytes = 0;  // of a group, and of one member if that is more
    const T* shared_values = nullptr;
    bool shared_convex = true;
    void (*pause)() = nullptr;  // looks for Ctrl-C

    char* flags() const { return reinterpret_cast<char*>(header) + header->flags; }

    // ---- memory

    void measure() {
        for (int lanes : {p.lanes, 1})
            for (Task task : {Task::SOLVE, Task::ADJOINT}) {
                Arena keep, work;
                dispatch(lanes, 0, keep, work, task);
                keep_bytes = std::max(keep_bytes, keep.used), work_bytes = std::max(work_bytes, work.used);
            }
    }
    void allocate_factor() {
        const auto lines = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
        Header h{p.lanes, lines(sizeof(Header)), 0, keep_bytes};
        h.groups = h.flags + lines(size_t(g.batch));
        const size_t size = h.groups + size_t((g.batch + p.lanes - 1) / p.lanes) * keep_bytes;
        header = static_cast<Header*>(Blocks::take(size, g.factor.stride));
        *header = h;
        g.factor.data = header;
    }
    // About how long a call takes: a factorisation and what goes with it, as many as a solve has iterations.
    double microseconds(Task task) const {
        const double factor = 1e-3 * s.kkt->flops + 1e-2 * double(s.kkt->plan.entries());
        return double(g.batch) * factor * (task == Task::SOLVE ? 20 : 1);
    }

    // ---- the data

    void share(Task task) {
        T* values = static_cast<T*>(prepared().reserve(sizeof(T) * size_t(pattern.entries())));
        s.gather(g, 0, values, 1);
        shared_values = values;
        if (task != Task::SOLVE) return;
        SparseData<T, T> a{};
        a.pattern = &pattern;
        a.point_to(values);
        Arena size;
        convex(a, size);
        Arena work(scratch().reserve(size.used));
        shared_convex = convex(a, work);
    }
    bool finite(const Tensor& x, int64_t k, int count, bool below = false, bool above = false) const {
        const T top = std::numeric_limits<T>::infinity();
        const T* v = x.data ? View<const T>(x).of(k) : nullptr;
        if (!v) return true;
        for (int i = 0; i < count; ++i)
            if (!((below ? v[i] >= -top : v[i] > -top) && (above ? v[i] <= top : v[i] < top))) return false;
        return true;
    }
    int Q_values() const { return int(s.user_row.size()); }
    bool valid(int64_t k) const {
        return finite(g.Q, k, Q_values()) && finite(g.q, k, g.n) && finite(g.G, k, pattern.G_entries) && finite(g.A, k, pattern.A_entries)
            && finite(g.h, k, g.p, false, true) && finite(g.h_lower, k, g.p, true) && finite(g.b, k, g.m)
            && finite(g.lb, k, g.n, true) && finite(g.ub, k, g.n, false, true);
    }

    // ---- a group

    void dispatch(int lanes, int64_t first, Arena& keep, Arena&& work, Task task, Outcome* out) const { dispatch(lanes, first, keep, work, task, out); }
    void dispatch(int lanes, int64_t first, Arena& keep, Arena& work, Task task, Outcome* out = nullptr) const {
        if (lanes > 1 && p.shared) group<Lanes, T>(first, keep, work, task, out);
        else if (lanes > 1) group<Lanes, Lanes>(first, keep, work, task, out);
        else group<T, T>(first, keep, work, task, out);
    }
    Outcome alone(int64_t k, char* room, Task task, bool pivoting) const {
        Arena keep(room), work(room + keep_bytes);
        Outcome out;
        if (pivoting) group<T, T, SparseLu>(k, keep, work, task, &out);
        else dispatch(1, k, keep, work, task, &out);
        return out;
    }

    template <class V, class U, class Factor = Ldl<V>>
    void group(int64_t first, Arena& keep, Arena& work, Task task, Outcome* out) const {
        Group<V, U, Solo<V>, SparseData<V, U>> group(g, p);
        SparseData<V, U>& a = group.a;
        a.n = g.n, a.m = g.m, a.p = g.p, a.bounds = p.bounds, a.pattern = &pattern;
        V *q = work.take<V>(g.n), *b = work.take<V>(g.m);
        a.q = q, a.b = b;
        const bool own = !(p.shared && std::is_same<U, T>::value), rebuild = task == Task::REBUILD || task == Task::FIRM;
        U* values = own ? work.take<U>(size_t(pattern.entries())) : nullptr;
        group.place_sides(keep, work);
        SparseSystem<Solo<V>, V, U, Factor> system(group.t, a);
        system.place(keep, work);
        a.units = system.scale, system.pause = pause, system.rounded = g.single == 2;
        if constexpr (std::is_same<Factor, SparseLu>::value) system.regularisation = V(T(Tuning<T>::pivoted));
        if (work.base) {
            group.choose_members(first);
            if constexpr (std::is_same<U, V>::value) {
                if (own)
                    for (int l = 0; l < lanes_of<V>; ++l) s.gather(g, group.member[l], reinterpret_cast<T*>(values) + l, lanes_of<V>);
            }
            if constexpr (std::is_same<U, T>::value) a.point_to(own ? values : shared_values);
            else a.point_to(values);
            if (task == Task::SOLVE) group.load_vectors(), group.load_sides();
            if (rebuild || g.given) {
                if (task == Task::FIRM) system.equilibrate_firmly();
                else system.equilibrate();
                system.find_unit();
            }
        }
        if (task != Task::SOLVE) {
            group.adjoint(system, work, rebuild);
            if (out) std::copy_n(group.converged, lanes_of<V>, out->served);
            return;
        }
        const auto good = own || !work.base ? convex(a, work) : mask_of<V>(shared_convex);
        group.solve(system, work, !good);
        if (!work.base) return;
        group.factor_serves(out->served, false);
        for (int l = 0; l < group.count; ++l) out->spoilt[l] = lane(system.regularisation, l) > Tuning<T>::regularisation;
        for (int l = 0; l < group.count; ++l)
            if (!lane(good, l)) View<int32_t>(g.status).of(group.member[l])[0] = NOT_CONVEX;
    }

    // Whether Q is positive semidefinite: by the pivots of Q, each entry of its diagonal raised by what rounding may hide.
    template <class V, class U> mask_of<V> convex(const SparseData<V, U>& a, Arena& work) const {
        V *diagonal = work.take<V>(g.n), *zero = work.take<V>(g.n);
        Ldl<V> ldl{};
        if (s.objective) ldl.place(s.objective->plan, work, work);
        if (!work.base) return mask_of<V>(true);
        const V allowed = V(T(g.single ? double(Tuning<float>::convex) : Tuning<T>::convex));
        if (!s.objective) {
            V least = V(T(0));
            for (int j = 0; j < g.n; ++j) least = min(least, a.curvature(j));
            return least >= V(T(0));
        }
        for (int j = 0; j < g.n; ++j) {
            const V size = a.Q_largest(j);  // (a row of zeros is convex)
            diagonal[s.objective->place[j]] = select(size > V(T(0)), fma(allowed, size, a.curvature(j)), V(T(1)));
            zero[j] = V(T(0));
        }
        return ldl.factor(a.Q + pattern.diagonals, diagonal, zero);
    }

    // The derivative of a member by the last rung, with dense matrices: where those of an LDLᵀ without pivoting and with R are
    // too far from the truth for refinement, as of a vertex that no curvature holds. False: there are too many.
    bool derive_densely(int64_t k) const {
        const size_t n = g.n;
        if (n + g.p + g.m > most_dense) return false;
        std::vector<T> values(pattern.entries()), Q(n * n), G(g.p * n), A(g.m * n);
        s.gather(g, k, values.data(), 1);
        SparseData<T, T> a{};
        a.n = g.n, a.m = g.m, a.p = g.p, a.pattern = &pattern, a.point_to(values.data());
        for (size_t j = 0; j < n; ++j) a.quadratic(a.Q).row(int(j)).each([&](int i, T entry) { Q[j * n + i] = entry; });
        for (int i = 0; i < g.p; ++i) a.inequalities(a.G).row(i).each([&](int j, T entry) { G[i * n + j] = entry; });
        for (int i = 0; i < g.m; ++i) a.equalities(a.A).row(i).each([&](int j, T entry) { A[i * n + j] = entry; });
        Args one = g;
        one.diagonal = 0, one.Q = {Q.data(), 0}, one.G = {G.data(), 0}, one.A = {A.data(), 0};
        rescue_derivative(one, k);
        return true;
    }

    // Why a member is not solved: numbers that are none, an objective that is not convex, a proof, or growth: then pivoting may do.
    void judge_failure(int64_t k, char* room, bool spoilt) {
        int32_t& status = View<int32_t>(g.status).of(k)[0];
        if (!valid(k)) {
            status = INVALID_INPUT;
            return;
        }
        if (status == NOT_CONVEX || g.given) return;
        if (p.lanes > 1) spoilt = alone(k, room, Task::SOLVE, false).spoilt[0];  // (one alone looks for proofs)
        if (spoilt && (status == MAX_ITERATIONS || status == NUMERICAL_ERROR)) alone(k, room, Task::SOLVE, true);
        if (status == ROUGH) status = SOLVED;
    }
};

int run(const SparsePlan& plan, Args& g, Task task) {
    InUnits natural(plan, g, task == Task::SOLVE);
    const int left = SparseCall(plan, natural.args()).run(task);
    natural.finish();
    return left;
}

}  // namespace

SparsePlan* sparse_plan(const SparseShape& x) {
    return new SparsePlan(int(x.n), int(x.m), int(x.p), lower_pattern(x.n, x.Q_first, x.Q_col), row_pattern(x.p, x.G_first, x.G_col),
                          row_pattern(x.m, x.A_first, x.A_col));
}
void sparse_free(SparsePlan* plan) { delete plan; }
void sparse_cost(const SparsePlan& plan, double* out) {
    out[0] = double(plan.kkt->plan.entries()), out[1] = plan.kkt->flops, out[2] = plan.kkt->plan.supernodes;
}
int sparse_solve(const SparsePlan& plan, Args& g) { return run(plan, g, Task::SOLVE); }
int sparse_kkt_solve(const SparsePlan& plan, Args& g) { return run(plan, g, Task::ADJOINT); }

namespace {

// The entries of a dense matrix, row by row; where `symmetric`, also those whose mirror image is one.
struct DenseEntries {
    std::vector<int64_t> first{0}, col;
    std::vector<double> value;

    DenseEntries(const double* M, int rows, int columns, bool symmetric) {
        for (int i = 0; M && i < rows; ++i) {
            for (int j = 0; j < columns; ++j) {
                const double x = M[size_t(i) * columns + j];
                if (x != 0 || (symmetric && M[size_t(j) * columns + i] != 0)) col.push_back(j), value.push_back(x);
            }
            first.push_back(int64_t(col.size()));
        }
    }
};

}  // namespace

ByPattern solve_by_pattern(const Args& g, int64_t k, bool filled) {
    const OwnScratch own;
    Args one = g;
    one.batch = one.lanes = one.threads = 1, one.keep = 0, one.factor = {nullptr, 0};
    for (Tensor Args::*x : {&Args::Q, &Args::q, &Args::G, &Args::h, &Args::A, &Args::b, &Args::lb, &Args::ub, &Args::h_lower, &Args::z,
                            &Args::s, &Args::lam, &Args::nu, &Args::lam_lb, &Args::lam_ub, &Args::lam_lower, &Args::primal_residual,
                            &Args::dual_residual, &Args::gap})
        if ((one.*x).data) one.*x = {View<double>(g.*x).of(k), 0};
    for (Tensor Args::*x : {&Args::status, &Args::iterations}) one.*x = {View<int32_t>(g.*x).of(k), 0};
    const auto dense = [](const Tensor& x) { return static_cast<const double*>(x.data); };
    DenseEntries Q(g.diagonal ? nullptr : dense(one.Q), g.n, g.n, true), G(dense(one.G), g.p, g.n, false), A(dense(one.A), g.m, g.n, false);
    const SparseShape shape{g.n, g.m, g.p, g.diagonal ? nullptr : Q.first.data(), Q.col.data(), g.p ? G.first.data() : nullptr,
                            G.col.data(), g.m ? A.first.data() : nullptr, A.col.data()};
    if (!g.diagonal) one.Q.data = Q.value.data();
    one.G.data = G.value.data(), one.A.data = A.value.data();
    const size_t all = (g.diagonal ? 0 : size_t(g.n) * g.n) + size_t(g.p + g.m) * g.n;
    if (!filled && 4 * (Q.col.size() + G.col.size() + A.col.size()) > all) return ByPattern::UNFIT;  // (its factor would be dense)
    const std::unique_ptr<SparsePlan> plan(sparse_plan(shape));
    int32_t& status = *View<int32_t>(one.status).of(0);
    const int32_t before = status;
    sparse_solve(*plan, one);
    if (status == SOLVED || status == PRIMAL_INFEASIBLE || status == DUAL_INFEASIBLE) return ByPattern::SETTLED;
    status = before;
    return ByPattern::OPEN;
}

namespace {

// −Σ left_r right_c over two pairs, at the entries (r, c) of a matrix: its gradient (eq. 8), a member's or their sum.
struct Entries {
    const int *row, *col;
    int count;
    Tensor to;
    Tensor y, v_y;  // of the rows; of Q: z and v_z
    double scale;
    Tensor below{}, v_below{};  // of the rows' lower sides, whose sign is the other
};

class SparseProducts {
  public:
    SparseProducts(const SparsePlan& plan, const Args& args, const Gradients& to) : g(args) {
        const SparsePattern& s = plan.pattern;
        rows_of_G = expand(plan.G), rows_of_A = expand(plan.A);
        matrices = {{plan.user_row.data(), plan.user_col.data(), int(plan.user_row.size()), to.Q, g.z, g.v_z, 0.5},
                    {rows_of_G.data(), s.G.col, s.G_entries, to.G, g.lam, g.v_lam, 1, g.lam_lower, g.v_lower},
                    {rows_of_A.data(), s.A.col, s.A_entries, to.A, g.nu, g.v_nu, 1}};
    }
    void run() const {
        struct Chunk { const Entries* of; int from, to; };
        std::vector<Chunk> chunks;
        for (const Entries& m : matrices)
            for (int from = 0; m.to.data && from < m.count; from += width) chunks.push_back({&m, from, std::min(m.count, from + width)});
        std::atomic<size_t> next{0};
        Pool::run(int(std::min<size_t>(size_t(std::max(g.threads, 1)), chunks.size())), [&](int) {
            for (size_t i; (i = next.fetch_add(1)) < chunks.size();) take(*chunks[i].of, chunks[i].from, chunks[i].to);
        });
    }

  private:
    static constexpr int width = 1024;
    const Args& g;
    std::vector<int> rows_of_G, rows_of_A;
    std::vector<Entries> matrices;

    static std::vector<int> expand(const RowPattern& M) {
        std::vector<int> rows(M.col.size());
        for (int i = 0; i < M.rows; ++i)
            for (int e = M.first[i]; e < M.first[i + 1]; ++e) rows[e] = i;
        return rows;
    }
    void take(const Entries& m, int from, int to) const {
        double sum[width] = {};
        const double *left = nullptr, *left_v = nullptr, *right_v = nullptr, *right = nullptr;
        for (int64_t k = 0; k < g.batch; ++k) {
            const bool solved = View<const int32_t>(g.status).of(k)[0] == SOLVED;
            left = View<const double>(m.y).of(k), left_v = View<const double>(m.v_y).of(k);
            const double* below = m.below.data ? View<const double>(m.below).of(k) : nullptr;
            const double* below_v = m.v_below.data ? View<const double>(m.v_below).of(k) : nullptr;
            right = View<const double>(g.z).of(k), right_v = View<const double>(g.v_z).of(k);
            double* out = m.to.stride ? View<double>(m.to).of(k) : nullptr;
            for (int e = from; e < to; ++e) {
                const int r = m.row[e], c = m.col[e];
                const double y = below ? left[r] - below[r] : left[r], v_y = below_v ? left_v[r] - below_v[r] : left_v[r];
                const double value = solved ? -m.scale * (y * right_v[c] + v_y * right[c]) : 0;
                if (out) out[e] = value;
                else sum[e - from] += value;
            }
        }
        if (!m.to.stride) std::copy(sum, sum + (to - from), static_cast<double*>(m.to.data) + from);
    }
};

}  // namespace

void sparse_products(const SparsePlan& plan, const Args& g, const Gradients& to) {
    Gradients vectors = to;
    vectors.Q = vectors.G = vectors.A = {nullptr, 0};
    Products<double>(g, vectors).run();
    SparseProducts(plan, g, to).run();
}

}  // namespace optlayer


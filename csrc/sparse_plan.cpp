#include "sparse_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <Eigen/OrderingMethods>
#include <Eigen/SparseCore>

namespace optlayer {
namespace {

constexpr int widest_panel = 32;  // columns; wider supernodes are split, so that a panel's source stays in the first-level cache

// Zeros that a panel may store to be merged with its parent, by its columns; `make bench-sparse` moves these.
bool worth_merging(double columns, double zeros, double entries) {
    if (columns <= 4) return zeros <= 0.25 * entries;
    if (columns <= 16) return zeros <= 0.2 * entries;
    return zeros <= 0.05 * entries;
}

struct Graph {  // of a symmetric matrix, without its diagonal
    std::vector<int> first, to;
    Graph(int size, const std::vector<int>& row, const std::vector<int>& col) : first(size + 1) {
        for (size_t e = 0; e < row.size(); ++e) ++first[row[e] + 1], ++first[col[e] + 1];
        std::partial_sum(first.begin(), first.end(), first.begin());
        to.resize(first[size]);
        std::vector<int> next(first.begin(), first.end() - 1);
        for (size_t e = 0; e < row.size(); ++e) to[next[row[e]]++] = col[e], to[next[col[e]]++] = row[e];
    }
};

// Approximate minimum degree (Amestoy, Davis and Duff 1996).
std::vector<int> minimum_degree(int size, const std::vector<int>& row, const std::vector<int>& col) {
    using Matrix = Eigen::SparseMatrix<double, Eigen::ColMajor, int>;
    std::vector<Eigen::Triplet<double, int>> entries;
    entries.reserve(2 * row.size() + size);
    for (size_t e = 0; e < row.size(); ++e) entries.emplace_back(row[e], col[e], 1.0), entries.emplace_back(col[e], row[e], 1.0);
    for (int i = 0; i < size; ++i) entries.emplace_back(i, i, 1.0);
    Matrix matrix(size, size);
    matrix.setFromTriplets(entries.begin(), entries.end());
    Eigen::PermutationMatrix<Eigen::Dynamic, Eigen::Dynamic, int> permutation;
    Eigen::AMDOrdering<int>()(matrix, permutation);
    return std::vector<int>(permutation.indices().data(), permutation.indices().data() + size);
}

// Parents in the elimination tree of the graph taken in `order` (Liu 1986).
std::vector<int> elimination_tree(const Graph& graph, const std::vector<int>& order, const std::vector<int>& place) {
    const int size = int(order.size());
    std::vector<int> parent(size, -1), ancestor(size, -1);
    for (int k = 0; k < size; ++k)
        for (int e = graph.first[order[k]]; e < graph.first[order[k] + 1]; ++e)
            for (int i = place[graph.to[e]]; i >= 0 && i < k;) {
                const int next = ancestor[i];
                ancestor[i] = k;
                if (next < 0) parent[i] = k;
                i = next;
            }
    return parent;
}

std::vector<int> postorder(const std::vector<int>& parent) {
    const int size = int(parent.size());
    std::vector<int> head(size, -1), next(size, -1), order, stack;
    for (int i = size - 1; i >= 0; --i)
        if (parent[i] >= 0) next[i] = head[parent[i]], head[parent[i]] = i;
    order.reserve(size);
    for (int root = 0; root < size; ++root) {
        if (parent[root] >= 0) continue;
        stack.push_back(root);
        while (!stack.empty()) {
            const int i = stack.back();
            if (head[i] >= 0) stack.push_back(head[i]), head[i] = next[head[i]];
            else order.push_back(i), stack.pop_back();
        }
    }
    return order;
}

std::vector<int> inverse_of(const std::vector<int>& order) {
    std::vector<int> place(order.size());
    for (size_t k = 0; k < order.size(); ++k) place[order[k]] = int(k);
    return place;
}

double trapezium(double columns, double height) { return columns * height - columns * (columns - 1) / 2; }

}  // namespace

Symbolic::Symbolic(int size, const std::vector<int>& row, const std::vector<int>& col, const std::vector<signed char>& sign) {
    const Graph graph(size, row, col);
    order = minimum_degree(size, row, col);
    place = inverse_of(order);
    std::vector<int> parent = elimination_tree(graph, order, place);
    {
        const std::vector<int> post = postorder(parent), after = inverse_of(post);
        std::vector<int> moved(size), up(size);
        for (int k = 0; k < size; ++k) moved[k] = order[post[k]], up[k] = parent[post[k]] < 0 ? -1 : after[parent[post[k]]];
        order = moved, parent = up, place = inverse_of(order);
    }

    // the rows of each column: its own, and those of its children; given up when the parent has them
    std::vector<std::vector<int>> below(size);
    std::vector<int> count(size), seen(size, -1);
    std::vector<std::vector<int>> children(size);
    for (int k = 0; k < size; ++k)
        if (parent[k] >= 0) children[parent[k]].push_back(k);
    std::vector<char> keep(size, 0);  // the last column of a supernode, as far as is known
    for (int k = 0; k < size; ++k) {
        std::vector<int>& mine = below[k];
        seen[k] = k;
        for (int e = graph.first[order[k]]; e < graph.first[order[k] + 1]; ++e) {
            const int i = place[graph.to[e]];
            if (i > k && seen[i] != k) seen[i] = k, mine.push_back(i);
        }
        for (int c : children[k])
            for (int i : below[c])
                if (seen[i] != k) seen[i] = k, mine.push_back(i);
        count[k] = int(mine.size());
        for (int c : children[k])  // the column before this one, with the same rows, belongs to its supernode
            if (c == k - 1 && count[c] == count[k] + 1) std::vector<int>().swap(below[c]);
    }

    // supernodes: runs of columns of which each is the parent of the one before and has its rows
    std::vector<int> start;
    for (int k = 0; k < size; ++k)
        if (!(k && parent[k - 1] == k && count[k - 1] == count[k] + 1)) start.push_back(k);
    // merged with the parent that follows, where that stores few zeros
    struct Run { int first, last, height; double entries; };
    std::vector<Run> runs;
    for (int s = int(start.size()) - 1; s >= 0; --s) {
        const int first = start[s], last = s + 1 < int(start.size()) ? start[s + 1] : size;
        Run run{first, last, last - first + count[last - 1], trapezium(last - first, last - first + count[last - 1])};
        while (!runs.empty()) {
            const Run& next = runs.back();
            if (parent[run.last - 1] < next.first || parent[run.last - 1] >= next.last) break;
            const double columns = next.last - run.first, height = (run.last - run.first) + next.height;
            const double entries = run.entries + next.entries, all = trapezium(columns, height);
            if (columns > widest_panel || !worth_merging(columns, all - entries, all)) break;
            run = {run.first, next.last, int(height), entries};
            runs.pop_back();
        }
        runs.push_back(run);
    }
    std::reverse(runs.begin(), runs.end());

    // leaves, the columns that nothing updates, first, by how many rows they have below
    constexpr int no_leaf = std::numeric_limits<int>::max();
    const auto rank = [&](const Run& run) { return run.last - run.first == 1 && children[run.first].empty() ? count[run.first] : no_leaf; };
    std::stable_sort(runs.begin(), runs.end(), [&](const Run& a, const Run& b) { return rank(a) < rank(b); });
    const auto leaves_below = [&](int rows) { return int(std::partition_point(runs.begin(), runs.end(), [&](const Run& a) { return rank(a) < rows; }) - runs.begin()); };
    for (int c = 0; c <= LdlPlan::most_few + 1; ++c) plan.few[c] = leaves_below(c);
    plan.leaves = leaves_below(no_leaf);
    {
        std::vector<int> moved;
        for (const Run& run : runs)
            for (int k = run.first; k < run.last; ++k) moved.push_back(k);
        const std::vector<int> after = inverse_of(moved);
        for (int& k : moved) k = order[k];
        for (Run& run : runs) {
            std::vector<int>& rows = below[run.last - 1];
            for (int& i : rows) i = after[i];
            std::sort(rows.begin(), rows.end());
        }
        order = moved, place = inverse_of(order);
    }

    first_ = {0}, rows_at_ = {0}, panel_ = {0};
    std::vector<int> of(size);  // the supernode of each column
    for (const Run& run : runs) {
        const std::vector<int>& rows = below[run.last - 1];
        const int columns = run.last - run.first, pieces = (columns + widest_panel - 1) / widest_panel, first = first_.back(), last = first + columns;
        for (int piece = 0; piece < pieces; ++piece) {  // as even as they come
            const int from = first_.back(), to = first + int(int64_t(columns) * (piece + 1) / pieces);
            const int s = int(first_.size()) - 1;
            for (int k = from; k < to; ++k) of[k] = s;
            for (int k = to; k < last; ++k) rows_.push_back(k);
            rows_.insert(rows_.end(), rows.begin(), rows.end());
            const int below_count = last - to + int(rows.size());
            first_.push_back(to), rows_at_.push_back(int(rows_.size()));
            panel_.push_back(panel_.back() + int64_t(to - from) * (to - from + below_count));
            plan.widest = std::max(plan.widest, to - from), plan.tallest = std::max(plan.tallest, to - from + below_count);
            for (double k = 0; k < to - from; ++k) flops += (below_count + to - from - k) * (below_count + to - from - k) / 2;
        }
    }
    plan.size = size, plan.supernodes = int(first_.size()) - 1;

    // sources: what each supernode's rows update
    struct Segment { int supernode, from, count; };
    std::vector<int> segments_at(plan.supernodes + 1);
    const auto each_segment = [&](auto&& f) {
        for (int s = 0; s < plan.supernodes; ++s)
            for (int i = rows_at_[s]; i < rows_at_[s + 1];) {
                const int to = of[rows_[i]], from = i;
                while (i < rows_at_[s + 1] && of[rows_[i]] == to) ++i;
                f(to, Segment{s, from - rows_at_[s], i - from});
            }
    };
    each_segment([&](int to, const Segment&) { ++segments_at[to + 1]; });
    std::partial_sum(segments_at.begin(), segments_at.end(), segments_at.begin());
    std::vector<Segment> segments(segments_at.back());
    std::vector<int> next(segments_at.begin(), segments_at.end() - 1);
    each_segment([&](int to, const Segment& segment) { segments[next[to]++] = segment; });

    // where in a panel: row i of supernode s
    const auto place_in = [&](int s, int i) {
        const int* rows = rows_.data() + rows_at_[s];
        const int columns = first_[s + 1] - first_[s];
        return i < first_[s + 1] ? i - first_[s] : columns + int(std::lower_bound(rows, rows + rows_at_[s + 1] - rows_at_[s], i) - rows);
    };
    const auto height_of = [&](int s) { return first_[s + 1] - first_[s] + rows_at_[s + 1] - rows_at_[s]; };
    // where the matrix's own entries go, in each supernode by their place
    entries_at_.assign(plan.supernodes + 1, 0);
    const auto column_of = [&](size_t e) { return std::min(place[row[e]], place[col[e]]); };
    for (size_t e = 0; e < row.size(); ++e) ++entries_at_[of[column_of(e)] + 1];
    std::partial_sum(entries_at_.begin(), entries_at_.end(), entries_at_.begin());
    std::vector<std::pair<int, int>> placed(row.size());
    next.assign(entries_at_.begin(), entries_at_.end() - 1);
    for (size_t e = 0; e < row.size(); ++e) {
        const int c = column_of(e), r = std::max(place[row[e]], place[col[e]]), s = of[c];
        placed[next[s]++] = {(c - first_[s]) * height_of(s) + place_in(s, r), int(e)};
    }
    for (int s = 0; s < plan.supernodes; ++s) std::sort(placed.begin() + entries_at_[s], placed.begin() + entries_at_[s + 1]);
    for (const auto& [at, e] : placed) place_.push_back(at), entry_.push_back(e);

    // what each source subtracts: from few rows of a leaf term by term, from others that are narrow by a list of targets
    listed_.assign(plan.supernodes, 1), sources_at_ = {0}, terms_at_ = {0};
    for (int s = 0; s < plan.supernodes; ++s) {
        for (int e = segments_at[s]; e < segments_at[s + 1]; ++e) {
            const auto [k, from, count] = segments[e];
            const int rows = rows_at_[k] + from, high = rows_at_[k + 1] - rows, depth = first_[k + 1] - first_[k];
            const auto each_target = [&, count = count](auto&& f) {
                for (int c = 0; c < count; ++c)
                    for (int i = c; i < high; ++i) f(c, i, (rows_[rows + c] - first_[s]) * height_of(s) + place_in(s, rows_[rows + i]));
            };
            LdlPlan::Source source{panel_[k] + depth + from, height_of(k), depth, first_[k], high, count, rows, -1};
            if (k < plan.few[LdlPlan::most_termwise + 1]) {
                const int* values = entry_.data() + entries_at_[k] + from;
                each_target([&](int c, int i, int to) { terms_.push_back({to, int(source.left) + i, values[c]}); });
                continue;
            }
            if (LdlPlan::narrow(depth, high, count)) {
                source.to = int(targets_.size());
                each_target([&](int, int, int to) { targets_.push_back(to); });
            } else {
                listed_[s] = 0;
            }
            sources_.push_back(source);
        }
        sources_at_.push_back(int(sources_.size())), terms_at_.push_back(int(terms_.size()));
    }
    sign_.resize(size);
    for (int k = 0; k < size; ++k) sign_[k] = sign[order[k]];

    plan.first = first_.data(), plan.rows_at = rows_at_.data(), plan.rows = rows_.data(), plan.panel = panel_.data();
    plan.sources_at = sources_at_.data(), plan.sources = sources_.data();
    plan.targets = targets_.data(), plan.listed = listed_.data(), plan.terms_at = terms_at_.data(), plan.terms = terms_.data();
    plan.entries_at = entries_at_.data(), plan.entry = entry_.data(), plan.place = place_.data(), plan.sign = sign_.data();
}

Incidence SparsePlan::incidence(const RowPattern& M, int n, Columns& columns) {
    columns.first.assign(n + 1, 0), columns.row.resize(M.col.size()), columns.at.resize(M.col.size());
    for (int j : M.col) ++columns.first[j + 1];
    std::partial_sum(columns.first.begin(), columns.first.end(), columns.first.begin());
    std::vector<int> next(columns.first.begin(), columns.first.end() - 1);
    for (int i = 0; i < M.rows; ++i)
        for (int e = M.first[i]; e < M.first[i + 1]; ++e) columns.row[next[M.col[e]]] = i, columns.at[next[M.col[e]]++] = e;
    return {M.first.data(), M.col.data(), columns.first.data(), columns.row.data(), columns.at.data()};
}

SparsePlan::SparsePlan(int n, int m, int p, LowerPattern Q_, RowPattern G_, RowPattern A_)
    : Q(std::move(Q_)), G(std::move(G_)), A(std::move(A_)) {
    for (int e = 0; e < Q.entries(); ++e)
        for (int value : {Q.one[e], Q.other[e]}) {
            if (int(user_row.size()) <= value) user_row.resize(value + 1), user_col.resize(value + 1);
            user_row[value] = Q.row[e], user_col[value] = Q.col[e];  // (which is row and which column does not matter)
        }
    diagonal_at_.assign(n, -1);
    for (int e = 0; e < Q.entries(); ++e)
        if (Q.row[e] == Q.col[e]) diagonal_at_[Q.row[e]] = int(stored.size()), stored.push_back(e), diagonal_.push_back(Q.row[e]);
    const int diagonals = int(stored.size());
    for (int e = 0; e < Q.entries(); ++e)
        if (Q.row[e] != Q.col[e]) stored.push_back(e), row_.push_back(Q.row[e]), col_.push_back(Q.col[e]);
    Q_first_.assign(n + 1, 0);
    const auto each_of_Q = [&](auto&& f) {  // both triangles
        for (int k = 0; k < int(stored.size()); ++k) {
            const int i = Q.row[stored[k]], j = Q.col[stored[k]];
            f(i, j, k);
            if (i != j) f(j, i, k);
        }
    };
    each_of_Q([&](int i, int, int) { ++Q_first_[i + 1]; });
    std::partial_sum(Q_first_.begin(), Q_first_.end(), Q_first_.begin());
    Q_other_.resize(Q_first_[n]), Q_at_.resize(Q_first_[n]);
    std::vector<int> next(Q_first_.begin(), Q_first_.end() - 1);
    each_of_Q([&](int i, int j, int k) { Q_other_[next[i]] = j, Q_at_[next[i]++] = k; });

    std::vector<int> row = row_, col = col_;
    if (!row.empty()) objective = std::make_unique<Symbolic>(n, row, col, std::vector<signed char>(n, 1));
    for (const RowPattern* M : {&G, &A})
        for (int i = 0; i < M->rows; ++i)
            for (int e = M->first[i]; e < M->first[i + 1]; ++e) row.push_back((M == &G ? n : n + p) + i), col.push_back(M->col[e]);
    std::vector<signed char> sign(n + p + m, -1);
    std::fill_n(sign.begin(), n, 1);
    kkt = std::make_unique<Symbolic>(n + p + m, row, col, sign);

    pattern.n = n, pattern.m = m, pattern.p = p;
    pattern.diagonals = diagonals, pattern.lowers = int(row_.size());
    pattern.G_entries = G.entries(), pattern.A_entries = A.entries();
    pattern.diagonal = diagonal_.data(), pattern.diagonal_at = diagonal_at_.data(), pattern.row = row_.data(), pattern.col = col_.data();
    pattern.Q_first = Q_first_.data(), pattern.Q_other = Q_other_.data(), pattern.Q_at = Q_at_.data();
    pattern.G = incidence(G, n, of_G_), pattern.A = incidence(A, n, of_A_);
    pattern.kkt = &kkt->plan, pattern.place = kkt->place.data();
}

void SparsePlan::gather(const Args& g, int64_t member, double* to, int step) const {
    const auto of = [&](const Tensor& x) { return static_cast<const double*>(x.data) + member * x.stride; };
    const double* values = of(g.Q);
    for (int e : stored) {
        const double one = values[Q.one[e]], other = values[Q.other[e]];
        *to = one == other ? one : 0.5 * (one + other), to += step;
    }
    for (const auto& [from, count] : {std::pair{of(g.G), pattern.G_entries}, std::pair{of(g.A), pattern.A_entries}})
        for (int e = 0; e < count; ++e) *to = from[e], to += step;
}

}  // namespace optlayer

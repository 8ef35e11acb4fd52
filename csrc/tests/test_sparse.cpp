// The sparse LDLᵀ: against a dense elimination, and a lane against a matrix alone, bit for bit.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "../sparse_plan.h"
#include "kernels/workspace.h"
#include "room.h"

using namespace optlayer;

namespace {

int failures = 0;
void expect(bool ok, const char* what) {
    if (!ok) std::printf("FAILED: %s\n", what), ++failures;
}

struct Random {
    std::mt19937 bits{1};
    double normal() { return std::normal_distribution<double>()(bits); }
    int below(int n) { return int(bits() % unsigned(n)); }
};

RowPattern random_rows(Random& r, int rows, int n, int entries, bool dense_row) {
    RowPattern M;
    M.rows = rows, M.first = {0};
    for (int i = 0; i < rows; ++i) {
        std::vector<char> in(n, dense_row && i == 0);
        for (int k = 0; k < entries; ++k) in[r.below(n)] = 1;
        for (int j = 0; j < n; ++j)
            if (in[j]) M.col.push_back(j);
        M.first.push_back(int(M.col.size()));
    }
    return M;
}
LowerPattern random_lower(Random& r, int n, int extra) {
    std::vector<char> in(size_t(n) * n);
    for (int i = 0; i < n; ++i) in[size_t(i) * n + i] = 1;
    for (int k = 0; k < extra; ++k) {
        const int i = r.below(n), j = r.below(n);
        in[size_t(std::max(i, j)) * n + std::min(i, j)] = 1;
    }
    LowerPattern Q;
    for (int i = 0; i < n; ++i)
        for (int j = 0; j <= i; ++j)
            if (in[size_t(i) * n + j]) Q.row.push_back(i), Q.col.push_back(j), Q.one.push_back(int(Q.one.size())), Q.other.push_back(int(Q.one.size()) - 1);
    return Q;
}

template <class V>
struct Factored {
    Room memory;
    Ldl<V> ldl;
    explicit Factored(const LdlPlan& plan) {
        Arena measure, work;
        ldl.place(plan, measure, work);
        memory.reserve(measure.used + work.used);
        Arena keep(memory.at()), rest(memory.at() + measure.used);
        ldl.place(plan, keep, rest);
    }
};

void test_factor(int n, int p, int m, int extra, int entries, bool dense_row) {
    constexpr int W = native_width<double>;
    using V = Pack<double, W>;
    Random r;
    const SparsePlan plan(n, m, p, random_lower(r, n, extra), random_rows(r, p, n, entries, dense_row), random_rows(r, m, n, entries, false));
    const LdlPlan& s = plan.kkt->plan;
    const int N = n + m + p, count = plan.pattern.entries() - plan.pattern.diagonals;
    std::vector<std::vector<double>> values(W), diagonal(W), x(W);
    for (int w = 0; w < W; ++w) {
        for (int e = 0; e < count; ++e) values[w].push_back(0.3 * r.normal());
        diagonal[w].resize(N), x[w].resize(N);
        for (int i = 0; i < N; ++i) {
            const double size = i < n ? 2 + 0.2 * extra * n : 1e-3 + std::fabs(r.normal());
            diagonal[w][plan.kkt->place[i]] = i < n ? size : -size;
            x[w][i] = r.normal();
        }
    }
    Room room((size_t(count) + 3 * N) * sizeof(V));
    V *packed = reinterpret_cast<V*>(room.at()), *d = packed + count, *rhs = d + N, *least = rhs + N;
    std::fill(least, least + N, V(0));
    for (int w = 0; w < W; ++w) {
        for (int e = 0; e < count; ++e) set_lane(packed[e], w, values[w][e]);
        for (int i = 0; i < N; ++i) set_lane(d[i], w, diagonal[w][i]), set_lane(rhs[i], w, x[w][i]);
    }
    Factored<V> lanes(s);
    expect(all(lanes.ldl.factor(packed, d, least)), "pivots have their signs");
    lanes.ldl.solve(rhs);
    std::vector<int> row, col;
    for (int e = 0; e < plan.pattern.lowers; ++e) row.push_back(plan.pattern.row[e]), col.push_back(plan.pattern.col[e]);
    for (const RowPattern* M : {&plan.G, &plan.A})
        for (int i = 0; i < M->rows; ++i)
            for (int e = M->first[i]; e < M->first[i + 1]; ++e) row.push_back((M == &plan.G ? n : n + p) + i), col.push_back(M->col[e]);
    double worst = 0;
    bool same = true;
    for (int w = 0; w < W; ++w) {
        Factored<double> alone(s);
        std::vector<double> y = x[w];
        alone.ldl.factor(values[w].data(), diagonal[w].data(), std::vector<double>(N).data());
        alone.ldl.solve(y.data());
        for (int i = 0; i < N; ++i) same &= y[i] == lane(rhs[i], w);
        std::vector<double> residual = x[w];
        for (int i = 0; i < N; ++i) residual[i] -= diagonal[w][i] * y[i];
        for (int e = 0; e < count; ++e) {
            const int i = plan.kkt->place[row[e]], j = plan.kkt->place[col[e]];
            residual[i] -= values[w][e] * y[j], residual[j] -= values[w][e] * y[i];
        }
        for (double v : residual) worst = std::max(worst, std::isfinite(v) ? std::fabs(v) : 1e300);
    }
    char text[120];
    std::snprintf(text, sizeof text, "K x = b, n %d p %d m %d: residual %.1e", n, p, m, worst);
    expect(worst < 1e-8, text);
    expect(same, "a lane has the bits of a matrix alone");
}

}  // namespace

int main() {
    for (int extra : {0, 3, 60, 600})
        for (int entries : {1, 2, 5}) {
            test_factor(1, 0, 0, extra, entries, false);
            test_factor(7, 3, 2, extra, entries, false);
            test_factor(60, 30, 20, extra, entries, true);
            test_factor(200, 0, 90, extra, entries, false);
            test_factor(150, 300, 0, extra, entries, true);
        }
    std::printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

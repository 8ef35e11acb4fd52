// What the first rung is made of: pivoting one row at a time and all at once, the null space, and the cost model.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../call.h"
#include "room.h"

using namespace optlayer;
using Numbers = std::vector<double>;

static int failures = 0;
static std::mt19937_64 generator(11);

static void expect(bool fine, const char* what, int rows) {
    if (!fine) ++failures, std::printf("FAILED %s, %d rows\n", what, rows);
}
static Numbers random(int count) {
    std::normal_distribution<double> normal;
    Numbers x(count);
    for (double& value : x) value = normal(generator);
    return x;
}

// Rows C (rows×n, row by row) over min ½|z − z0|²: M = C C', values v = C z0 − M y.
struct Problem {
    int rows, n;
    Numbers C, v, lo, up, M;
    Columns<double> columns{};
    Room room;
    Pivoting<double> pivoting;

    Problem(int rows_, int n_, Numbers C_, Numbers v_, Numbers lo_, Numbers up_)
        : rows(rows_), n(n_), C(C_), v(v_), lo(lo_), up(up_), M(size_t(rows_) * rows_) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < rows; ++j)
                for (int l = 0; l < n; ++l) M[size_t(j) * rows + i] += C[size_t(i) * n + l] * C[size_t(j) * n + l];
        columns.rows = rows, columns.n = n, columns.M = M.data();
        Arena measure;
        pivoting.place(measure, rows, std::min(rows, n));
        room.reserve(measure.used);
        Arena arena(room.at());
        pivoting.place(arena, rows, std::min(rows, n));
        std::copy(v.begin(), v.end(), pivoting.v), std::copy(lo.begin(), lo.end(), pivoting.lo);
        std::copy(up.begin(), up.end(), pivoting.up);
        pivoting.start(columns);
    }
    // How far y is from the conditions at the top of pivoting.h.
    double error() const {
        double worst = 0;
        for (int i = 0; i < rows; ++i) {
            double value = v[i];
            for (int j = 0; j < rows; ++j) value -= M[size_t(j) * rows + i] * pivoting.y[j];
            worst = std::max({worst, value - up[i], lo[i] - value});
            if (pivoting.y[i] != 0) worst = std::max(worst, std::fabs(value - (pivoting.y[i] > 0 ? up[i] : lo[i])));
        }
        return worst;
    }
};

// Rows with two sides around the values at a random point, so that there is a solution.
static Problem feasible(int rows, int n) {
    Numbers C = random(rows * n), inside = random(n), v = random(rows), lo(rows), up(rows);
    std::uniform_real_distribution<double> room(0, 1);
    for (int i = 0; i < rows; ++i) {
        double value = 0;
        for (int l = 0; l < n; ++l) value += C[size_t(i) * n + l] * inside[l];
        lo[i] = value - room(generator), up[i] = value + room(generator);
    }
    const Numbers z0 = random(n);
    for (int i = 0; i < rows; ++i) {
        v[i] = 0;
        for (int l = 0; l < n; ++l) v[i] += 3 * C[size_t(i) * n + l] * z0[l];
    }
    return Problem(rows, n, C, v, lo, up);
}

static void pivoting() {
    int dropped = 0, guessed = 0;
    for (int rows : {1, 4, 12, 30})
        for (int draw = 0; draw < 20; ++draw) {
            Problem one = feasible(rows, std::max(1, rows * 2 / 3));
            expect(one.pivoting.solve(one.columns, 1000), "one row at a time", rows);
            expect(one.error() < 1e-9, "its answer", rows);
            dropped += one.pivoting.pivots > one.pivoting.k;
            const int needed = one.pivoting.pivots;
            if (needed > 0) {
                Problem again(one.rows, one.n, one.C, one.v, one.lo, one.up);
                expect(!again.pivoting.solve(again.columns, needed - 1), "the limit binds", rows);
            }
            Problem all = feasible(rows, rows + 3);
            if (!all.pivoting.guess(all.columns)) continue;
            ++guessed;
            expect(all.error() < 1e-8, "all at once", rows);
        }
    expect(dropped > 0, "no row was ever dropped", 0);
    expect(guessed > 40, "guesses fail", 0);
    // z <= -1 and -z <= -1, beside an idle row: the multipliers of the contradiction
    Problem against(3, 2, {1, 0, -1, 0, 0, 1}, {0, 0, 0}, {-1e301, -1e301, -1e301}, {-1, -1, 5});
    expect(!against.pivoting.solve(against.columns, 100), "a contradiction", 3);
    const auto& p = against.pivoting;
    expect(p.refuted >= 0 && p.k == 1 && std::fabs(std::fabs(p.u[0]) - 1) < 1e-12, "is refuted by the other row", 3);
}

static void null_space() {
    const int n = 7, m = 3, p = 2, k = n - m;
    Numbers Q(n * n), q(n), A = random(m * n), b(m), G = random(p * n);
    for (int j = 0; j < n; ++j) Q[size_t(j) * n + j] = 1 + j;
    Data<double, double> a{};
    a.n = n, a.m = m, a.p = p, a.Q = Q.data(), a.q = q.data(), a.G = G.data(), a.A = A.data(), a.b = b.data();
    NullSpace<double> f{};
    f.n = n, f.m = m;
    Arena measure;
    f.place(measure, p);
    Room room(measure.used);
    Arena arena(room.at());
    f.place(arena, p);
    Numbers scratch(NullSpace<double>::scratch(n, m));
    const Solo<double> team;
    expect(f.prepare(team, a, scratch.data()), "independent equalities", m);
    const auto dot = [&](const double* x, const double* y) {
        double sum = 0;
        for (int i = 0; i < n; ++i) sum += x[i] * y[i];
        return sum;
    };
    double off = 0;
    for (int i = 0; i < m; ++i) {
        for (int c = 0; c < k; ++c) off = std::max(off, std::fabs(dot(&A[size_t(i) * n], f.Z + size_t(c) * n)));
        for (int c = 0; c < m; ++c) off = std::max(off, std::fabs(dot(&A[size_t(i) * n], f.P + size_t(c) * n) - (i == c)));
    }
    expect(off < 1e-12, "A Z = 0, A P = I", m);
    for (int c = 0; c < k; ++c)
        for (int r = 0; r < k; ++r) {
            double curved = 0;
            for (int j = 0; j < n; ++j) curved += (1 + j) * f.Z[size_t(c) * n + j] * f.Z[size_t(r) * n + j];
            off = std::max({off, std::fabs(dot(f.Z + size_t(c) * n, f.Z + size_t(r) * n) - (c == r)), std::fabs(f.Q[size_t(c) * k + r] - curved)});
        }
    for (int i = 0; i < p; ++i)
        for (int c = 0; c < k; ++c) off = std::max(off, std::fabs(f.C[size_t(i) * k + c] - dot(&G[size_t(i) * n], f.Z + size_t(c) * n)));
    expect(off < 1e-12, "Z'Z = I, Z'QZ, G Z", m);
    for (int j = 0; j < n; ++j) A[size_t(m - 1) * n + j] = A[j] - 2 * A[n + j];
    expect(!f.prepare(team, a, scratch.data()), "dependent equalities", m);
}

static void costs() {
    Plan plan{};
    plan.n = 100, plan.p = 5;
    expect(cheapest_elimination(plan, true) == SCHUR, "few rows", plan.p);
    expect(cheapest_elimination(plan, false) == NORMAL, "few rows, Q of any rank", plan.p);
    plan.bounds = plan.n;
    expect(cheapest_elimination(plan, true) == NORMAL, "bounds are on the diagonal of normal equations", plan.p);
    plan.diagonal = true;
    expect(cheapest_elimination(plan, true) == DIAGONAL, "a diagonal Q, and bounds", plan.p);
    plan = Plan{}, plan.n = 10, plan.p = 200;
    expect(cheapest_elimination(plan, true) == NORMAL, "many rows", plan.p);
    plan = Plan{}, plan.n = 60, plan.m = 55, plan.p = 60, plan.shared = true;
    expect(cheapest_elimination(plan, false) == NULL_SPACE, "shared equalities leave little", plan.p);
    plan.shared = false;
    expect(cheapest_elimination(plan, false) == NORMAL, "the null space is worth it for a batch only", plan.p);
}

int main() {
    pivoting(), null_space(), costs();
    std::printf("%d failures\n", failures);
    return failures != 0;
}

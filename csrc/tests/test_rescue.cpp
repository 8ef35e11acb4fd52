// The last rungs: numbers of twice the precision, and members that nothing else settles.
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels/twofold.h"
#include "../rescue.h"

using namespace optlayer;

static int failures = 0;
static void expect(bool fine, const char* what) {
    if (!fine) ++failures, std::printf("FAILED %s\n", what);
}

static void twofold() {
    const Twofold third = Twofold(1) / Twofold(3), root = sqrt(Twofold(2));
    expect(std::fabs(double(third * Twofold(3) - Twofold(1))) < 1e-31, "a third");
    expect(std::fabs(double(root * root - Twofold(2))) < 1e-31, "the root of two");
    const Twofold sum = Twofold(1e16) + Twofold(1) - Twofold(1e16);
    expect(double(sum) == 1, "a sum that double rounds away");
    expect(Twofold(1) + Twofold(1e-30) > Twofold(1), "order beyond double");
    expect(double(abs(Twofold(-2))) == 2 && double(max(Twofold(1), Twofold(2))) == 2, "sizes");
}

// One member with n variables, m equalities, p rows, without bounds.
struct Member {
    int n, m, p;
    std::vector<double> Q, q, G, h, A, b, z, s, lam, nu, numbers = std::vector<double>(3);
    int32_t status = -1, iterations = 0;

    static Tensor tensor(std::vector<double>& x) { return {x.empty() ? nullptr : x.data(), int64_t(x.size())}; }
    Args args() {
        z.assign(n, 0), s.assign(p, 0), lam.assign(p, 0), nu.assign(m, 0);
        Args g{};
        g.n = n, g.m = m, g.p = p, g.batch = 1, g.max_iterations = 60, g.polish = 1, g.tolerance = 1e-9;
        g.Q = tensor(Q), g.q = tensor(q), g.G = tensor(G), g.h = tensor(h), g.A = tensor(A), g.b = tensor(b);
        g.z = tensor(z), g.s = tensor(s), g.lam = tensor(lam), g.nu = tensor(nu);
        g.status = {&status, 1}, g.iterations = {&iterations, 1};
        g.primal_residual = {&numbers[0], 1}, g.dual_residual = {&numbers[1], 1}, g.gap = {&numbers[2], 1};
        return g;
    }
};

static void members() {
    Member parallel{2, 0, 2, {1, 0, 0, 1}, {-1, -1}, {1, 1, 1, 1 + 1e-8}, {1, 1}, {}, {}};  // rows nearly parallel
    expect(rescue(parallel.args(), 0) == SOLVED && std::fabs(parallel.z[0] - 0.5) < 1e-7, "nearly parallel rows");
    Member against{2, 0, 2, {1, 0, 0, 1}, {-1, -1}, {1, 2, -1, -2}, {0, -1e-7}, {}, {}};
    expect(rescue(against.args(), 0) == PRIMAL_INFEASIBLE, "a small contradiction");
    expect(std::fabs(against.lam[0] - against.lam[1]) < 1e-9 * against.lam[0], "its proof");
    Member falling{2, 0, 1, {0, 0, 0, 1}, {-1, 0}, {0, 1}, {1}, {}, {}};
    expect(rescue(falling.args(), 0) == DUAL_INFEASIBLE && falling.z[0] == 1, "a ray");
    Member twice{2, 2, 0, {1, 0, 0, 1}, {0, 0}, {}, {}, {1, 1, 2, 2}, {1, 2}};  // an equality and its double
    expect(rescue(twice.args(), 0) == SOLVED && std::fabs(twice.z[1] - 0.5) < 1e-12, "dependent equalities");
    Member apart{2, 0, 2, {1, 0, 0, 1}, {0, 3}, {1, 0, -1, 0}, {0, -1}, {}, {}};
    Args g = apart.args();
    g.closest = 1;
    expect(rescue(g, 0) == CLOSEST && apart.z[0] == 0.5 && apart.z[1] == -3, "the closest point");
    Member saddle{2, 0, 0, {1, 0, 0, -1e-12}, {0, 0}, {}, {}, {}, {}};
    expect(!is_convex(saddle.args(), 0), "a small negative curvature");
}

int main() {
    twofold(), members();
    std::printf("%d failures\n", failures);
    return failures != 0;
}

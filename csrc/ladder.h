// Which method a call takes, on a CPU and on a GPU: one table. First comes the active set, where Q may be definite and the
// solution itself is asked for, else the cheapest elimination of an interior point; then the cheapest one that takes any Q (on a
// GPU: NORMAL); then the rungs of rescue.h (Call::climb, Task::solve).
#pragma once
#include "kernels/solver.h"

namespace optlayer {

struct MethodRow {
    bool definite;  // wants a Q that is safely definite
    bool proves;    // finds out whether it is, and so that the objective is convex; the others take any stationary point
    bool lanes;     // may hold several QPs to a register
    double (*work)(const Plan&, double n, double m, double p, double rows);  // multiply-adds of an iteration, a tenth of what is done once
};
constexpr double never = 1e300;  // work of what is not possible

constexpr MethodRow methods[] = {
    /* AUTO */ {false, false, false, [](const Plan&, double, double, double, double) { return never; }},
    /* SCHUR */ {true, true, false, [](const Plan& plan, double n, double m, double p, double) {
        const double dual = m + p, dense = plan.diagonal ? 0 : n * n * n / 6 + n * n * dual / 2;
        const double once = plan.shared ? 0 : (dense + n * dual * dual / 2) / 10;
        return p > 0 && plan.bounds == 0 ? p * p * p / 6 + 3 * p * p + once : never;
    }},
    /* NORMAL */ {false, false, true, [](const Plan& plan, double n, double m, double p, double rows) {
        const double dense = plan.diagonal && p == 0 ? 0 : n * n * n / 6 + m * n * n / 2;
        return dense + p * n * n / 2 + m * m * n / 2 + m * m * m / 6 + 2 * (n * n + n * rows + n * m);
    }},
    /* DIAGONAL */ {true, false, false, [](const Plan& plan, double n, double m, double p, double) {
        const double dual = m + p;
        return plan.diagonal && p > 0 ? dual * dual * n / 2 + dual * dual * dual / 6 + 2 * n * dual : never;
    }},
    /* NULL_SPACE */ {false, false, false, [](const Plan& plan, double n, double m, double, double rows) {
        const double k = n - m;
        return plan.shared && m > 0 && k > 0 ? rows * k * k / 2 + k * k * k / 6 + 3 * n * k + 3 * n * rows / 2 : never;
    }},
    /* ACTIVE */ {true, true, true, [](const Plan&, double, double, double, double) { return 0.0; }},
};
inline double work_of(Method x, const Plan& p) { return methods[x].work(p, p.n, p.m, p.p, p.rows()); }

// Of those in `offered` (bits of Method).
inline Method cheapest_elimination(const Plan& p, bool definite, unsigned offered = ~0u) {
    Method best = NORMAL;
    for (Method x : {SCHUR, DIAGONAL, NULL_SPACE})
        if ((offered >> x & 1) && (definite || !methods[x].definite) && work_of(x, p) < work_of(best, p)) best = x;
    return best;
}

// Several QPs to a register while they are tiny; not by the batch, which must not change a member's bits.
inline bool tiny(const Plan& p) { return p.n <= 16 && p.rows() <= 32 && p.m <= 16; }

// The active-set method forms all of M when it guesses from it, shares it, or would form most of its columns anyway.
inline bool forms_whole(const Plan& p) {
    const double R = p.rows(), k = p.n - p.m;
    if (p.lanes > 1 || 2 * R <= 3 * k) return true;
    return p.shared ? R * R <= 4e6 : 0.7 * k >= 0.5 * R;
}

// Worth M⁻¹: the batch shares it, and members are to guess (active.h).
inline bool inverts(const Plan& p) { return p.lanes == 1 && p.rows() >= 24 && p.rows() <= p.n - p.m; }

}  // namespace optlayer

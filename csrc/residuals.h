// Slacks and residuals of a point in the user's units, by the user's data.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/solver.h"

namespace optlayer {

// Of the point of member k that is stored; a: its matrices. relaxed_gap: what the gap of a relaxed problem shall be.
template <class D> void store_residuals(const D& a, const Args& g, int64_t k, double relaxed_gap) {
    const Solo<double> t;
    const auto of = [&](const Tensor& x) { return x.data ? View<double>(x).of(k) : nullptr; };
    const double *z = of(g.z), *q = of(g.q), *h = of(g.h), *h_lower = of(g.h_lower), *b = of(g.b), *nu = of(g.nu), *lam = of(g.lam), *lam_lower = of(g.lam_lower);
    std::vector<double> force(g.n), net(g.p), value(g.p), equality(g.m);
    double primal = 0, gap = 0;
    a.add_Qz(t, z, force.data());
    for (int j = 0; j < g.n; ++j) force[j] += q[j], gap += z[j] * force[j];
    if (g.p) a.rows_times(t, z, value.data());
    const auto side = [&](double sign, double value, double bound, double multiplier) {
        if (!std::isinf(bound)) primal = std::max(primal, sign * (value - bound)), gap += sign * bound * multiplier;
    };
    for (int i = 0; i < g.p; ++i) {
        const double below = lam_lower ? lam_lower[i] : 0;
        side(1, value[i], h[i], lam[i]);
        if (h_lower) side(-1, value[i], h_lower[i], below);
        of(g.s)[i] = lam[i] > 0 && relaxed_gap == 0 ? 0 : std::max(h[i] - value[i], 0.0);
        net[i] = lam[i] - below;
    }
    if (g.p) a.add_rows_t(t, net.data(), force.data());
    if (g.m) a.A_times(t, z, equality.data()), a.add_At(t, nu, force.data());
    for (int i = 0; i < g.m; ++i) primal = std::max(primal, std::abs(equality[i] - b[i])), gap += b[i] * nu[i];
    const struct { const double *bound, *multiplier; double sign; } bounds[] = {{of(g.lb), of(g.lam_lb), -1}, {of(g.ub), of(g.lam_ub), 1}};
    for (const auto& x : bounds)
        for (int j = 0; x.bound && j < g.n; ++j) {
            force[j] += x.sign * x.multiplier[j];
            side(x.sign, z[j], x.bound[j], x.multiplier[j]);
        }
    double dual = 0;
    for (double f : force) dual = std::max(dual, std::abs(f));
    *of(g.primal_residual) = primal, *of(g.dual_residual) = dual, *of(g.gap) = std::abs(gap - relaxed_gap);
}

}  // namespace optlayer

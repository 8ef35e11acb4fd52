// A member in units of its own: powers of two, so that nothing is rounded, with rows that are bounds made bounds, zero rows
// settled, and rows without room between their sides made equalities; and the way back to the user's.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "call.h"
#include "residuals.h"
#include "units.h"

namespace optlayer {

using Numbers = std::vector<double>;
constexpr double inf = std::numeric_limits<double>::infinity();

struct Model {  // rows of Q, G and A are contiguous
    int n = 0, m = 0, p = 0;
    Numbers Q, q, G, A, b, h, h_lower, lb, ub;  // infinite sides are none

    int sides() const { return 2 * p + 2 * n; }
    // Sides in the order of Sides: upper and lower sides of the rows, lower and upper bounds; each as σ c'z <= value.
    double side(int k) const { return k < p ? h[k] : k < 2 * p ? -h_lower[k - p] : k < 2 * p + n ? -lb[k - 2 * p] : ub[k - 2 * p - n]; }
    int row_of(int k) const { return k < p ? k : k < 2 * p ? k - p : k < 2 * p + n ? p + k - 2 * p : p + k - 2 * p - n; }
    double sign(int k) const { return k < p || k >= 2 * p + n ? 1 : -1; }
};

struct Answer {
    Numbers z, nu, lam;
    int iterations = 0;
};

inline double power_of_two(double x) {  // near 1/sqrt(x)
    if (!(x > 0) || !(x < inf)) return 1;
    int exponent;
    std::frexp(x, &exponent);
    return std::ldexp(1.0, -(exponent >= 0 ? exponent / 2 : -((-exponent + 1) / 2)));
}

class Scaled {
  public:
    Model model;  // of the rows that are left, in the units below

    Scaled(const Args& args, int64_t member) : g(args), k(member), n(args.n) {
        load();
        settle_rows();
        equilibrate();
    }

    // Whether the data contradict themselves at the door: a zero row with a side beyond zero, or crossing bounds. The proof is
    // written.
    bool contradicts(double tolerance) const {
        if (bad_row >= 0) {
            nothing();
            if (bad_equality) *at(g.nu, bad_row) = -1 / user_b[bad_row];
            else if (user_h[bad_row] < 0) *at(g.lam, bad_row) = -1 / user_h[bad_row];
            else *at(g.lam_lower, bad_row) = 1 / user_below[bad_row];
            return true;
        }
        for (int j = 0; j < n; ++j) {
            const double over = low[j] - high[j];
            if (!(over > tolerance * (std::abs(low[j]) + std::abs(high[j])))) continue;
            if (g.closest) return true;
            nothing();
            if (g.z.data) *at(g.z, j) = low[j] / 2 + high[j] / 2;
            put_bound(j, false, 1 / over), put_bound(j, true, 1 / over);
            return true;
        }
        return false;
    }

    // The answer in the user's units; `proof`: multipliers are a proof, which has no unit of the objective.
    void store(const Answer& found, bool proof) const {
        nothing();
        const double c = proof ? 1 : objective;
        for (int j = 0; j < n; ++j) *at(g.z, j) = found.z[j] * D[j];
        for (int i = 0; i < model.m; ++i) put_equality(i, found.nu[i] < 0, multipliers(), found.nu[i] * F[i] / c);
        for (int i = 0; i < model.p; ++i) {
            *at(g.lam, rows[i]) = found.lam[i] * E[i] / c;
            if (g.lam_lower.data) *at(g.lam_lower, rows[i]) = found.lam[model.p + i] * E[i] / c;
        }
        for (int j = 0; j < n; ++j) {
            put_bound(j, false, found.lam[2 * model.p + j] / (c * D[j]));
            put_bound(j, true, found.lam[2 * model.p + n + j] / (c * D[j]));
            if (low[j] > high[j] || g.smoothing > 0) continue;
            double& z = *at(g.z, j);  // exactly at a bound that is active there (it may have been divided by a unit)
            if (found.lam[2 * model.p + j] > 0 || z < low[j]) z = 0.0 + low[j];
            else if (found.lam[2 * model.p + n + j] > 0 || z > high[j]) z = 0.0 + high[j];
        }
    }
    void store_ray(const Numbers& ray) const {
        nothing();
        for (int j = 0; j < n; ++j) *at(g.z, j) = ray[j] * D[j] * objective;
    }
    // Slacks, residuals and iterations of what is stored.
    void finish(int iterations, double relaxed_gap = 0) const {
        if (g.single == 2) round();
        Data<double, double> a{};
        a.n = n, a.m = g.m, a.p = g.p, a.Q = user_Q.data(), a.G = user_G, a.A = user_A;
        store_residuals(a, g, k, relaxed_gap);
        *(static_cast<int32_t*>(g.iterations.data) + k * g.iterations.stride) = iterations;
    }

    // Multipliers of the point that is stored, in these units.
    Answer recall() const {
        Answer found;
        found.z.resize(n), found.nu.resize(model.m), found.lam.resize(model.sides());
        for (int j = 0; j < n; ++j) found.z[j] = *at(g.z, j) / D[j];
        for (int i = 0; i < model.m; ++i) {
            const Equality& e = equalities[i];
            const double nu = e.of_A ? *at(g.nu, e.row) : part(e.upper, true, 0, multipliers()) - part(e.lower, false, 0, multipliers());
            found.nu[i] = nu * objective / F[i];
        }
        for (int i = 0; i < model.p; ++i) {
            found.lam[i] = *at(g.lam, rows[i]) * objective / E[i];
            found.lam[model.p + i] = g.lam_lower.data ? *at(g.lam_lower, rows[i]) * objective / E[i] : 0;
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) found.lam[2 * model.p + upper * n + j] = bound(upper, j, multipliers()) * objective * D[j];
        return found;
    }
    // Right-hand sides of the derivative in these units, and its solution back in the user's.
    void load_rhs(Numbers& rz, Numbers& rnu, Numbers& rk) const {
        rz.assign(n, 0), rnu.assign(model.m, 0), rk.assign(model.sides(), 0);
        for (int j = 0; j < n && g.r_z.data; ++j) rz[j] = *at(g.r_z, j) * objective * D[j];
        const Homes right{&g.r_lam, &g.r_lower, &g.r_lb, &g.r_ub, &g.r_nu};
        for (int i = 0; i < model.m; ++i) rnu[i] = of_equality(i, right) * F[i];
        for (int i = 0; i < model.p; ++i) {
            if (g.r_lam.data) rk[i] = *at(g.r_lam, rows[i]) * E[i];
            if (g.r_lower.data) rk[model.p + i] = *at(g.r_lower, rows[i]) * E[i];
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) {
                const Owner& o = owner(upper, j);
                rk[2 * model.p + upper * n + j] = value(upper, j, right) / o.size() / D[j];
            }
    }
    void store_derivative(const Answer& v) const {
        const auto clear = [&](const Tensor& x, int count) {
            if (x.data) std::fill_n(at(x, 0), count, 0.0);
        };
        clear(g.v_lam, g.p), clear(g.v_lower, g.p), clear(g.v_nu, g.m), clear(g.v_lb, n), clear(g.v_ub, n);
        for (int j = 0; j < n; ++j) *at(g.v_z, j) = v.z[j] * D[j];
        const Homes answer{&g.v_lam, &g.v_lower, &g.v_lb, &g.v_ub, &g.v_nu};
        for (int i = 0; i < model.m; ++i) put_equality(i, pulls_down(i), answer, v.nu[i] * F[i] / objective);
        for (int i = 0; i < model.p; ++i) {
            *at(g.v_lam, rows[i]) = v.lam[i] * E[i] / objective;
            if (g.v_lower.data) *at(g.v_lower, rows[i]) = v.lam[model.p + i] * E[i] / objective;
        }
        for (int j = 0; j < n; ++j)
            for (bool upper : {false, true}) put(upper, j, answer, v.lam[2 * model.p + upper * n + j] / (objective * D[j]));
    }

    bool crossed(int j) const { return low[j] > high[j]; }
    // w and τ in the user's units (rescue.h)
    void store_least(const Numbers& w, const Numbers& tau) const {
        if (!g.v_least.data) return;
        for (int j = 0; j < n; ++j) *at(g.v_least, j) = w[j] * D[j] / objective;
        for (int i = 0; i < model.p; ++i) *at(g.v_least, n + rows[i]) = tau[i] * E[i];
        for (int i = 0; i < model.m; ++i) {
            const Equality& e = equalities[i];
            const bool down = pulls_down(i);
            *at(g.v_least, n + (e.of_A ? g.p + e.row : e.side(down).row)) = tau[model.p + i] * F[i] / e.side(down).c;
        }
    }

    const Args& g;
    const int64_t k;
    const int n;
    double objective = 1;  // all of the objective is times this
    Numbers D, E, F;       // z = D ẑ; rows of G and A are times E, F

  private:
    struct Owner {  // of a side: the user's bound (row -1), or a side of a row of G that is this one times c
        int row = -1;
        double c = 1;
        double size() const { return std::abs(c); }
    };
    struct Homes { const Tensor *rows, *below, *lb, *ub, *nu; };
    struct Equality {  // a row of A, or a row of G that has no room between its sides, which may be those of parallel rows
        int row;
        bool of_A = true;
        double value = 0;
        Owner upper, lower;
        const Owner& side(bool down) const { return down ? lower : upper; }
    };
    std::vector<int> rows;  // of the user's G, that are rows of the model
    std::vector<Equality> equalities;
    std::vector<Owner> lower_owner, upper_owner;
    Numbers low, high;                  // bounds in the user's units
    Numbers user_Q, user_below;
    const double *user_q, *user_G, *user_h, *user_A, *user_b;
    int bad_row = -1;
    bool bad_equality = false;

    double* at(const Tensor& x, int64_t i = 0) const { return static_cast<double*>(x.data) + k * x.stride + i; }
    const Owner& owner(bool upper, int j) const { return (upper ? upper_owner : lower_owner)[j]; }
    Homes multipliers() const { return {&g.lam, &g.lam_lower, &g.lam_lb, &g.lam_ub, &g.nu}; }
    const Tensor& home(const Owner& o, bool upper, const Homes& of) const {
        return *(o.row < 0 ? (upper ? of.ub : of.lb) : upper == (o.c > 0) ? of.rows : of.below);
    }
    double value(const Owner& o, bool upper, int j, const Homes& of) const {
        const Tensor& x = home(o, upper, of);
        return x.data ? *at(x, o.row >= 0 ? o.row : j) : 0;
    }
    double part(const Owner& o, bool upper, int j, const Homes& of) const { return value(o, upper, j, of) * o.size(); }
    void put(const Owner& o, bool upper, int j, const Homes& to, double multiplier) const {
        const Tensor& x = home(o, upper, to);
        if (x.data) *at(x, o.row >= 0 ? o.row : j) = multiplier / o.size();
    }
    double value(bool upper, int j, const Homes& of) const { return value(owner(upper, j), upper, j, of); }
    double bound(bool upper, int j, const Homes& of) const { return part(owner(upper, j), upper, j, of); }
    void put(bool upper, int j, const Homes& to, double multiplier) const { put(owner(upper, j), upper, j, to, multiplier); }
    // Of the sides of an equality the one with a multiplier stands for it.
    bool pulls_down(int i) const { return !equalities[i].of_A && value(equalities[i].lower, false, 0, multipliers()) > 0; }
    double of_equality(int i, const Homes& of) const {
        const Equality& e = equalities[i];
        const bool down = pulls_down(i);
        if (!e.of_A) return (down ? -1 : 1) * value(e.side(down), !down, 0, of) / e.side(down).size();
        return of.nu->data ? *at(*of.nu, e.row) : 0;
    }
    void put_equality(int i, bool down, const Homes& to, double multiplier) const {
        const Equality& e = equalities[i];
        if (e.of_A) *at(*to.nu, e.row) = multiplier;
        else put(e.side(down), !down, 0, to, down ? -multiplier : multiplier);
    }
    void put_bound(int j, bool upper, double multiplier) const { put(upper, j, multipliers(), multiplier); }

    void load() {
        user_Q.resize(size_t(n) * n);
        const double* Q = at(g.Q);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < n; ++j) {
                double& to = user_Q[size_t(i) * n + j];
                to = g.diagonal ? (i == j ? Q[i] : 0) : 0.5 * Q[size_t(i) * n + j] + 0.5 * Q[size_t(j) * n + i];
            }
        user_q = at(g.q), user_G = at(g.G), user_h = at(g.h), user_A = at(g.A), user_b = at(g.b);
        user_below.assign(g.p, -inf);
        if (g.h_lower.data) std::copy_n(at(g.h_lower), g.p, user_below.begin());
    }
    // Zero rows go, rows of one entry become bounds where these are tighter, rows without room between their sides equalities.
    void settle_rows() {
        low.assign(n, -inf), high.assign(n, inf), lower_owner.resize(n), upper_owner.resize(n);
        if (g.lb.data) std::copy_n(at(g.lb), n, low.begin());
        if (g.ub.data) std::copy_n(at(g.ub), n, high.begin());
        const auto entries = [&](const double* row, int& last) {
            int count = 0;
            for (int j = 0; j < n; ++j)
                if (row[j] != 0) ++count, last = j;
            return count;
        };
        for (int i = 0; i < g.p; ++i) {
            int j = -1;
            const int count = entries(G_row(i), j);
            if (count == 0) {
                if (user_h[i] < 0 || user_below[i] > 0) bad_row = i;
            } else if (count == 1) {
                tighten(i, G_row(i)[j], low[j], high[j], lower_owner[j], upper_owner[j]);
            } else {
                rows.push_back(i);
            }
        }
        for (int i = 0; i < g.m; ++i) {
            int j = -1;
            if (entries(user_A + size_t(i) * n, j)) equalities.push_back({i, true, user_b[i], {}, {}});
            else if (user_b[i] != 0) bad_row = i, bad_equality = true;
        }
        if (!(g.smoothing > 0)) join_rows();  // (whose sides are to have slacks)
    }
    const double* G_row(int i) const { return user_G + size_t(i) * n; }
    // The sides of row i of G, which is `c` times what has these.
    void tighten(int i, double c, double& down, double& up, Owner& lower, Owner& upper) const {
        const double most = c > 0 ? user_h[i] / c : user_below[i] / c, least = c > 0 ? user_below[i] / c : user_h[i] / c;
        if (most < up) up = most, upper = {i, c};
        if (least > down) down = least, lower = {i, c};
    }
    // Rows that are parallel but for rounding, and of whose sides two leave no room but for rounding: an equality.
    void join_rows() {
        const double noise = Tuning<double>::noise(n);
        const auto ratio = [&](const double* x, const double* y) {  // of y to x, or 0
            double c = 0;
            for (int j = 0; j < n; ++j) {
                if ((x[j] != 0) != (y[j] != 0)) return 0.0;
                if (c == 0 && x[j] != 0) c = y[j] / x[j];
                if (std::abs(y[j] - c * x[j]) > Tuning<double>::parallel * std::abs(y[j])) return 0.0;
            }
            return c;
        };
        std::vector<int> left;
        std::vector<bool> joined(rows.size(), false);
        for (size_t k = 0; k < rows.size(); ++k) {
            if (joined[k]) continue;
            double down = -inf, up = inf;
            Equality e{rows[k], false, 0, {}, {}};
            std::vector<size_t> parallel;
            for (size_t l = k; l < rows.size(); ++l) {
                const double c = l == k ? 1 : joined[l] ? 0 : ratio(G_row(rows[k]), G_row(rows[l]));
                if (c != 0) parallel.push_back(l), tighten(rows[l], c, down, up, e.lower, e.upper);
            }
            const double over = down - up, size = std::abs(down) + std::abs(up);
            if (size < inf && over >= -noise * size && over <= g.tolerance * size) {
                e.value = down / 2 + up / 2;
                equalities.push_back(e);
                for (size_t l : parallel) joined[l] = true;
            } else {
                left.push_back(rows[k]);
            }
        }
        rows = left;
    }

    // Ruiz' scaling of the KKT matrix in powers of two: in every row and column the largest entry is near 1; and the objective
    // as a whole, so that Q or q is. That leaves a choice; it starts from units that the user's have no part in.
    void equilibrate() {
        const int m = int(equalities.size()), p = int(rows.size());
        model.n = n, model.m = m, model.p = p;
        model.Q = user_Q, model.q.assign(user_q, user_q + n);
        for (int i : rows) model.G.insert(model.G.end(), G_row(i), G_row(i) + n);
        for (const Equality& e : equalities) {
            const double* row = e.of_A ? user_A + size_t(e.row) * n : G_row(e.row);
            model.A.insert(model.A.end(), row, row + n);
        }
        D.assign(n, 1), E.assign(p, 1), F.assign(m, 1);
        Numbers columns(n), d(n);
        constexpr int sweeps = 12;  // each halves the spread of the exponents
        const auto scale_rows = [&](Numbers& M, Numbers& scales, int count) {
            for (int i = 0; i < count; ++i) {
                double* row = M.data() + size_t(i) * n;
                double top = 0;
                for (int j = 0; j < n; ++j) top = std::max(top, std::abs(row[j])), columns[j] = std::max(columns[j], std::abs(row[j]));
                const double e = power_of_two(top);
                scales[i] *= e;
                for (int j = 0; j < n; ++j) row[j] *= e;
            }
        };
        const auto scale_columns = [&] {
            for (int j = 0; j < n; ++j) D[j] *= d[j], model.q[j] *= d[j];
            for (int i = 0; i < n; ++i)
                for (int j = 0; j < n; ++j) model.Q[size_t(i) * n + j] *= d[i] * d[j];
            for (Numbers* M : {&model.G, &model.A})
                for (size_t i = 0; i < M->size(); ++i) (*M)[i] *= d[i % n];
        };
        const auto exponents = NaturalUnits(n, p + m, meetings()).exponents(user_q);
        const auto unit = [&](int i) { return std::ldexp(1.0, exponents[i]); };
        for (int j = 0; j < n; ++j) d[j] = unit(j);
        scale_columns();
        const auto start_rows = [&](Numbers& M, Numbers& scales, int first) {
            for (size_t i = 0; i < M.size(); ++i) M[i] *= unit(first + int(i / n));
            for (size_t i = 0; i < scales.size(); ++i) scales[i] = unit(first + int(i));
        };
        start_rows(model.G, E, n), start_rows(model.A, F, n + p);
        for (int sweep = 0; sweep < sweeps; ++sweep) {
            for (int j = 0; j < n; ++j) {
                columns[j] = 0;
                for (int i = 0; i < n; ++i) columns[j] = std::max(columns[j], std::abs(model.Q[size_t(j) * n + i]));
            }
            scale_rows(model.G, E, p), scale_rows(model.A, F, m);
            for (int j = 0; j < n; ++j) d[j] = power_of_two(columns[j] > 0 ? columns[j] : std::abs(model.q[j]));
            scale_columns();
            double top = 0;
            for (int j = 0; j < n; ++j) top = std::max(top, std::abs(model.q[j]));
            for (double x : model.Q) top = std::max(top, std::abs(x));
            const double c = power_of_two(top) * power_of_two(top);
            objective *= c;
            for (double& x : model.Q) x *= c;
            for (double& x : model.q) x *= c;
        }
        model.h.resize(p), model.h_lower.resize(p), model.b.resize(m), model.lb.resize(n), model.ub.resize(n);
        for (int i = 0; i < p; ++i) model.h[i] = user_h[rows[i]] * E[i], model.h_lower[i] = user_below[rows[i]] * E[i];
        for (int i = 0; i < m; ++i) model.b[i] = equalities[i].value * F[i];
        for (int j = 0; j < n; ++j) {  // between bounds that cross, the middle
            const double middle = low[j] / 2 + high[j] / 2;
            model.lb[j] = (crossed(j) ? middle : low[j]) / D[j], model.ub[j] = (crossed(j) ? middle : high[j]) / D[j];
        }
    }

    // Entries of Q, G and A.
    std::vector<Meeting> meetings() const {
        std::vector<Meeting> all;
        const auto take = [&](const Numbers& M, int count, int first, bool lower) {
            for (int i = 0; i < count; ++i)
                for (int j = 0; j <= (lower ? i : n - 1); ++j)
                    if (const double x = M[size_t(i) * n + j]; is_entry(x)) all.push_back({first + i, j, std::ilogb(x)});
        };
        take(model.Q, n, 0, true), take(model.G, model.p, n, false), take(model.A, model.m, n + model.p, false);
        return all;
    }

    void nothing() const {
        const auto clear = [&](const Tensor& x, int count) {
            if (x.data) std::fill_n(at(x), count, 0.0);
        };
        clear(g.z, n), clear(g.lam, g.p), clear(g.lam_lower, g.p), clear(g.nu, g.m), clear(g.lam_lb, n), clear(g.lam_ub, n);
    }
    void round() const {
        const auto narrow = [&](const Tensor& x, int count) {
            for (int i = 0; x.data && i < count; ++i) *at(x, i) = double(float(*at(x, i)));
        };
        narrow(g.z, n), narrow(g.lam, g.p), narrow(g.lam_lower, g.p), narrow(g.nu, g.m), narrow(g.lam_lb, n), narrow(g.lam_ub, n);
    }
};

}  // namespace optlayer

// Every tuned number of the kernels, for each precision, with its reason. What moves one is named in brackets:
// [bench] benchmarks/run.py, [fuzz] tests/fuzz.py, [hard] tests/test_cliffs.py, [maros] benchmarks/maros.py, [families] benchmarks/families.py.
#pragma once
#include "pack.h"
#ifndef __CUDACC_RTC__
#include "twofold.h"
#endif

namespace optlayer {

// Variables and rows from which the sparse engine tries what the first rung leaves, before rungs of cubic cost. [families]
constexpr int by_pattern_from = 100;
// And up to which it tries what no rung has settled, whatever the fill. [tests/test_cliffs.py]
constexpr int most_by_pattern = 500;

// Ratio of two variables' curvatures below which it is their units that stop the active set of the first rung. [families]
constexpr double even_units = 1e-8;

// Exponents of natural units (csrc/units.h) up to which the sparse engine works in the user's; of entries and costs, and of their
// ratios, up to which it does not look for them. [maros, benchmarks/sparse.py, tests/test_derivative.py]
constexpr int far_unit = 18, far_entry = 24, far_apart = 36;

// Rows of a sparse panel that are quicker one by one than in a part of a register: what was just written piece by piece waits
// for the memory when it is read as a whole. [benchmarks/sparse.py]
constexpr int loose_rows = 3;

template <class T> struct Tuning;

template <> struct Tuning<double> {
    static constexpr double infinity = 1e300;        // larger sides mean no constraint to the pivoting
    static constexpr double huge_pivot = 1e128;      // replaces a pivot that is none: its row drops out (dense.h)
    static constexpr double rounding = 2.2e-16;
    // The judge (verdict.h). A residual below `fine` of the cheap terms needs no look at the full ones; residuals of
    // what rounding can do are none; where rounding can do more than `most_noise` of the forces, or `most_of_sides`, nothing is known.
    static constexpr double fine = 1e-11, most_noise = 1e-3, most_of_sides = 1e-5;
    static constexpr double blurred = 1e-10;         // of the largest variable or side: what its own scale may excuse a row [bench, hard]
    static constexpr double noise(int terms) { return rounding * (8 + terms); }
    static constexpr double parallel = 4 * rounding; // entries of two rows that are multiples of each other [fuzz]
    // The active-set method. A pivot of Q is safe above `safe` of the entry it came from, and above `zero` of the largest
    // one; a row is dependent below `dependent` of its own M_ii; violations up to `slack` are none. [fuzz]
    static constexpr double safe = 1e-11, zero = 1e-18, dependent = 1e-11, slack = 1e-13, block_pivot = 1e-13;
    static constexpr double invertible = 1e-11;      // of M, before N = M⁻¹ is used
    static constexpr double enough = 1e-2;           // an answer within so much of the tolerance is not refined
    // The interior point. Share of the way to the boundary; stages of λs before a polish: the last one for the sparse engine. [bench, maros]
    static constexpr double boundary = 0.995;
    static constexpr double stage[4] = {1e-6, 1e-10, 1e-14, 1e-18};
    static constexpr int polish_rounds = 3;
    static constexpr int corrections = 8;            // of the active set of another solver's point
    static constexpr double path = 1e-12;            // without polish: the last point that still has its digits
    // Eliminations. `proximal`, `dual_proximal`: added to the diagonals of Q and of the complement, relative, and removed by
    // refinement; the latter also decides how near to least norm the multipliers of dependent rows are; `absent`: the inverse weight of a row that drops out;
    // `hard`: the weight of an active row in the polish, in units of the curvature along it. [maros]
    static constexpr double proximal = 1e-12, dual_proximal = 1e-10, absent = 1e60, hard_normal = 1e8, hard_schur = 1e11;
    static constexpr double regularisation = 1e-8;   // R of the sparse KKT matrix, equilibrated (sparse.h) [maros]
    // R of a derivative that this one leaves too far from the truth: LDLᵀ without pivoting loses digits as 1/R². Of float32's
    // data so large that curvature which may be their rounding, `least_curvature` of the first R, is a tenth of it. [benchmarks/sparse.py, tests/test_derivative.py]
    static constexpr double firm = 1e-7, firm_rounded = 1e-5, least_curvature = 100;
    static constexpr double pivoted = 1e-13;         // R where LU with pivoting takes the place of LDLᵀ [tests/test_sparse.py]
    // Another start with a weaker R, where that alone keeps the interior point from rows that nearly depend on each other: its
    // distance to them, relative, is more than so much of the complementarity's and no longer falls as steps promise. [maros]
    static constexpr double weak_regularisation = 1e-13, late = 0.1;
    // A point that is judged as one (interior.h): how much larger than costs and sides may the terms be that excuse it; how much
    // more a row counts, for what misses rows alone may be infeasible. [tests/test_sparse.py]
    static constexpr double beside_data = 1e4, rows_as_one = 10;
    static constexpr double broken = 1e-12;          // a violation, relative, that makes a polish take in a row
    // The polish of a sparse problem (finish, interior.h): steps and factors at most (fewer from the first, early point, for the
    // other lanes wait), steps without progress after which R shrinks, how often and how much; steps with progress that are not
    // judged. [maros, benchmarks/sparse.py]
    static constexpr int most_steps = 40, few_factors = 6, most_factors = 20, patience = 3, shrinks = 3, most_unseen = 5;
    static constexpr double shrink = 1e-2;
    static constexpr double firmest = 1e-5;          // from which R grows no more, where growth has spoilt a factor [tests/test_sparse.py]
    static constexpr double same_force = 1e-2;       // what changes a force by less, relative, has not changed it (go_far) [benchmarks/sparse.py]
    static constexpr double rounded_off = 5e-15;     // residuals, beside the largest force and side, at which the polish looks at the point [benchmarks/sparse.py]
    static constexpr double cleared = 1e-12;         // of the largest: may be zero but for rounding, if the judge agrees [benchmarks/sparse.py]
    static constexpr double hard_bound = 1e10;       // the weight of an active bound, in units of the variable's scale
    // What is left of a direction's equations that is worth a step of refinement, relative to the right-hand side, at least to
    // `nothing` of the units of slacks and multipliers; of equalities, whose residual the next step sees, to `early` of what is
    // left of complementarity. [maros, benchmarks/sparse.py]
    static constexpr double worth_refining = 1e-3, nothing = 1e-9, early = 0.1;
    static constexpr double pivot_ratio = 1e-11;     // least pivot of Q at which forming M is still exact (schur.h)
    static constexpr double rank = 1e-10;            // of a column of A' (null space)
    static constexpr double least_unit = 1e-7;       // of the slacks at the start (schur.h)
    // Refinement of a derivative: exact, and what counts as converged. A right-hand side of which a round moves less than
    // `unmoved` lies along directions whose curvature, under R times that, may be rounding's. [benchmarks/sparse.py]
    static constexpr double exact = 1e-14, converged = 1e-9, least_slack = 1e-30, unmoved = 1e-4, unmoved_rounded = 0.1;
    static constexpr double convex = 1e-9;           // a negative curvature below this, scaled, is rounding [fuzz]
};

template <> struct Tuning<float> {
    static constexpr float infinity = 1e37f, huge_pivot = 1e30f, rounding = 1.2e-7f, fine = 1e-6f, most_noise = 1e30f, most_of_sides = 10, rounded = 1e-6f, most_rounded = 1, blurred = 1e-6f;
    static constexpr float noise(int) { return 2e-7f; }  // no more, and no `most_noise`: double can do better, and judges that by `rounded` and `most_rounded`
    // `rounded`: the noise of an answer that was found in double and rounded.
    // (What is not well conditioned is left to double.)
    static constexpr float safe = 1e-4f, zero = 1e-4f, dependent = 1e-5f, slack = 1e-6f, block_pivot = 1e-6f, invertible = 1e-4f;
    static constexpr float enough = 0.1f, boundary = 0.99f, stage[3] = {1e-4f, 1e-6f, 1e-7f}, path = 1e-6f;
    static constexpr int polish_rounds = 2;
    static constexpr float proximal = 1e-6f, dual_proximal = 1e-6f, absent = 1e18f, hard_normal = 1e4f, hard_schur = 1e5f, pivot_ratio = 1e-6f;
    static constexpr float rank = 1e-5f, least_unit = 1e-3f, exact = 1e-7f, converged = 1e-2f, least_slack = 1e-20f;
    static constexpr float convex = 1e-5f;
};

#ifndef __CUDACC_RTC__
template <> struct Tuning<Twofold> {  // twice the digits of double, and twice the exponents
    static constexpr double infinity = 1e300, huge_pivot = 1e128, rounding = 1e-31, fine = 1e-13, most_noise = 1e-3, most_of_sides = 1e-5, blurred = 1e-10;
    static constexpr double noise(int terms) { return rounding * (8 + terms); }
    static constexpr double enough = 1e-2, boundary = 0.999, stage[3] = {1e-8, 1e-16, 1e-24}, path = 1e-20;
    static constexpr int polish_rounds = 4;
    static constexpr double proximal = 1e-24, dual_proximal = 1e-22, absent = 1e100, hard_normal = 1e16, hard_schur = 1e22, pivot_ratio = 1e-22;
    static constexpr double rank = 1e-20, least_unit = 1e-14, exact = 1e-24, converged = 1e-9, least_slack = 1e-60;
    static constexpr double convex = 1e-9;
};
#endif

}  // namespace optlayer

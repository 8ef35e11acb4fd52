// The one struct that crosses the border between Python and the kernels.
// Addresses, strides (in elements between two members; 0: the batch shares the tensor), sizes, settings.
// Mirrored by backends/args.py; a test compares the layout of both sides.
#pragma once
#include "shim.h"

namespace optlayer {

enum Status : int32_t {  // as in solution.py
    SOLVED = 0, MAX_ITERATIONS = 1, PRIMAL_INFEASIBLE = 2, DUAL_INFEASIBLE = 3, NUMERICAL_ERROR = 4, INVALID_INPUT = 5, NOT_CONVEX = 6,
    ROUGH = -1,  // within the core: solved, but better can be hoped for
    CLOSEST = 7,  // no point is feasible: that of least violation, by request
};
constexpr int usual_iterations = 60;  // Settings.max_iterations unless said otherwise; fewer bind every rung
inline bool derivable(int32_t status) { return status == SOLVED || status == CLOSEST; }  // has a derivative
enum Method : int32_t { AUTO = 0, SCHUR = 1, NORMAL = 2, DIAGONAL = 3, NULL_SPACE = 4, ACTIVE = 5 };

struct Tensor {
    void* data;      // nullptr: absent
    int64_t stride;  // elements from one member to the next
};

struct Args {
    int32_t n, m, p, batch;
    int32_t single;          // 1: float32, 0: float64, 2: float32's data in float64 (rounded, so judged like float32's)
    int32_t diagonal;        // Q holds a diagonal
    int32_t method;          // Method; AUTO on entry is replaced by the choice
    int32_t lanes;           // 0: choose; 1: one QP at a time; else: one QP per SIMD lane
    int32_t threads;
    int32_t max_iterations;
    int32_t polish;
    int32_t keep;            // keep the factorisation for the derivative
    int32_t closest;         // a member without feasible point gets the point of least violation
    int32_t given;           // the solution holds another solver's: it is judged, and polished on its active sides; no more (CPU only)
    double tolerance;
    double smoothing;        // 0: the solution; else the point of the central path where lam∘s is this (CPU only)
    Tensor Q, q, G, h, A, b, lb, ub, h_lower;
    Tensor z, s, lam, nu, lam_lb, lam_ub, lam_lower;           // the solution (adjoint: in)
    Tensor status, iterations, primal_residual, dual_residual, gap;
    Tensor r_z, r_lam, r_nu, r_lb, r_ub, r_lower;              // adjoint: right-hand side
    Tensor v_z, v_lam, v_nu, v_lb, v_ub, v_lower;              // adjoint: solution
    Tensor v_least;                                            // of CLOSEST members: w, and τ of the rows of G and A (rescue.h)
    Tensor factor;                                             // bytes
};

}  // namespace optlayer

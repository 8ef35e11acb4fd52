// Sparse batches that share a pattern: what core.cpp calls.
#pragma once
#include "kernels/args.h"

namespace optlayer {

class SparsePlan;
struct Gradients;

// Rows `first` and columns `col` of each matrix as torch keeps them (CSR); Q_first == nullptr: Q holds a diagonal. Of Q,
// one triangle or both.
struct SparseShape {
    int64_t n, m, p;
    const int64_t *Q_first, *Q_col, *G_first, *G_col, *A_first, *A_col;
};

SparsePlan* sparse_plan(const SparseShape&);
void sparse_free(SparsePlan*);
void sparse_cost(const SparsePlan&, double* out);  // entries of L, multiply-adds of a factorisation, supernodes
// As solve and kkt_solve (calls.h), in double: `single` is 0, or 2.
int sparse_solve(const SparsePlan&, Args&);
int sparse_kkt_solve(const SparsePlan&, Args&);
// Member k of a dense problem in double, with the pattern of its own entries; UNFIT, and nothing done, where these are many,
// unless `filled`.
enum class ByPattern { UNFIT, OPEN, SETTLED };
ByPattern solve_by_pattern(const Args&, int64_t k, bool filled);
void sparse_products(const SparsePlan&, const Args&, const Gradients&);

}  // namespace optlayer

// LU of a sparse symmetric matrix with row pivoting, one member at a time: where LDLᵀ in a static order loses too many digits.
#pragma once
#include <memory>

#include "kernels/ldl.h"
#include "kernels/workspace.h"

namespace optlayer {

// What SparseSystem asks of a factor, as Ldl. Throws std::bad_alloc where memory ends.
class SparseLu {
  public:
    void place(const LdlPlan& plan, Arena&, Arena&) { plan_ = &plan; }
    void factor(const double* values, const double* diagonal, const double* least);
    void solve(double* x) const;  // NaN, where the matrix is singular to working precision

  private:
    struct Factor;
    const LdlPlan* plan_ = nullptr;
    std::shared_ptr<Factor> factor_;
};

}  // namespace optlayer

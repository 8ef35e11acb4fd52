#include "call.h"
#include "calls.h"
#include "products.h"

namespace optlayer {
int solve_float(Args& g) { return Call<float>::solve(g); }
int kkt_solve_float(Args& g) { return Call<float>::kkt_solve(g); }
int products_float(const Args& g, const Gradients& to) { return Products<float>(g, to).run(), 0; }
}  // namespace optlayer

#include "call.h"
#include "calls.h"

namespace optlayer {
int solve_double(Args& g) { return Call<double>::solve(g); }
int kkt_solve_double(Args& g) { return Call<double>::kkt_solve(g), 0; }
int products_double(const Args& g, const Gradients& to) { return Products<double>(g, to).run(), 0; }
}  // namespace optlayer

#include "call.h"
#include "calls.h"

namespace optlayer {
int solve_float(Args& g) { return Call<float>::solve(g); }
int kkt_solve_float(Args& g) { return Call<float>::kkt_solve(g); }
}  // namespace optlayer

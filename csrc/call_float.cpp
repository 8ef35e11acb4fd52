#include "call.h"
#include "calls.h"

namespace optlayer {
void solve_float(Args& g) { Call<float>::solve(g); }
void kkt_solve_float(Args& g) { Call<float>::kkt_solve(g); }
}  // namespace optlayer

#include "call.h"
#include "calls.h"

namespace optlayer {
void solve_double(Args& g) { Call<double>::solve(g); }
void kkt_solve_double(Args& g) { Call<double>::kkt_solve(g); }
}  // namespace optlayer

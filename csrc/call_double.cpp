#include "call.h"
#include "calls.h"

namespace optlayer {
int solve_double(Args& g) { return Call<double>::solve(g); }
int kkt_solve_double(Args& g) { return Call<double>::kkt_solve(g); }
}  // namespace optlayer

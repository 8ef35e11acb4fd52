#include "single.h"

namespace optlayer {
int solve_float(Args& g) { return solve_single(g); }
int kkt_solve_float(Args& g) { return kkt_solve_single(g); }
int products_float(const Args& g, const Gradients& to) { return Products<float>(g, to).run(), 0; }
}  // namespace optlayer

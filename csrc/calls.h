// What core.cpp calls; each dtype is compiled by itself.
#pragma once
#include "kernels/args.h"

namespace optlayer {
int solve_float(Args& g);
int solve_double(Args& g);
int kkt_solve_float(Args& g);
int kkt_solve_double(Args& g);
struct Gradients;
int products_double(const Args&, const Gradients&);
int products_float(const Args&, const Gradients&);
}  // namespace optlayer

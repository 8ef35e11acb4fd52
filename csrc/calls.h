// What core.cpp calls; each dtype is compiled by itself.
#pragma once
#include "kernels/args.h"

namespace optlayer {
void solve_float(Args& g);
void solve_double(Args& g);
void kkt_solve_float(Args& g);
void kkt_solve_double(Args& g);
}  // namespace optlayer

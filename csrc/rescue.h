// The last rungs of the ladder: one member at a time, in double precision (rescue.cpp).
#pragma once
#include <cstdint>

#include "kernels/args.h"

namespace optlayer {

// Settles member k by the active set in units of its own, where the user's were in its way; false: it does not.
bool rescale(const Args& g, int64_t k);
// Settles member k: its point and status are written; what is left is a problem that no rung solves. `bits` of a float32
// problem are those of float (Args::single == 2). pivoted: the active set is not to be tried, again or at all.
int32_t rescue(const Args& g, int64_t k, bool pivoted = true);
// The derivative at the point of a member that is SOLVED or CLOSEST. The latter's depends on least violation as well: where
// args.v_least is there, it gets w and τ, and to the gradients of the rows C of G and A comes −τ w'.
void rescue_derivative(const Args& g, int64_t k);
// Whether Q of member k has no negative curvature but rounding.
bool is_convex(const Args& g, int64_t k);

}  // namespace optlayer

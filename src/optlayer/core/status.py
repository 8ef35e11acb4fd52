"""Status: the verdict on one member of a batch, and what to do about it."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Verdict on one member of the batch."""

    SOLVED = 0
    MAX_ITERATIONS = 1
    PRIMAL_INFEASIBLE = 2
    DUAL_INFEASIBLE = 3
    NUMERICAL_ERROR = 4
    INVALID_INPUT = 5
    NOT_CONVEX = 6
    CLOSEST = 7

    @property
    def explanation(self) -> str:
        """What happened, and what to try."""
        return _EXPLANATIONS[self]

    def __str__(self) -> str:
        return self.name

    def __format__(self, how: str) -> str:
        return format(int(self) if how.endswith("d") else self.name, how)


_EXPLANATIONS = {
    Status.SOLVED: "the optimality conditions hold to the tolerance.",
    Status.MAX_ITERATIONS: (
        "the iterations ended before the tolerance was met. Likely an extremely scaled or nearly infeasible problem: "
        "scale the rows and the objective to about 1, raise max_iterations, or accept a larger tolerance."
    ),
    Status.PRIMAL_INFEASIBLE: (
        "no point satisfies the constraints; the multipliers hold the proof (a Farkas certificate). Relax a constraint "
        "that explain() names, parametrise the problem so that a point is always feasible (nn.OptNetLayer), or allow "
        "violation at a price (nn.ElasticQPLayer)."
    ),
    Status.DUAL_INFEASIBLE: (
        "the objective falls without limit along the ray in z. Bound the variables, or add curvature to Q."
    ),
    Status.NUMERICAL_ERROR: (
        "rounding stopped the iterations before the tolerance was met. Scale the data, use float64, or accept a larger "
        "tolerance."
    ),
    Status.INVALID_INPUT: (
        "the data hold NaN, or an infinity where none is allowed (only h, h_lower, lb and ub may be infinite, on "
        "the side that means no constraint). Look for the first layer that produced it."
    ),
    Status.NOT_CONVEX: (
        "Q is not positive semidefinite: the problem may have several local minima. Use Q = LLᵀ + εI."
    ),
    Status.CLOSEST: (
        "no point satisfies the constraints; z violates them least, as Settings(infeasible=\"closest\") asks."
    ),
}

"""Optimisation as a layer: batches of quadratic programs in PyTorch, solved and differentiated exactly."""

from optlayer.backends import available
from optlayer.problem import Diagonal, Problem
from optlayer.settings import Settings
from optlayer.solution import Solution, SolveError, Status
from optlayer.solve import solve

__version__ = "0.1.0"
__all__ = ["Diagonal", "Problem", "Settings", "Solution", "SolveError", "Status", "available", "solve"]

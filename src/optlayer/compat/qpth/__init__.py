"""A drop-in for qpth: replace `qpth` by `optlayer.compat.qpth` in the imports, as in

    from optlayer.compat.qpth.qp import QPFunction, QPSolvers
"""

from optlayer.compat.qpth import qp
from optlayer.compat.qpth.qp import QPFunction, QPSolvers, SpQPFunction

__all__ = ["QPFunction", "QPSolvers", "SpQPFunction", "qp"]

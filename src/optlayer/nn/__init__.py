"""Layers: each a few lines over `optlayer.solve`."""

from .mpc import LinearMPC
from .portfolio import Portfolio
from .projections import (
    BirkhoffProjection,
    BoxProjection,
    HalfspaceProjection,
    L1BallProjection,
    LInfBallProjection,
    MonotoneProjection,
    SimplexProjection,
)
from .qp import OptNetLayer, QPLayer
from .safety import SafetyFilter
from .sparsemax import Sparsemax
from .svm import SVMHead
from .total_variation import TotalVariation

__all__ = [
    "BirkhoffProjection",
    "BoxProjection",
    "HalfspaceProjection",
    "L1BallProjection",
    "LInfBallProjection",
    "LinearMPC",
    "MonotoneProjection",
    "OptNetLayer",
    "Portfolio",
    "QPLayer",
    "SVMHead",
    "SafetyFilter",
    "SimplexProjection",
    "Sparsemax",
    "TotalVariation",
]

"""Layers: each a few lines over `optlayer.solve`."""

from .builder import Builder
from .elastic import ElasticQPLayer
from .mpc import LinearMPC
from .piecewise import MaxOfLinear, PiecewiseLinear, ReLULayer
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
    "Builder",
    "ElasticQPLayer",
    "HalfspaceProjection",
    "L1BallProjection",
    "LInfBallProjection",
    "LinearMPC",
    "MaxOfLinear",
    "MonotoneProjection",
    "OptNetLayer",
    "PiecewiseLinear",
    "Portfolio",
    "QPLayer",
    "ReLULayer",
    "SVMHead",
    "SafetyFilter",
    "SimplexProjection",
    "Sparsemax",
    "TotalVariation",
]

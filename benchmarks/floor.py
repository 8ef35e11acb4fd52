"""The floor: what LAPACK and BLAS need for the parts of an interior-point solve that cannot be avoided.

Once per problem     Q = LLᵀ;  L⁻¹Gᵀ, a triangular solve with p right-hand sides;  its Gram matrix G Q⁻¹ Gᵀ
Every iteration      one Cholesky of a p×p matrix;  two solves with it (predictor, corrector);  G and Gᵀ times a vector,
                     and L⁻¹, L⁻ᵀ times a vector, for each of the two
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

SIZE = 100


def measure(iterations: float) -> dict[str, float]:
    """Seconds for one problem with n = p = 100, by the faster of torch's and scipy's LAPACK for each call."""
    once = _fastest("cholesky") + _fastest("triangular") + _fastest("gram")
    each = _fastest("cholesky") + 4 * _fastest("solve") + 4 * _fastest("vector") + 4 * _fastest("solve")
    return {"once": once, "iteration": each, "iterations": iterations, "seconds": once + iterations * each}


def _fastest(what: str) -> float:
    return min(_median(call) for call in _calls(what))


def _median(call: Callable[[], object]) -> float:
    for _ in range(10):
        call()
    times = []
    for _ in range(200):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return float(np.median(times))


def _calls(what: str) -> list[Callable[[], object]]:
    """The same operation through torch and through scipy, output buffers allocated beforehand."""
    import torch
    from scipy.linalg import blas, lapack

    rng = np.random.default_rng(0)
    M = rng.standard_normal((SIZE, SIZE))
    S = np.asfortranarray(M @ M.T + SIZE * np.eye(SIZE))
    L = np.asfortranarray(np.linalg.cholesky(S))
    B, x, out = np.asfortranarray(M), rng.standard_normal(SIZE), np.zeros((SIZE, SIZE), order="F")
    t_S, t_L, t_B, t_x = torch.tensor(S), torch.tensor(L), torch.tensor(M), torch.tensor(x)
    t_out, t_info, t_y = torch.empty_like(t_S), torch.empty((), dtype=torch.int32), torch.empty_like(t_x)
    if what == "cholesky":
        return [
            lambda: torch.linalg.cholesky_ex(t_S, out=(t_out, t_info)),
            lambda: lapack.dpotrf(S, lower=1, clean=0),
        ]
    if what == "triangular":
        return [
            lambda: torch.linalg.solve_triangular(t_L, t_B, upper=False, out=t_out),
            lambda: blas.dtrsm(1.0, L, B, lower=1),
        ]
    if what == "gram":
        return [lambda: torch.mm(t_B.mT, t_B, out=t_out), lambda: blas.dsyrk(1.0, B, trans=1, c=out, overwrite_c=1)]
    if what == "solve":
        return [
            lambda: torch.linalg.solve_triangular(t_L, t_x[:, None], upper=False),
            lambda: blas.dtrsv(L, x, lower=1),
        ]
    return [lambda: torch.mv(t_B, t_x, out=t_y), lambda: blas.dgemv(1.0, B, x)]

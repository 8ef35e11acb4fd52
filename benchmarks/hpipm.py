"""HPIPM, the stage-wise solver of model predictive control, by its C interface, for no Python package brings it.

`python -m benchmarks.sparse --hpipm LIBRARY`: a libhpipm.so, built from its sources for the machine's target, and so
the BLASFEO that the loader finds (LD_LIBRARY_PATH). Stages k = 0 … T, x_0 known: x_{k+1} = A_k x_k + B_k u_k + b_k,
diagonal costs, bounds on all states and inputs: the workloads mpc20 and mpc50. Each member's data is set once, outside
the time.
"""

from __future__ import annotations

from ctypes import CDLL, byref, c_double, c_int, c_size_t, c_void_p, create_string_buffer
from typing import Any

import numpy as np

from benchmarks.peers import Case, Unsuitable
from benchmarks.sparse_workloads import Batch

STATES, INPUTS = 12, 4
WIDTH = STATES + INPUTS
VARIANTS = {"hpipm": (1, 1e-8), "hpipm-balance": (2, 1e-8), "hpipm-exact": (1, 1e-12)}
"""Mode (1: speed, 2: balance) and tolerance. At 1e-8 z is 1e-4 off."""


def prepare(batch: Batch, upstream: np.ndarray, library: str, variant: str) -> Case:
    """One QP for each member, all of one size; the answers are read into z."""
    T = upstream.shape[-1] // WIDTH
    if "G" in batch.patterns or batch.patterns["A"].shape != (T * STATES, T * WIDTH):
        raise Unsuitable("no stages")
    hpipm = CDLL(library)

    def make(kind: str, *of: Any) -> Any:
        """One of its structures, in memory of ours."""
        size, room = (getattr(hpipm, f"d_ocp_qp{kind}_{what}") for what in ("strsize", "memsize"))
        size.restype = room.restype = c_size_t
        made, memory = create_string_buffer(size()), create_string_buffer(room(*of))
        getattr(hpipm, f"d_ocp_qp{kind}_create")(*of, made, memory)
        made.kept = memory, of  # live as long
        return made

    dim = make("_dim", c_int(T))
    nx, nu, none = [0] + [STATES] * T, [INPUTS] * T + [0], [0] * (T + 1)
    hpipm.d_ocp_qp_dim_set_all(*((c_int * (T + 1))(*size) for size in (nx, nu, nx, nu, none, none)), dim)
    arg = make("_ipm_arg", dim)
    mode, tolerance = VARIANTS[variant]
    hpipm.d_ocp_qp_ipm_arg_set_default(mode, arg)
    for name in ("stat", "eq", "ineq", "comp"):
        getattr(hpipm, f"d_ocp_qp_ipm_arg_set_tol_{name}")(byref(c_double(tolerance)), arg)
    hpipm.d_ocp_qp_ipm_arg_set_iter_max(byref(c_int(50)), arg)
    solution, workspace = make("_sol", dim), make("_ipm_ws", dim, arg)

    qps = [make("", dim) for _ in range(batch.batch)]
    for i, qp in enumerate(qps):
        data = [_pointers(arrays) for arrays in _stages(batch.member(i), T).values()]
        hpipm.d_ocp_qp_set_all(*data, *[None] * 12, qp)
    z, unread = np.zeros(upstream.shape), _pointers([np.zeros(WIDTH)] * (T + 1))
    answers = [[_pointers([x[part] for part in places]) for places in _places(T)] for x in z]

    def forward() -> np.ndarray:
        for qp, (inputs, states) in zip(qps, answers, strict=True):
            hpipm.d_ocp_qp_ipm_solve(qp, solution, arg, workspace)
            hpipm.d_ocp_qp_sol_get_all(solution, inputs, states, None, None, *[unread] * 3, *[None] * 4)
        return z

    return Case(forward)


def _places(T: int) -> tuple[list[slice], list[slice]]:
    """Where the inputs and the states of stages 0 … T are in z = (u_0, x_1, u_1, …, x_T)."""
    starts = range(0, T * WIDTH, WIDTH)
    inputs, states = ([slice(k + a, k + b) for k in starts] for a, b in ((0, INPUTS), (INPUTS, WIDTH)))
    return [*inputs, slice(0, 0)], [slice(0, 0), *states]


def _stages(t: dict[str, Any], T: int) -> dict[str, list[np.ndarray]]:
    """What set_all wants, in its order: a matrix (by columns) or vector for each stage. Rows are E x_{k+1} − … = b."""
    inputs, states = _places(T)
    rows = [slice(k, k + STATES) for k in range(0, T * STATES, STATES)]
    M, weight = t["A"].toarray(), t["Q"].diagonal()
    E = np.concatenate([M[row, x].diagonal() for row, x in zip(rows, states[1:], strict=True)])
    M, b = -M / E[:, None], t["b"] / E
    found = {
        "A": [M[row, x].T for row, x in zip(rows, states[:-1], strict=True)],
        "B": [M[row, u].T for row, u in zip(rows, inputs[:-1], strict=True)], "b": [b[row] for row in rows],
        "Q": [np.diag(weight[x]) for x in states], "S": [np.zeros(STATES * INPUTS)] * (T + 1),
        "R": [np.diag(weight[u]) for u in inputs],
        "q": [t["q"][x] for x in states], "r": [t["q"][u] for u in inputs],
    }  # fmt: skip
    for name, size, places in (("x", STATES, states), ("u", INPUTS, inputs)):
        found[f"idxb{name}"] = [np.arange(size, dtype=np.int32)] * (T + 1)
        found |= {f"{side}{name}": [t[side][part] for part in places] for side in ("lb", "ub")}
    return found


def _pointers(arrays: list[np.ndarray]) -> Any:
    """An array of their addresses, which keeps them."""
    kept = [np.ascontiguousarray(x) for x in arrays]
    pointers = (c_void_p * len(kept))(*(x.ctypes.data for x in kept))
    pointers.kept = kept
    return pointers

"""One adapter for each peer: how its own documentation would have a user solve a batch, and differentiate it.

Outside the timed calls: imports, allocation of solver objects that can be reused, and the layout of the data that the
peer wants (a user with that peer would keep it so). Inside: whatever new numbers in Q, q, G, h, A, b make necessary,
and on a GPU the wait until it is done. Every peer has the tolerances of its defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.workloads import RANK, Arrays

INFINITY = 1e20


class Unsuitable(Exception):
    """The peer does not take this workload, and why."""


@dataclass
class Case:
    """One peer's calls for one workload.

    `forward()` returns z; `both()` returns (seconds of the forward part or None, z, raw gradients); `gradients(raw)`
    names them after the workload's tensors. None: no derivative. A layer in torch is `solve` of its `leaves` besides.
    """

    forward: Callable[[], Any]
    both: Callable[[], tuple[float | None, Any, Any]] | None = None
    gradients: Callable[[Any], Arrays] = dict
    solve: Callable[..., Any] | None = None
    leaves: dict[str, Any] | None = None


# --- layers in torch ------------------------------------------------------------------------------------------------


def _torch_case(
    solve: Callable[..., Any], leaves: dict[str, Any], upstream: np.ndarray, dtype: str = "float64"
) -> Case:
    """The calls of a differentiable torch function of `leaves`, which returns z.

    On a GPU the forward part is not told apart: to wait for it would lengthen the whole.
    """
    import torch

    fixed = {name: leaf.detach() for name, leaf in leaves.items()}
    device = fixed["q"].device
    gpu = device.type == "cuda"
    weight = torch.tensor(upstream, dtype=getattr(torch, dtype), device=device)

    def forward() -> Any:
        with torch.no_grad():
            z = solve(**fixed)
        if gpu:
            torch.cuda.synchronize()
        return z

    def both() -> tuple[float | None, Any, Any]:
        start = perf_counter()
        z = solve(**leaves)
        seconds = None if gpu else perf_counter() - start
        grads = torch.autograd.grad(z, list(leaves.values()), weight)
        if gpu:
            torch.cuda.synchronize()
        return seconds, z, dict(zip(leaves, grads, strict=True))

    return Case(forward, both, lambda raw: {name: grad.cpu().numpy() for name, grad in raw.items()}, solve, leaves)


def _leaves(tensors: Arrays, dtype: str = "float64", device: str = "cpu") -> dict[str, Any]:
    import torch

    kind = {"dtype": getattr(torch, dtype), "device": device}
    return {name: torch.tensor(value, **kind).requires_grad_() for name, value in tensors.items()}


def _expanded(batch: int, tensors: dict[str, Any]) -> dict[str, Any]:
    """Shared tensors as views with a batch dimension: autograd then sums their gradients."""
    return {
        name: x if x.dim() > RANK[name] else x.expand(batch, *x.shape) for name, x in tensors.items()
    }


def optlayer(
    tensors: Arrays, upstream: np.ndarray, backend: str = "cpu", dtype: str = "float64", device: str = "cpu"
) -> Case:
    from optlayer import solve

    check = device == "cpu"  # on a GPU it would be one more wait
    leaves = _leaves(tensors, dtype, device)
    return _torch_case(lambda **t: solve(**t, backend=backend, check=check).z, leaves, upstream, dtype)


def qpth(tensors: Arrays, upstream: np.ndarray, device: str = "cpu") -> Case:
    import torch
    from qpth.qp import QPFunction

    batch, empty = len(upstream), torch.tensor([], dtype=torch.float64, device=device)

    def solve(**t: Any) -> Any:
        t = _expanded(batch, t)
        layer = QPFunction(verbose=-1, check_Q_spd=False)
        return layer(t["Q"], t["q"], t["G"], t["h"], t.get("A", empty), t.get("b", empty))

    return _torch_case(solve, _leaves(tensors, device=device), upstream)


def cupiqp(tensors: Arrays, upstream: np.ndarray, device: str = "cuda") -> Case:
    """Its layer for dense problems. What it returns is overwritten by its next call."""
    if device == "cpu":
        raise Unsuitable("it runs on GPUs alone")
    from cupiqp.torch import DenseSolverLayer

    theirs = {"Q": "P", "q": "c", "G": "G", "h": "h_u", "A": "A", "b": "b"}
    leaves = _leaves(tensors, device=device)
    layer = DenseSolverLayer(device=device)
    layer.setup(**{theirs[name]: leaf.detach() for name, leaf in leaves.items()})
    return _torch_case(lambda **t: layer(**{theirs[name]: x for name, x in t.items()}), leaves, upstream)


def proxsuite(tensors: Arrays, upstream: np.ndarray) -> Case:
    import torch
    from proxsuite.torch.qplayer import QPFunction

    batch, empty = len(upstream), torch.tensor([], dtype=torch.float64)
    lower = torch.full((batch, tensors["h"].shape[-1]), -INFINITY, dtype=torch.float64)

    def solve(**t: Any) -> Any:
        t = _expanded(batch, t)
        layer = QPFunction(omp_parallel=False)
        return layer(t["Q"], t["q"], t.get("A", empty), t.get("b", empty), t["G"], lower, t["h"])[0]

    return _torch_case(solve, _leaves(tensors), upstream)


def dqp(tensors: Arrays, upstream: np.ndarray) -> Case:
    from dqp import dQP

    batch = len(upstream)
    layer = dQP.dQP_layer(settings=dQP.build_settings(solve_type="dense", qp_solver="daqp", lin_solver="scipy LU"))

    def solve(**t: Any) -> Any:
        t = _expanded(batch, t)
        if batch == 1:  # it takes a batch of one for a matrix too many
            t = {name: x[0] for name, x in t.items()}
        return layer(t["Q"], t["q"], t["G"], t["h"], t.get("A"), t.get("b"))[0]

    return _torch_case(solve, _leaves(tensors), upstream)


def cvxpylayers(tensors: Arrays, upstream: np.ndarray) -> Case:
    import cvxpy as cp
    import torch
    from cvxpylayers.torch import CvxpyLayer

    sizes = {name: tensors[name].shape[tensors[name].ndim - RANK[name] :] for name in tensors}
    if max(sizes["q"] + sizes["h"]) > 130:
        raise Unsuitable("its canonicalisation of dense parameters beyond n, p = 130 takes minutes and gigabytes")
    parameters = {name: cp.Parameter(shape) for name, shape in sizes.items()}
    z = cp.Variable(sizes["q"])
    constraints = [parameters["G"] @ z <= parameters["h"]]
    if "A" in parameters:
        constraints.append(parameters["A"] @ z == parameters["b"])
    # Disciplined parametrised programming asks for a factor of Q: ½ zᵀLLᵀz = ½ ‖Lᵀz‖².
    objective = 0.5 * cp.sum_squares(parameters["Q"] @ z) + parameters["q"] @ z
    problem = cp.Problem(cp.Minimize(objective), constraints)
    layer = CvxpyLayer(problem, parameters=list(parameters.values()), variables=[z])

    def solve(**t: Any) -> Any:
        t["Q"] = torch.linalg.cholesky(t["Q"]).mT
        return layer(*(t[name] for name in parameters))[0]

    return _torch_case(solve, _leaves(tensors), upstream)


def moreau_case(
    patterns: dict[str, tuple[np.ndarray, np.ndarray]], values: Arrays, q: np.ndarray, rhs: np.ndarray, equalities: int,
    upstream: np.ndarray, device: str = "cpu", **settings: Any,
) -> Case:  # fmt: skip
    """Its P and A: patterns (row offsets, columns) and values (nnz,) or (B, nnz). The first rows are equalities."""
    import moreau as package
    import torch
    from moreau.torch import Solver

    batch, n = upstream.shape
    m = rhs.shape[-1]
    parts = {f"{name}_{part}": torch.tensor(x) for name, pattern in patterns.items()
             for part, x in zip(("row_offsets", "col_indices"), pattern, strict=True)}  # fmt: skip
    solver = Solver(
        n=n, m=m, **parts, cones=package.Cones(num_zero_cones=equalities, num_nonneg_cones=m - equalities),
        settings=package.Settings(device=device, batch_size=batch, enable_grad=True, **settings),
    )
    vectors = {"q": np.broadcast_to(q, (batch, n)), "b": np.broadcast_to(rhs, (batch, m))}
    leaves = _leaves(values | vectors, device=device)
    return _torch_case(lambda P, A, q, b: solver.solve(P, A, q, b).x, leaves, upstream)


def moreau(tensors: Arrays, upstream: np.ndarray, layout: str = "batched", device: str = "cpu") -> Case:
    """`layout`: "shared" has one P and A for the batch; "sparse" only the entries that are ever non-zero."""
    sparse, shared = layout == "sparse", layout != "batched"
    if sparse and max(np.count_nonzero(tensors[name]) / tensors[name].size for name in ("Q", "G")) > 0.5:
        raise Unsuitable("no sparse tensors")
    if shared and any(name in tensors and tensors[name].ndim > 2 for name in ("Q", "G", "A")):
        if not sparse:
            raise Unsuitable("the batch does not share all matrices")
        shared = False
    batch, n = upstream.shape
    m = tensors["b"].shape[-1] if "b" in tensors else 0
    matrices = {"P": tensors["Q"], "A": _stack(tensors, "A", "G", batch)}
    rhs = _stack(tensors, "b", "h", batch)
    patterns, values = {}, {}
    for name, matrix in matrices.items():
        if not shared:
            matrix = np.broadcast_to(matrix, (batch, *matrix.shape[-2:]))
        mask = (matrix != 0).reshape(-1, *matrix.shape[-2:]).any(0) if sparse else np.ones(matrix.shape[-2:], bool)
        patterns[name] = np.concatenate([[0], mask.sum(1).cumsum()]), mask.nonzero()[1]
        values[name] = matrix[..., mask]
    case = moreau_case(patterns, values, tensors["q"], rhs, m, upstream, device)

    def gradients(raw: dict[str, Any]) -> Arrays:
        grad = {name: value.cpu().numpy() for name, value in raw.items()}
        dense = {"P": grad["P"].reshape(-1, n, n), "A": grad["A"].reshape(-1, rhs.shape[-1], n)}
        named = {
            "Q": dense["P"], "q": grad["q"], "A": dense["A"][:, :m], "b": grad["b"][:, :m],
            "G": dense["A"][:, m:], "h": grad["b"][:, m:],
        }
        return {name: _like(named[name], tensors[name]) for name in tensors}

    if sparse:
        case.both = None
    case.gradients = gradients
    return case


def _stack(tensors: Arrays, first: str, second: str, batch: int) -> np.ndarray:
    """Rows of both tensors, with a batch dimension when one of them has it."""
    parts = [tensors[name] for name in (first, second) if name in tensors]
    if len({part.ndim for part in parts}) > 1:
        top = max(part.ndim for part in parts)
        parts = [part if part.ndim == top else np.broadcast_to(part, (batch, *part.shape)) for part in parts]
    return np.concatenate(parts, axis=-RANK[first])


def _like(gradient: np.ndarray, tensor: np.ndarray) -> np.ndarray:
    """Summed over the batch where the tensor is shared."""
    return gradient.sum(0) if gradient.ndim > tensor.ndim else gradient


# --- in JAX ---------------------------------------------------------------------------------------------------------


def qpax(tensors: Arrays, upstream: np.ndarray, device: str = "cpu") -> Case:
    """With the tightest tolerances that converge: its defaults (1e-5, and 1e-3 for the derivative) are far off."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_device", jax.devices(device)[0])
    import jax.numpy as jnp
    from qpax import solve_qp_primal

    n = upstream.shape[-1]
    batched = {name: value.ndim > RANK[name] for name, value in tensors.items()}
    order = ("Q", "q", "A", "b", "G", "h")
    empty = {"A": np.zeros((0, n)), "b": np.zeros(0)}
    data = [jnp.asarray(tensors.get(name, empty.get(name))) for name in order]
    axes = tuple(0 if batched.get(name) else None for name in order)

    def solve(*data: Any) -> Any:
        return jax.vmap(lambda *one: solve_qp_primal(*one, solver_tol=1e-8, target_kappa=1e-8), in_axes=axes)(*data)

    def differentiate(weight: Any, *data: Any) -> Any:
        z, pull = jax.vjp(solve, *data)
        return z, pull(weight)

    weight = jnp.asarray(upstream)
    run = jax.jit(solve).lower(*data).compile()
    run_both = jax.jit(differentiate).lower(weight, *data).compile()

    def both() -> tuple[None, Any, Any]:
        z, grads = run_both(weight, *data)
        jax.block_until_ready(grads)
        return None, z, grads

    def gradients(raw: Any) -> Arrays:
        return {name: np.asarray(grad) for name, grad in zip(order, raw, strict=True) if name in tensors}

    return Case(lambda: run(*data).block_until_ready(), both, gradients)


# --- solvers without a derivative, called once per member -----------------------------------------------------------


def _members(tensors: Arrays, batch: int, layout: str = "C") -> list[Arrays]:
    """The data of each member, contiguous."""
    copies = {
        name: [np.require(value, requirements=layout)] * batch
        if value.ndim == RANK[name]
        else [np.require(member, requirements=layout) for member in value]
        for name, value in tensors.items()
    }
    return [{name: copies[name][i] for name in tensors} for i in range(batch)]


def daqp(tensors: Arrays, upstream: np.ndarray, bounds: bool = False) -> Case:
    """`bounds`: rows of G with a single entry ±1 are given as simple bounds, which it treats faster."""
    import daqp as package

    batch, n = upstream.shape
    m = tensors["b"].shape[-1] if "b" in tensors else 0
    G = tensors["G"]
    unit = (np.abs(G).sum(-1) == 1) & (np.abs(G).max(-1) == 1)
    if bounds and not unit.all():
        raise Unsuitable("no bounds")
    problems = []
    for member in _members(tensors, batch):
        A, b = member.get("A", np.zeros((0, n))), member.get("b", np.zeros(0))
        if bounds:
            upper, lower = np.full(n, 1e30), np.full(n, -1e30)
            which, sign = np.abs(member["G"]).argmax(1), member["G"].sum(1)
            np.minimum.at(upper, which[sign > 0], member["h"][sign > 0])
            np.maximum.at(lower, which[sign < 0], -member["h"][sign < 0])
            rows, upper, lower = A, np.concatenate([upper, b]), np.concatenate([lower, b])
            sense = np.repeat([0, 5], [n, m])
        else:
            rows = np.concatenate([A, member["G"]])
            upper = np.concatenate([b, member["h"]])
            lower = np.concatenate([b, np.full(len(member["h"]), -1e30)])
            sense = np.repeat([5, 0], [m, len(member["h"])])
        problems.append((member["Q"], member["q"], np.ascontiguousarray(rows), upper, lower, sense.astype(np.int32)))
    return Case(lambda: np.stack([package.solve(*problem)[0] for problem in problems]))


def piqp(tensors: Arrays, upstream: np.ndarray) -> Case:
    import piqp as package

    problems = _members(tensors, len(upstream), "F")

    def one(t: Arrays) -> np.ndarray:
        solver = package.DenseSolver()
        solver.setup(t["Q"], t["q"], t.get("A"), t.get("b"), t["G"], None, t["h"])
        solver.solve()
        return solver.result.x

    return Case(lambda: np.stack([one(problem) for problem in problems]))


def clarabel(tensors: Arrays, upstream: np.ndarray) -> Case:
    import clarabel as package
    from scipy import sparse

    settings = package.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    problems = []
    for t in _members(tensors, len(upstream)):
        m = len(t.get("b", ()))
        rows = np.concatenate([t["A"], t["G"]]) if m else t["G"]
        side = np.concatenate([t["b"], t["h"]]) if m else t["h"]
        cones = [package.ZeroConeT(m)] * bool(m) + [package.NonnegativeConeT(len(t["h"]))]
        upper = sparse.csc_matrix(np.triu(t["Q"]))
        problems.append((upper, t["q"], sparse.csc_matrix(rows), side, cones, settings))
    return Case(lambda: np.stack([package.DefaultSolver(*problem).solve().x for problem in problems]))


def proxqp(tensors: Arrays, upstream: np.ndarray) -> Case:
    from proxsuite import proxqp as package

    n, p = upstream.shape[-1], tensors["h"].shape[-1]
    m = tensors["b"].shape[-1] if "b" in tensors else 0
    lower = np.full(p, -INFINITY)
    problems = _members(tensors, len(upstream))

    def one(t: Arrays) -> np.ndarray:
        solver = package.dense.QP(n, m, p)
        solver.init(t["Q"], t["q"], t.get("A"), t.get("b"), t["G"], lower, t["h"])
        solver.solve()
        return solver.results.x

    return Case(lambda: np.stack([one(problem) for problem in problems]))


def gurobi(tensors: Arrays, upstream: np.ndarray) -> Case:
    import gurobipy as package

    if upstream.shape[-1] > 200:
        raise Unsuitable("its free licence ends at 200 variables of a quadratic problem")
    environment = package.Env(params={"OutputFlag": 0, "Threads": 1})
    problems = _members(tensors, len(upstream))

    def one(t: Arrays) -> np.ndarray:
        with package.Model(env=environment) as model:
            z = model.addMVar(len(t["q"]), lb=-package.GRB.INFINITY)
            model.setMObjective(0.5 * t["Q"], t["q"], 0.0, sense=package.GRB.MINIMIZE)
            model.addMConstr(t["G"], z, "<", t["h"])
            if "A" in t:
                model.addMConstr(t["A"], z, "=", t["b"])
            model.optimize()
            return z.X

    return Case(lambda: np.stack([one(problem) for problem in problems]))


# --- the list -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A row of the benchmark: `package` names the distribution whose version is recorded."""

    name: str
    package: str
    prepare: Callable[[Arrays, np.ndarray], Case]
    threads: int = 1
    dtype: str = "float64"
    smallest_batch: int = 1


# Those that run on a GPU, with a further argument `device`.
RIVALS: dict[str, Callable[..., Case]] = {
    "qpth": qpth,
    "qpax": qpax,
    "moreau": moreau,
    "moreau-shared": partial(moreau, layout="shared"),
    "cupiqp": cupiqp,
}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("optlayer", "optlayer", optlayer),
        Peer("optlayer-float32", "optlayer", partial(optlayer, dtype="float32"), dtype="float32"),
        Peer("optlayer-threads", "optlayer", optlayer, threads=2, smallest_batch=32),
        Peer("moreau", "moreau", moreau),
        Peer("moreau-shared", "moreau", partial(moreau, layout="shared")),
        Peer("moreau-sparse", "moreau", partial(moreau, layout="sparse")),
        Peer("proxsuite", "proxsuite", proxsuite),
        Peer("dqp", "libdqp", dqp),
        Peer("qpax", "qpax", qpax),
        Peer("qpth", "qpth", qpth),
        Peer("cvxpylayers", "cvxpylayers", cvxpylayers),
        Peer("daqp", "daqp", daqp),
        Peer("daqp-bounds", "daqp", partial(daqp, bounds=True)),
        Peer("piqp", "piqp", piqp),
        Peer("clarabel", "clarabel", clarabel),
        Peer("proxqp", "proxsuite", proxqp),
        Peer("gurobi", "gurobipy", gurobi),
    )
}

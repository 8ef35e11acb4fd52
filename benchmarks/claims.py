"""What the layers in torch do where speed is not the question: the lines of the README's comparison.

    python -m benchmarks.claims                 every layer, into benchmarks/results/claims.json

Each probe is a small batch, each layer a process of its own; the words in the file are what came out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import numpy as np

import optlayer
from benchmarks.peers import PEERS, Case
from benchmarks.run import RESULTS, _commit
from benchmarks.workloads import Arrays

LAYERS = ("optlayer", "qpth", "cvxpylayers", "proxsuite", "moreau")
STATUS = {"optlayer", "moreau"}
"""Those whose interface has a status for each member."""


def problems(seed: int = 0) -> Arrays:
    """Three strictly convex problems of three variables, some of whose four constraints are active."""
    rng = np.random.default_rng(seed)
    L, G = rng.standard_normal((3, 3, 3)), rng.standard_normal((3, 4, 3))
    return {"Q": L @ L.mT + np.eye(3), "q": rng.standard_normal((3, 3)), "G": G, "h": 0.2 * np.ones((3, 4))}


def case(name: str, tensors: Arrays) -> Case:
    return PEERS[name].prepare(tensors, np.ones((len(tensors["q"]), tensors["q"].shape[-1])))


def moved(leaves: dict[str, Any], name: str, step: Any) -> dict[str, Any]:
    return {**leaves, name: (leaves[name].detach() + step).requires_grad_()}


def _because(answer: str, error: Exception) -> str:
    print(json.dumps(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"), file=sys.stderr)
    return answer


def infeasible(name: str) -> str:
    """One member of the batch asks for z₀ ≤ −1 and z₀ ≥ 1."""
    tensors = problems()
    exact = case("optlayer", tensors).forward().numpy()
    tensors["G"][1, :2], tensors["h"][1, :2] = [[1, 0, 0], [-1, 0, 0]], -1
    layer = case(name, tensors)
    try:
        z = optlayer.solve(**layer.leaves, check=False).z if name == "optlayer" else layer.solve(**layer.leaves)
    except Exception as error:
        return _because("an error instead of all answers", error)
    if np.abs(z.detach().numpy() - exact)[[0, 2]].max() > 1e-3:
        return "spoils the other answers"
    z[1].sum().backward()
    silent = float(layer.leaves["q"].grad[1].norm()) < 1e-9
    said = "a status for it" if name in STATUS else "a wrong answer, no word"
    return f"{said}, {'no gradient' if silent else 'a gradient all the same'}"


def second(name: str) -> str:
    """The derivative of ‖∂(Σz²)/∂q‖² with respect to the quadratic cost, against central differences."""
    import torch

    layer = case(name, problems())
    matrix = next(key for key in ("Q", "P") if key in layer.leaves)

    def value(leaves: dict[str, Any]) -> Any:
        z = layer.solve(**leaves)
        return torch.autograd.grad(z.square().sum(), leaves["q"], create_graph=True)[0].square().sum()

    try:
        (found,) = torch.autograd.grad(value(layer.leaves), layer.leaves[matrix])
    except Exception as error:
        return _because("no", error)
    direction = torch.zeros_like(found)
    direction.reshape(-1)[0] = 1  # an entry of the diagonal
    step = 1e-5 * direction
    up, down = (value(moved(layer.leaves, matrix, sign * step)).item() for sign in (1, -1))
    expected, got = (up - down) / 2e-5, (found * direction).sum().item()
    return "right" if abs(got - expected) < 1e-3 * (1e-3 + abs(expected)) else "wrong"


def functional(name: str) -> str:
    """`torch.func.vmap` of `torch.func.grad`."""
    import torch

    layer = case(name, problems())
    leaves = {key: leaf.detach() for key, leaf in layer.leaves.items()}

    def loss(q: Any) -> Any:
        return layer.solve(**{**leaves, "q": q}).square().sum()

    try:
        torch.func.vmap(torch.func.grad(loss))(leaves["q"].expand(2, *leaves["q"].shape))
    except Exception as error:
        return _because("no", error)
    return "yes"


def compiled(name: str) -> str:
    """`torch.compile(fullgraph=True)`, forward and backward."""
    import torch

    layer = case(name, problems())
    try:
        torch.compile(layer.solve, fullgraph=True, backend="aot_eager")(**layer.leaves).sum().backward()
    except Exception as error:
        return _because("no", error)
    return "yes"


PROBES = {
    "infeasible": infeasible, "second derivatives": second, "torch.func": functional, "torch.compile": compiled,
}


def main() -> None:
    if len(sys.argv) == 3:  # in the process of one layer
        print("\n" + json.dumps(PROBES[sys.argv[2]](sys.argv[1])))
        return
    answers: dict[str, dict[str, str]] = {}
    for name in LAYERS:
        for probe in PROBES:
            words = [sys.executable, "-m", "benchmarks.claims", name, probe]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
            answers.setdefault(name, {})[probe] = (
                json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else f"crashed ({done.returncode})"
            )
            print(name, probe, answers[name][probe], (done.stderr.splitlines() or [""])[-1], sep=": ")
    versions = {name: metadata.version(PEERS[name].package) for name in LAYERS}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    result = {"command": "python -m benchmarks.claims", "date": date, **_commit(), "versions": versions}
    (RESULTS / "claims.json").write_text(json.dumps({**result, "answers": answers}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How far a peer's answer is from the exact one, and from when on it counts as wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Arrays, first

SOLUTION = 1e-4
"""Largest infeasibility and relative error of the objective of a correct forward pass."""
GRADIENT = 1e-3
"""Largest relative error of the gradient with respect to any tensor, of a correct backward pass."""


def objective(tensors: Arrays, z: np.ndarray) -> np.ndarray:
    """½ zᵀQz + qᵀz of each member."""
    Qz = (tensors["Q"] @ z[..., None])[..., 0]
    return (z * (0.5 * Qz + tensors["q"])).sum(-1)


def infeasibility(tensors: Arrays, z: np.ndarray) -> float:
    """Largest violation of a constraint, relative to one plus its right-hand side."""
    worst = 0.0
    for matrix, side, equality in (("G", "h", False), ("A", "b", True)):
        if matrix in tensors:
            violation = (tensors[matrix] @ z[..., None])[..., 0] - tensors[side]
            violation = np.abs(violation) if equality else np.maximum(violation, 0)
            worst = max(worst, float((violation / (1 + np.abs(tensors[side]))).max(initial=0)))
    return worst


def compare(tensors: Arrays, z: Any, gradients: Arrays | None, truth: Path) -> dict[str, Any]:
    """Errors of a solution and its gradients against the exact ones in `truth`."""
    exact = np.load(truth)
    z = np.asarray(z, dtype=np.float64)
    if not np.isfinite(z).all():
        return {"finite": False}
    infeasible, count = infeasibility(tensors, z), len(exact["z"])  # exact answers are those of the first members
    tensors, z = first(tensors, count), z[:count]
    value, best = objective(tensors, z), objective(tensors, exact["z"])
    result: dict[str, Any] = {
        "finite": True,
        "infeasibility": infeasible,
        "objective": float((np.abs(value - best) / (1 + np.abs(best))).max()),
        "z": float(np.abs(z - exact["z"]).max() / (1 + np.abs(exact["z"]).max())),
    }
    if gradients is not None:
        largest = max(np.abs(exact["grad_" + name]).max() for name in tensors)
        result["gradients"] = {
            name: _difference(name, gradients[name], exact["grad_" + name], 1e-6 * largest) for name in tensors
        }
    return result


def _difference(name: str, gradient: np.ndarray, exact: np.ndarray, floor: float) -> float:
    """Max-norm of the difference relative to that of the exact gradient; only the symmetric part of Q's counts."""
    gradient = np.asarray(gradient, dtype=np.float64)
    gradient = gradient.reshape(-1, *exact.shape[1:])[: len(exact)] if exact.size < gradient.size else gradient
    gradient = gradient.reshape(exact.shape)
    if name == "Q":
        gradient, exact = 0.5 * (gradient + gradient.mT), 0.5 * (exact + exact.mT)
    difference = np.abs(gradient - exact).max(initial=0)
    return float(difference / max(np.abs(exact).max(initial=0), floor)) if np.isfinite(difference) else float("inf")


def solution_is_correct(accuracy: dict[str, Any] | None) -> bool:
    """Whether the forward pass counts as correct."""
    return bool(accuracy and accuracy["finite"]) and max(accuracy["infeasibility"], accuracy["objective"]) <= SOLUTION


def gradient_error(accuracy: dict[str, Any]) -> float:
    """The error of the worst gradient; inf without gradients."""
    return max(accuracy.get("gradients", {"none": float("inf")}).values())


def gradient_is_correct(accuracy: dict[str, Any] | None) -> bool:
    """Whether forward and backward pass count as correct."""
    return accuracy is not None and solution_is_correct(accuracy) and gradient_error(accuracy) <= GRADIENT

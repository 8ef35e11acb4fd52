"""Bad arguments: one clear error at the door, which shows every shape beside the expected one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.masked import masked_tensor

import optlayer
from optlayer import Diagonal, Settings, nn
from optlayer.backends import cpu

N, P, M, B = 3, 2, 1, 4
Change = Callable[[dict[str, Any]], Any]


def arguments() -> dict[str, Any]:
    """A right call: three variables, two inequalities, one equality, bounds."""
    return {
        "Q": torch.eye(N), "q": torch.ones(N), "G": torch.ones(P, N), "h": torch.ones(P),
        "A": torch.ones(M, N), "b": torch.zeros(M), "lb": -torch.ones(N), "ub": torch.ones(N),
    }


def to(**values: Any) -> Change:
    """The right call with some arguments replaced; a function is applied to the right value."""

    def change(call: dict[str, Any]) -> None:
        for name, value in values.items():
            call[name] = value(call[name]) if callable(value) and name in call else value

    return change


def wrong(name: str, exception: type[Exception], message: str, **values: Any) -> Any:
    return pytest.param(to(**values), exception, message, id=name)


WRONG_CALLS = [
    # what is not a tensor
    wrong("Q missing", TypeError, r"Q is required", Q=None),
    wrong("q missing", TypeError, r"q is required", q=None),
    wrong("Q a list", TypeError, r"Q is a list, not a tensor", Q=[[1.0]]),
    wrong("Q a number", TypeError, r"Q is a float, not a tensor", Q=0.1),
    wrong("Q an array", TypeError, r"Q is a ndarray, not a tensor", Q=np.eye(N)),
    wrong("q an array", TypeError, r"q is a ndarray, not a tensor", q=np.ones(N)),
    wrong("G a list", TypeError, r"G is a list, not a tensor", G=[[1.0] * N]),
    wrong("G a number", TypeError, r"G is a float, not a tensor \(a number is for h, b, lb, ub\)", G=1.0),
    wrong("lb a truth", TypeError, r"lb is a bool, not a tensor", lb=True),
    wrong("h an array", TypeError, r"h is a ndarray, not a tensor \(torch.as_tensor", h=np.ones(P)),
    wrong("b a sparse matrix", TypeError, r"b is a csr_matrix, not a tensor \(torch.as_tensor",
          b=csr_matrix(np.ones((1, 1)))),
    wrong("diagonal of a list", TypeError, r"Q is a list, not a tensor", Q=Diagonal([1.0] * N)),
    wrong("A diagonal", TypeError, r"A is a Diagonal, not a tensor", A=Diagonal(torch.ones(N))),
    # half of a pair
    wrong("G without h", ValueError, r"G and h must be given together", h=None),
    wrong("h without G", ValueError, r"G and h must be given together", G=None),
    wrong("A without b", ValueError, r"A and b must be given together", b=None),
    wrong("b without A", ValueError, r"A and b must be given together", A=None),
    # dtypes
    wrong("all integers", TypeError, r"dtype torch.int64", **dict.fromkeys(arguments(), torch.Tensor.long)),
    wrong("all complex", TypeError, r"dtype torch.complex64",
          **dict.fromkeys(arguments(), lambda x: x.to(torch.complex64))),
    wrong("Q float64", TypeError, r"Q has dtype torch.float64, q has torch.float32", Q=torch.Tensor.double),
    wrong("G float64", TypeError, r"G has dtype torch.float64, q has torch.float32 \(G.to\(q\)\?\)",
          G=torch.Tensor.double),
    wrong("b integer", TypeError, r"b has dtype torch.int64, q has torch.float32", b=torch.Tensor.long),
    wrong("ub boolean", TypeError, r"ub has dtype torch.bool, q has torch.float32", ub=torch.Tensor.bool),
    # devices
    wrong("Q on meta", ValueError, r"Q is on meta, q on cpu", Q=lambda x: x.to("meta")),
    wrong("h on meta", ValueError, r"h is on meta, q on cpu", h=lambda x: x.to("meta")),
    # numbers of dimensions
    wrong("q a scalar", ValueError, r"q has 0 dimensions; expected 1, or more with a batch", q=torch.tensor(1.0)),
    wrong("Q a vector", ValueError, r"Q has 1 dimensions; expected 2.*Diagonal\(Q\)\?", Q=torch.ones(N)),
    wrong("G a vector", ValueError, r"G has 1 dimensions; expected 2.*G\[None\]\?", G=torch.ones(N)),
    wrong("h a column", ValueError, r"h has shape \(4, 2, 1\): p = 1, but another", h=torch.ones(B, P, 1)),
    wrong("A a vector", ValueError, r"A has 1 dimensions; expected 2.*A\[None\]\?", A=torch.ones(N)),
    wrong("diagonal of a scalar", ValueError, r"Q has 0 dimensions; expected 1, or", Q=Diagonal(torch.tensor(1.0))),
    # sizes
    wrong("no variable", ValueError, r"no variable", Q=torch.ones(0, 0), q=torch.ones(0), G=None, h=None, A=None,
          b=None, lb=None, ub=None),
    wrong("Q of other size", ValueError, r"n = 4, but another argument has n = 3", Q=torch.eye(N + 1)),
    wrong("Q not square", ValueError, r"n = 4, but another argument has n = 3", Q=torch.ones(N, N + 1)),
    wrong("diagonal of other size", ValueError, r"n = 4, but another argument", Q=Diagonal(torch.ones(N + 1))),
    wrong("G transposed", ValueError, r"G has shape \(3, 2\): n = 2, but another", G=torch.ones(N, P)),
    wrong("h of other size", ValueError, r"h has shape \(3,\): p = 3, but another argument has p = 2", h=torch.ones(3)),
    wrong("A of other size", ValueError, r"A has shape \(1, 4\): n = 4", A=torch.ones(M, N + 1)),
    wrong("b of other size", ValueError, r"b has shape \(3,\): m = 3, but another argument has m = 1", b=torch.ones(3)),
    wrong("lb of other size", ValueError, r"lb has shape \(4,\): n = 4", lb=torch.ones(N + 1)),
    wrong("ub of other size", ValueError, r"ub has shape \(2,\): n = 2", ub=torch.ones(2)),
    wrong("a column as q", ValueError, r"q has shape \(3, 1\)|n = 1", q=torch.ones(N, 1)),
    # batches
    wrong("two batch sizes", ValueError, r"h has batch \(5,\), which cannot be broadcast to \(4,\)",
          q=torch.ones(B, N), h=torch.ones(5, P)),
    wrong("batches that do not broadcast", ValueError, r"h has batch \(3, 4\), which cannot be broadcast to \(2, 4\)",
          q=torch.ones(2, B, N), h=torch.ones(3, B, P)),
    # words
    wrong("settings in a dictionary", TypeError, r"settings is a dict.*Settings\(\*\*settings\)\?",
          settings={"tolerance": 1e-6}),
    wrong("backend no string", TypeError, r"backend is the name of one", backend=cpu),
    # tensors without memory of their own
    wrong("a masked tensor", TypeError, r"q is a MaskedTensor, which wraps", q=lambda x: masked_tensor(x, x > 0)),
    # words
    wrong("unknown backend", ValueError, r"unknown backend 'gpu'; there are", backend="gpu"),
    wrong("backend for another device", ValueError, r"backend 'cuda' cannot be used", backend="cuda"),
]


@pytest.mark.parametrize(("change", "exception", "message"), WRONG_CALLS)
def test_wrong_call(change: Change, exception: type[Exception], message: str) -> None:
    call = arguments()
    change(call)
    with pytest.raises(exception, match=message) as caught:
        optlayer.solve(**call)
    text = str(caught.value)
    if call.keys() <= arguments().keys() and "wraps" not in text:  # the table: expected shape, and what was given
        for name in arguments():
            assert f"\n  {name}" in text or (name == "Q" and "\n  Q.d" in text)
        assert "expected (…, n, n)" in text or "expected (…, n)" in text


def test_there_are_forty_of_them() -> None:
    assert len(WRONG_CALLS) >= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance"), ({"tolerance": -1e-3}, "tolerance"), ({"tolerance": 2.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"), ({"gradient": "smooth"}, "gradient"),
        ({"smoothing": 0.0}, "smoothing"), ({"smoothing": -1.0}, "smoothing"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_settings_are_frozen_and_unknown_ones_refused() -> None:
    with pytest.raises(AttributeError):
        Settings().tolerance = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword"):
        Settings(eps=1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": "small"}, "tolerance is a str, not a number"),
        ({"max_iterations": 2.5}, "max_iterations is a float, not a whole number"),
        ({"max_iterations": None}, "max_iterations is a NoneType"),
        ({"smoothing": None}, "smoothing is a NoneType"),
    ],
)
def test_settings_that_are_no_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Settings(**options)


def test_names_that_are_no_mapping() -> None:
    with pytest.raises(TypeError, match="names is a list"):
        optlayer.solve(**arguments(), names=["x", "y", "z"])  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["mpc", "relu", "max"])
def test_layer_and_input_of_different_dtypes(layer: str) -> None:
    W, b = torch.eye(2), torch.zeros(2)
    made = {
        "mpc": lambda: nn.LinearMPC(W, W, horizon=2), "relu": lambda: nn.ReLULayer(W, b),
        "max": lambda: nn.MaxOfLinear(W, b),
    }[layer]()
    with pytest.raises(TypeError, match=r"has dtype torch.float64, the layer torch.float32"):
        made(torch.ones(2, dtype=torch.float64))


def test_layers_that_are_made_of_sizes() -> None:
    with pytest.raises(TypeError, match="W is a int, not a tensor"):
        nn.ReLULayer(3, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="W is a int, not a tensor"):
        nn.MaxOfLinear(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Q": torch.eye(N + 1)}, "Q "), ({"G": torch.ones(P, N + 1)}, "G "), ({"A": torch.ones(M, N - 1)}, "A "),
        ({"q": torch.tensor(1.0)}, "q "),
    ],
)
def test_elastic_layer_with_wrong_shapes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message + r"\(…, "):
        nn.ElasticQPLayer()(**(arguments() | change))


def test_layer_with_an_unknown_kind_of_Q() -> None:
    with pytest.raises(ValueError, match="diagonal"):
        nn.OptNetLayer(3, Q="sparse")

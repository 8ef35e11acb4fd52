"""Torch's transforms, one test (or a few) per line of the table in docs/transforms.md."""

import copy
import dataclasses
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel

import optlayer
import optlayer.nn
from optlayer.backends import cpu
from optlayer.call import VALUES, VERDICT

N, P = 3, 4
F64 = torch.float64
HAS_CORE = optlayer.available()["cpu"] is None
BACKEND = "cpu" if HAS_CORE else "reference"

torch.manual_seed(0)
_L = torch.randn(N, N, dtype=F64)
Q, G, A = _L @ _L.T + torch.eye(N), torch.randn(P, N, dtype=F64), torch.randn(1, N, dtype=F64)
_POINT = torch.randn(N, dtype=F64)
H, B = G @ _POINT + 0.2 * torch.rand(P, dtype=F64), A @ _POINT
ONE, MANY, GRID = (torch.randn(*shape, N, dtype=F64) for shape in ((), (5,), (2, 5)))


def solution(q: Tensor, G: Tensor = G, **options: object) -> Tensor:
    return optlayer.solve(Q, q, G, H, A, B, backend=BACKEND, **options).z


def loss(q: Tensor, G: Tensor = G) -> Tensor:
    return solution(q, G).pow(3).sum()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    assert found.shape == expected.shape
    return torch.allclose(found, expected, atol=tolerance, rtol=tolerance)


def each(function: Callable[..., Tensor], xs: Tensor) -> Tensor:
    return torch.stack([function(x) for x in xs])


# --- autograd --------------------------------------------------------------------------------------------------------


def test_backward_twice_and_retain_graph() -> None:
    q = ONE.clone().requires_grad_()
    value = loss(q)
    value.backward(retain_graph=True)
    once = q.grad.clone()
    value.backward()
    assert close(q.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_hooks_see_gradients() -> None:
    q, seen = ONE.clone().requires_grad_(), []
    z = solution(q)
    z.register_hook(lambda g: seen.append(g) or 2 * g)
    z.sum().backward()
    assert close(seen[0], torch.ones(N, dtype=F64))
    assert close(q.grad, 2 * grad(lambda q: solution(q).sum())(ONE))


def test_no_grad_and_inference_mode() -> None:
    q = ONE.clone().requires_grad_()
    with torch.no_grad():
        assert not solution(q).requires_grad
    with torch.inference_mode():
        assert solution(q).is_inference()
    assert not solution(ONE).requires_grad


def test_answers_may_be_changed_in_place() -> None:
    """As by ReLU(inplace=True): other answers and the derivative do not notice."""
    q = MANY.clone().requires_grad_()
    sol = optlayer.solve(Q, q, G, H, backend=BACKEND)
    lam = sol.lam.clone()
    with torch.no_grad():
        z = sol.z.clone()
    sol.s.mul_(2)
    assert close(sol.z, z)
    assert close(sol.lam, lam)


def test_higher_order() -> None:
    direct = grad(grad(grad(lambda t: loss(t * ONE))))(torch.tensor(1.0, dtype=F64))
    second = grad(grad(lambda t: loss(t * ONE)))
    step = 1e-5
    ends = [second(torch.tensor(1.0 + sign * step, dtype=F64)) for sign in (1, -1)]
    assert abs(direct - (ends[0] - ends[1]) / (2 * step)) < 1e-5 * (1 + direct.abs())


# --- torch.func ------------------------------------------------------------------------------------------------------


def test_reverse_and_forward_jacobians() -> None:
    expected = torch.autograd.functional.jacobian(solution, ONE)
    assert close(jacrev(solution)(ONE), expected)
    assert close(jacfwd(solution)(ONE), expected)
    assert close(jacfwd(solution, argnums=1)(ONE, G), jacrev(solution, argnums=1)(ONE, G))


def test_products() -> None:
    """A pullback outlives its transform, also under no_grad and vmap."""
    z, pull = vjp(solution, ONE)
    rows = torch.stack([pull(row)[0] for row in torch.eye(N, dtype=F64)])
    with torch.no_grad():
        assert close(torch.stack([pull(row)[0] for row in torch.eye(N, dtype=F64)]), rows)
    assert close(vmap(lambda row: pull(row)[0])(torch.eye(N, dtype=F64)), rows)
    assert close(jvp(solution, (ONE,), (ONE,))[1], rows @ ONE)
    value, push = linearize(solution, ONE)
    assert close(value, z)
    assert close(push(ONE), rows @ ONE)


def test_forward_mode_without_torch_func() -> None:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(solution(forward_ad.make_dual(ONE, ONE))).tangent
    assert close(tangent, jvp(solution, (ONE,), (ONE,))[1])


@pytest.mark.parametrize("outer", [jacfwd, jacrev])
@pytest.mark.parametrize("inner", [jacfwd, jacrev])
def test_hessians_of_every_nesting(outer: Callable, inner: Callable) -> None:
    assert close(outer(inner(loss))(ONE), torch.autograd.functional.hessian(loss, ONE))
    of_G = torch.autograd.functional.hessian(lambda G: loss(ONE, G), G)
    assert close(outer(inner(loss, argnums=1), argnums=1)(ONE, G), of_G)


def test_smoothed_hessian() -> None:
    settings = optlayer.Settings(gradient="smoothed", smoothing=0.1)
    weights = torch.arange(1.0, N + 1, dtype=F64)

    def smoothed(q: Tensor) -> Tensor:
        return (solution(q, settings=settings) * weights).sum()

    assert close(hessian(smoothed)(ONE), torch.autograd.functional.hessian(smoothed, ONE), 1e-7)


# --- vmap ------------------------------------------------------------------------------------------------------------


def test_vmap_in_all_shapes() -> None:
    assert close(vmap(solution)(MANY), each(solution, MANY))
    assert close(vmap(vmap(solution))(GRID), torch.stack([each(solution, x) for x in GRID]))
    assert close(vmap(solution)(GRID), torch.stack([solution(x) for x in GRID]))
    assert close(vmap(solution, in_dims=1, out_dims=1)(GRID), torch.stack([solution(x) for x in GRID]))
    Gs = torch.stack([G, 0.5 * G])
    assert close(vmap(lambda G: solution(MANY, G))(Gs), torch.stack([solution(MANY, x) for x in Gs]))


def test_vmap_of_derivatives() -> None:
    assert close(vmap(grad(loss))(MANY), each(grad(loss), MANY))
    of_G = vmap(grad(loss, argnums=1), in_dims=(0, None))(MANY, G)
    assert close(of_G, each(lambda q: grad(loss, argnums=1)(q, G), MANY))
    assert close(vmap(hessian(loss))(MANY), each(hessian(loss), MANY))
    assert close(vmap(vmap(jacrev(solution)))(GRID), torch.stack([each(jacrev(solution), x) for x in GRID]))
    assert close(jacrev(lambda q: vmap(solution)(q).sum(0))(MANY), jacrev(lambda q: solution(q).sum(0))(MANY))


@pytest.mark.skipif(not HAS_CORE, reason="no compiled core")
def test_vmap_is_one_batched_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    solve = cpu.solve

    def spy(problem: optlayer.Problem, *rest: object) -> object:
        batches.append((problem.batch, problem.G.dim(), problem.q.shape))
        return solve(problem, *rest)

    monkeypatch.setattr(cpu, "solve", spy)
    vmap(vmap(solution))(GRID)
    vmap(solution)(GRID)
    assert batches == [(10, 2, (10, N))] * 2  # G stays shared


def test_failures_under_vmap_raise_unless_told_not_to() -> None:
    Z = torch.zeros(N, N, dtype=F64)
    with pytest.raises(optlayer.SolveError) as caught:
        vmap(lambda q: optlayer.solve(Z, q, backend=BACKEND).z)(torch.stack([torch.zeros(N, dtype=F64), ONE]))
    assert caught.value.members == [1]
    status = vmap(lambda q: optlayer.solve(Z, q, backend=BACKEND, check=False).status)(torch.stack([0 * ONE, ONE]))
    assert status.tolist() == [optlayer.Status.SOLVED, optlayer.Status.DUAL_INFEASIBLE]


# --- compilers -------------------------------------------------------------------------------------------------------
# The backend "aot_eager" traces forward and backward, and leaves out the slow generation of code (docs/transforms.md
# has that).


def compiled(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_compile_forward_and_backward() -> None:
    def step(q: Tensor, G: Tensor) -> tuple[Tensor, ...]:
        sol = optlayer.solve(Q, q, G, H, A, B, backend=BACKEND)
        return sol.z.pow(3), sol.lam, sol.status, sol.iterations

    fast = compiled(step)
    for batch in (2, 5, 7):
        q = torch.randn(batch, N, dtype=F64)
        found = []
        for function in (fast, step):
            leaves = (q.clone().requires_grad_(), G.clone().requires_grad_())
            values = function(*leaves)
            (values[0].sum() + values[1].sum()).backward()
            found.append((*values, *(x.grad for x in leaves)))
        for mine, theirs in zip(*found, strict=True):
            assert close(mine, theirs)


@pytest.mark.parametrize("whole", [False, True], ids=["default", "fullgraph"])
def test_compile_makes_one_graph(whole: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    q = MANY.clone().requires_grad_()
    value = torch.compile(loss, fullgraph=whole, backend=counter)(q)
    value.backward()
    assert counter.frame_count == 1
    assert close(q.grad, grad(loss)(MANY))
    assert close(value.detach(), loss(MANY))


@pytest.mark.parametrize("diagonal", [False, True])
def test_compile_carries_every_setting(diagonal: bool) -> None:
    settings = optlayer.Settings(tolerance=1e-7, max_iterations=50, polish=False, gradient="smoothed", smoothing=0.3)
    form = optlayer.Diagonal(Q.diagonal().clone()) if diagonal else Q

    def step(q: Tensor) -> Tensor:
        return optlayer.solve(form, q, G, H, lb=-3 * torch.ones_like(q), settings=settings, backend=BACKEND).z.sum()

    found = []
    for function in (compiled(step), step):
        q = ONE.clone().requires_grad_()
        function(q).backward()
        found.append(q.grad)
    assert close(*found)


def test_compiled_check_raises_when_the_graph_runs() -> None:
    step = compiled(lambda q: optlayer.solve(torch.zeros(N, N, dtype=F64), q, backend=BACKEND).z)
    assert close(step(0 * ONE), 0 * ONE)
    with pytest.raises(optlayer.SolveError, match="DUAL_INFEASIBLE"):
        step(ONE)


def test_vmap_inside_compile() -> None:
    assert close(compiled(vmap(solution))(MANY), solution(MANY))


@pytest.mark.parametrize("transform", [grad, lambda f: lambda x: jvp(f, (x,), (x,))[1]], ids=["grad", "jvp"])
def test_derivatives_inside_compile_are_refused_not_wrong(transform: Callable) -> None:
    # "from user code": some versions of torch refuse before they come to ours
    with pytest.raises(Exception, match=r"(?i)forward mode|autograd.Function|from user code"):
        compiled(transform(loss))(ONE)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.G = torch.nn.Parameter(G.clone())
        for name, constant in {"Q": Q, "H": H, "A": A, "B": B}.items():  # strict export refuses global tensors
            self.register_buffer(name, constant)

    def forward(self, q: Tensor) -> Tensor:
        return optlayer.solve(self.Q, q, self.G, self.H, self.A, self.B, backend=BACKEND).z


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    shapes = {"q": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Layer(), (MANY,), dynamic_shapes=shapes, strict=strict)
    for q in (MANY, torch.randn(9, N, dtype=F64)):
        assert close(program.module()(q), solution(q))


def test_make_fx() -> None:
    assert close(make_fx(lambda q: solution(q))(ONE)(ONE), solution(ONE))
    assert close(make_fx(grad(lambda q: loss(q)))(ONE)(ONE), grad(loss)(ONE))


@pytest.mark.parametrize("gradient", ["exact", "smoothed"])
def test_opcheck(gradient: str) -> None:
    settings = optlayer.Settings(gradient=gradient, smoothing=1e-2)
    options = ([0, 0, 0], *dataclasses.astuple(settings), BACKEND, False, False)
    data = (Q, MANY, G, H, A, B, None, 1 + _POINT, None)
    # its random upstream gradients go to all outputs; keep_factor=False: bytes that pad a factor are not comparable
    differentiable = [x if x is None else x.clone().requires_grad_() for x in data[:2]] + list(data[2:])
    torch.library.opcheck(torch.ops.optlayer.solve.default, (*differentiable, *options))
    outputs = torch.ops.optlayer.solve(*data, *options)
    point = outputs[: VALUES + VERDICT + 1]
    rhs = [torch.randn(len(MANY), width, dtype=F64) for width in (N, len(H), len(B), 0, N)]
    torch.library.opcheck(torch.ops.optlayer.kkt_solve.default, (*data, *point, *rhs, *options))


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_float32(dtype: torch.dtype) -> None:
    q = torch.tensor([-1.0, 2.0, -3.0], dtype=dtype, requires_grad=True)
    half = [x.to(dtype) for x in (torch.eye(3), torch.zeros(3), torch.tensor([9.0, 9.0, 2.0]))]
    sol = optlayer.solve(half[0], q, lb=half[1], ub=half[2], backend=BACKEND)
    assert sol.z.dtype == dtype
    assert sol.z.tolist() == [1, 0, 2]
    assert sol.gap.dtype == torch.float32
    sol.z.sum().backward()
    assert q.grad.tolist() == [-1, 0, 0]
    diagonal = optlayer.solve(optlayer.Diagonal(torch.ones(3, dtype=dtype)), q.detach(), backend=BACKEND)
    assert diagonal.z.dtype == dtype


def test_autocast_mixes_dtypes_and_multiplies_in_full_precision() -> None:
    q16 = MANY.to(torch.bfloat16)
    leaves = [x.float().requires_grad_() for x in (Q, G, H)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = optlayer.solve(leaves[0], q16, leaves[1], leaves[2], backend=BACKEND).z
        assert z.dtype == torch.bfloat16
        found = torch.autograd.grad(z.float().sum(), leaves)
    exact = [x.double().detach().requires_grad_() for x in leaves]
    expected = torch.autograd.grad(optlayer.solve(exact[0], q16.double(), *exact[1:], backend=BACKEND).z.sum(), exact)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine.double(), theirs, atol=1e-3, rtol=1e-3)
    with pytest.raises(TypeError, match="dtype"):
        optlayer.solve(leaves[0], q16, backend=BACKEND)


def test_autocast_leaves_float64_alone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(solution(MANY), solution(MANY))
        mixed = optlayer.solve(Q, MANY.float(), backend=BACKEND).z
        inside = jvp(solution, (ONE,), (ONE,))[1]
    assert mixed.dtype == torch.float32
    assert close(inside, jvp(solution, (ONE,), (ONE,))[1])


# --- processes and copies --------------------------------------------------------------------------------------------


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layer = DistributedDataParallel(Layer())
    layer(MANY[:4].chunk(2)[rank]).square().mean().backward()
    torch.save(layer.module.G.grad, f"{folder}/{rank}.pt")
    # The layer first: were it the last to hold the group, it would wait for gloo's threads and keep the GIL they need.
    del layer
    gc.collect()
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two processes with half the batch each: both get the gradient of the whole."""
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    alone = Layer()
    alone(MANY[:4]).square().mean().backward()
    for rank in (0, 1):
        assert close(torch.load(tmp_path / f"{rank}.pt"), alone.G.grad)


def test_data_parallel() -> None:
    assert close(torch.nn.DataParallel(Layer())(MANY), solution(MANY))


def test_copies() -> None:
    layer = optlayer.nn.OptNetLayer(N, inequalities=2, dtype=F64)
    expected = layer(MANY)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert close(other(MANY), expected)
    fresh = optlayer.nn.OptNetLayer(N, inequalities=2, dtype=F64)
    fresh.load_state_dict(layer.state_dict())
    assert close(fresh(MANY), expected)
    settings = optlayer.Settings(gradient="smoothed")
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings

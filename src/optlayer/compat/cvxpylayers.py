"""Models of CVXPY's, solved and differentiated here.

    CvxpyLayer(problem, parameters=[…], variables=[…])

uses of cvxpylayers what turns a model into a cone program whose entries are affine in the parameters. From there on all
are operations of torch and `optlayer.solve`: second derivatives, forward mode, vmap and several batch dimensions work,
and every member has a status. `Solver` is for cvxpylayers' own layers, in torch, JAX and MLX.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from optlayer.matrices import Matrix
from optlayer.solution import Solution
from optlayer.solve import Options, checked_options, solve
from optlayer.sparse import Pattern, Sparse

try:
    from cvxpylayers.interfaces.base import SolverInterface
    from cvxpylayers.utils.parse_args import parse_args
    from scipy import sparse as scipy_sparse
except ImportError as reason:
    raise ImportError(
        "optlayer.compat.cvxpylayers needs cvxpylayers 1.2 or later: pip install 'cvxpylayers>=1.2'"
    ) from reason

__all__ = ["CvxpyLayer", "Solver"]

# From this share of entries in Q, G and A on, matrices are handed over dense. Measured on one core, batch 32, forward
# and backward: dense is 1.1 to 2.3 times faster at shares above a half (a full P); sparse is 6 to 500 times faster
# for models whose sums of squares CVXPY has put into variables of their own, which leaves most entries empty.
DENSE_SHARE = 0.4
_CONES = {"soc": "second-order", "psd": "semidefinite", "exp": "exponential", "p3d": "power", "pnd": "power"}


class Solver(SolverInterface):
    """The solver of a `cvxpylayers` layer, for quadratic and linear programs, batched.

    Of cvxpylayers' cone program, minimise ½ xᵀPx + qᵀx subject to Ax + b in a product of cones, the zero cone gives the
    equalities and the nonnegative one the inequalities of `optlayer.solve`. `quad_form(x, P)` with a parameter P is
    accepted in the objective. One object serves any number of layers. Models with few entries are solved sparse.

    Args:
        options: keywords of `optlayer.solve`: settings, backend, check. A call of the layer may override them,
            ``layer(…, solver_args={"settings": …})``.

    Raises:
        ImportError: without cvxpylayers ≥ 1.2, when this module is imported.
        ValueError: when the layer is made, for a model with other cones.
        SolveError: when the layer is called and a member is not solved.

    Source: Agrawal et al., Differentiable Convex Optimization Layers (NeurIPS 2019), for the layer.
    """

    canon_solver = "CLARABEL"  # a form with equalities, inequalities and a quadratic objective, and no bounds apart
    supports_quad_obj = True

    def __init__(self, **options: Unpack[Options]) -> None:
        self.options = checked_options(options)
        self._form: _Form | None = None

    def setup(self, ctx: Any) -> None:
        """Called by the layer that is made: it gets a solver of its own, which knows its problem."""
        ctx.solver = copy.copy(self)
        ctx.solver._form = _Form(ctx)

    def solve_torch_batch(
        self, P: Tensor | None, q: Tensor, A: Tensor, dims: Any, solver_args: dict[str, Any], needs_grad: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """Primal (B, n) and dual (B, rows) solutions, and what the derivative needs."""
        if self._form is None:
            raise RuntimeError("this solver belongs to no layer; pass it to CvxpyLayer(…, solver=…)")
        options = Options(**{**self.options, **checked_options(solver_args)})
        with torch.set_grad_enabled(needs_grad):
            data = [None if x is None else x.detach().requires_grad_(needs_grad) for x in (P, q, A)]
            solution = solve(*self._form.arguments(*data), **options)  # type: ignore[arg-type]
            primal, dual = solution.z, torch.cat([solution.nu, solution.lam], -1)
        return primal.detach(), dual.detach(), (data, primal, dual) if needs_grad else None

    def derivative_torch_batch(
        self, dprimal: Tensor, ddual: Tensor, saved_state: Any
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of the entries of P, q and A, each (B, entries)."""
        data, primal, dual = saved_state
        wanted = [x for x in data if x is not None]
        outputs, given = (primal, dual), (dprimal.to(primal), ddual.to(dual))
        found = torch.autograd.grad(outputs, wanted, given, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
        return (None, full[0], full[1]) if data[0] is None else (full[0], full[1], full[2])


class CvxpyLayer(torch.nn.Module):
    """A quadratic or linear program that is written as a model of CVXPY's, as a layer.

    Args:
        problem: the model, in the form that CVXPY calls DPP; its objective may have `quad_form(x, P)`, P a parameter.
        parameters: of the model, in the order in which the layer is called with their values.
        variables: of the model, or dual variables of its constraints: what the layer returns.
        options: keywords of `optlayer.solve`: settings, backend, check. A call may override them.

    Called with a tensor for each parameter, of its shape after any batch dimensions, which are broadcast, it returns a
    tuple of the variables' values. What depends on parameters without batch dimension is shared by the members.

    Raises:
        ImportError: without cvxpylayers ≥ 1.2, when this module is imported.
        ValueError: for a model that is not DPP, or has other cones; when called with other shapes.
        SolveError: when called, if a member is not solved.

    Source: Agrawal et al., Differentiable Convex Optimization Layers (NeurIPS 2019).
    """

    def __init__(
        self, problem: Any, parameters: Sequence[Any], variables: Sequence[Any], **options: Unpack[Options]
    ) -> None:
        super().__init__()
        self.options = checked_options(options)
        self.shapes = [tuple(x.shape) for x in parameters]
        context = parse_args(problem, list(variables), list(parameters), None, custom_solver=Solver())
        self._arguments = _Form(context).maps(context, _columns(context, self.shapes))
        self._returned = [_Returned.of(x) for x in context.var_recover]

    def forward(self, *parameters: Tensor, **options: Unpack[Options]) -> tuple[Tensor, ...]:
        """The values of the variables."""
        return self.values(self.solve(*parameters, **options))

    def solve(self, *parameters: Tensor, **options: Unpack[Options]) -> Solution:
        """The solution of the quadratic program in which the model is solved, with a status for each member."""
        if len(parameters) != len(self.shapes):
            raise ValueError(f"the model has {len(self.shapes)} parameters; got {len(parameters)} tensors")
        flat = []
        for i, (x, shape) in enumerate(zip(parameters, self.shapes, strict=True)):
            lead = x.shape[: x.dim() - len(shape)]
            if x.dim() < len(shape) or x.shape != (*lead, *shape):
                expected = ", ".join(map(str, ("…", *shape)))
                raise ValueError(f"parameter {i} has shape {tuple(x.shape)}; expected ({expected})")
            flat.append(x.reshape(*lead, math.prod(shape)))
        arguments = [None if x is None else x(flat) for x in self._arguments]
        return solve(*arguments, **Options(**{**self.options, **checked_options(options)}))  # type: ignore[arg-type]

    def values(self, solution: Solution) -> tuple[Tensor, ...]:
        """The values of the variables in a solution of `solve`."""
        return tuple(x.value(solution) for x in self._returned)


class _Returned(NamedTuple):
    """Where a variable is: in z, or for duals in (nu, lam)."""

    dual: bool
    places: slice | Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, found: Any) -> _Returned:
        """What cvxpylayers knows of it: column by column, and of symmetric ones the upper triangle row by row."""
        at, shape = found.primal or found.dual, tuple(found.shape)
        places = np.arange(at.start, at.stop)
        if found.unpack_fn == "svec_primal":
            full = np.zeros(shape, dtype=np.int64)
            rows, columns = np.triu_indices(shape[0])
            full[rows, columns] = full[columns, rows] = places
        else:
            full = places.reshape(shape, order="F")
        in_order = np.array_equal(full.ravel(), places)
        return cls(found.primal is None, at if in_order else torch.as_tensor(full.ravel()), shape)

    def value(self, solution: Solution) -> Tensor:
        """(…, *shape)."""
        whole = torch.cat([solution.nu, solution.lam], -1) if self.dual else solution.z
        at = self.places if isinstance(self.places, slice) else self.places.to(whole.device)
        return whole[..., at].reshape((*whole.shape[:-1], *self.shape))


def _columns(context: Any, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, Any]]:
    """For each parameter its first column in cvxpylayers' maps, and the place of each column in its flat tensor."""
    places = []
    for shape, upper in zip(shapes, context.param_triu_indices, strict=True):
        numbers = np.arange(math.prod(shape)).reshape(shape)
        places.append(numbers.ravel(order="F") if upper is None else numbers[upper])
    order = context.user_order_to_col_order
    sizes = [0] * len(places)
    for slot, x in zip(order, places, strict=True):
        sizes[slot] = len(x)
    first = [0, *itertools.accumulate(sizes)]
    return [(first[slot], x) for slot, x in zip(order, places, strict=True)]


class _Affine:
    """An argument of `solve` as a function of the parameters: constant + Σ map · parameter.

    Args:
        entries: scipy's matrix from the parameters and 1, as cvxpylayers has it, to the entries of the argument.
        columns: of the parameters in it.
        form: the pattern of a sparse matrix, or a shape.
    """

    def __init__(self, entries: Any, columns: Sequence[tuple[int, Any]], form: Pattern | tuple[int, ...]) -> None:
        self.form, self.terms = form, []
        entries = entries.tocsc()
        self.constant = torch.as_tensor(entries[:, [-1]].toarray().ravel())
        for i, (first, places) in enumerate(columns):
            given = entries[:, first : first + len(places)].tocoo()
            given.eliminate_zeros()
            if given.nnz:
                size = (len(self.constant), int(places.max()) + 1)
                moved = scipy_sparse.coo_array((given.data, (given.row, places[given.col])), size)
                self.terms.append((i, Sparse.from_scipy(moved, torch.float64)))

    def __call__(self, parameters: Sequence[Tensor]) -> Matrix | Tensor:
        like = parameters[0] if parameters else self.constant
        total = self.constant.to(like)
        for i, entries in self.terms:
            total = total + entries.with_values(entries.values.to(like)).times(parameters[i])
        if isinstance(self.form, Pattern):
            return Sparse.of(self.form, total)
        return total.reshape(*total.shape[:-1], *self.form)


class _Part(NamedTuple):
    """Rows of a matrix of the cone program: which entries it takes, and where they go."""

    entries: Tensor
    pattern: Pattern
    shared: bool  # no entry depends on a parameter

    def matrix(self, values: Tensor, sparse: bool) -> Matrix:
        """(B, r, c), or (r, c) where it is shared."""
        values = values[0].detach() if self.shared else values
        made = Sparse.of(self.pattern, values[..., self.entries.to(values.device)])
        return made if sparse else made.dense()


class _Form:
    """How the entries that cvxpylayers gives, column by column, become arguments of `solve`."""

    def __init__(self, ctx: Any) -> None:
        dims = ctx.cone_dims
        size = ctx.q.shape[0]  # (of a model without constraints, CVXPY gives no index)
        index = ctx.reduced_A.problem_data_index or (np.zeros(0, int), np.zeros(size + 1, int), (0, size))
        indices, starts, (rows, columns) = index
        if int(dims.zero) + int(dims.nonneg) != rows:  # (not from a list of the other cones, which may grow)
            kinds = ", ".join(name for cone, name in _CONES.items() if getattr(dims, cone, None)) or "other"
            raise ValueError(f"optlayer solves QPs and LPs (zero and nonnegative cones); this model has {kinds} cones")
        at_row, at_column, free = _places(indices, starts, ctx.reduced_A)
        self.n, self.equalities, self.rows = columns - 1, int(dims.zero), rows
        self.sides = torch.as_tensor(np.flatnonzero(at_column == self.n))
        self.side_rows = torch.as_tensor(at_row[at_column == self.n])
        inner = at_column < self.n
        self.A = _part(at_row, at_column, free, inner & (at_row < self.equalities), 0, (self.equalities, self.n))
        size = (rows - self.equalities, self.n)
        self.G = _part(at_row, at_column, free, inner & (at_row >= self.equalities), self.equalities, size)
        self.Q: _Part | None = None
        total = len(indices)
        if ctx.reduced_P.reduced_mat is not None and ctx.reduced_P.problem_data_index is not None:
            indices, starts, _ = ctx.reduced_P.problem_data_index
            at_row, at_column, free = _places(indices, starts, ctx.reduced_P)
            self.Q = _part(at_row, at_column, free, at_row >= 0, 0, (self.n, self.n))
            total += len(indices)
        self.sparse = total < DENSE_SHARE * self.n * (self.n + rows)

    def arguments(self, P: Tensor | None, q: Tensor, A: Tensor) -> tuple[Matrix | Tensor | None, ...]:
        """Q, q, G, h, A, b from values (B, entries). Rows of A x + b that are nonnegative are −A x ≤ b."""
        if P is None or self.Q is None:
            diagonal = torch.arange(self.n)
            zero = Pattern(torch.arange(self.n + 1), diagonal, (self.n, self.n))
            Q = _Part(diagonal, zero, True).matrix(q.new_zeros(1, self.n), self.sparse)
        else:
            kept = _Part(self.Q.entries, self.Q.pattern, self.Q.shared).matrix(P, True)
            Q = kept.symmetric() if self.sparse else kept.symmetric().dense()  # type: ignore[union-attr]
        side = A.new_zeros(len(A), self.rows).index_add(-1, self.side_rows.to(A.device), A[:, self.sides.to(A.device)])
        b, h = side[:, : self.equalities], side[:, self.equalities :]
        with_A = (self.A.matrix(-A, self.sparse), b) if self.equalities else (None, None)
        with_G = (self.G.matrix(-A, self.sparse), h) if self.rows > self.equalities else (None, None)
        return Q, q[:, : self.n], *with_G, *with_A

    def maps(self, context: Any, columns: Sequence[tuple[int, Any]]) -> list[_Affine | None]:
        """The same arguments as functions of the parameters."""
        n, A = self.n, context.reduced_A.reduced_mat.tocsr()
        sides = _spread(A[self.sides.numpy()], self.side_rows.numpy(), self.rows)

        def matrix(part: _Part, entries: Any) -> _Affine:
            entries, pattern = entries[part.entries.numpy()], part.pattern
            if self.sparse:
                return _Affine(entries, columns, pattern)
            places = (pattern.rows * pattern.size[1] + pattern.columns).numpy()
            return _Affine(_spread(entries, places, math.prod(pattern.size)), columns, pattern.size)

        def rows(part: _Part, chosen: slice) -> tuple[_Affine | None, _Affine | None]:
            h = sides[chosen]
            return (matrix(part, -A), _Affine(h, columns, (h.shape[0],))) if h.shape[0] else (None, None)

        if self.Q is None:
            zero = Pattern(torch.arange(n + 1), torch.arange(n), (n, n))
            Q = matrix(_Part(torch.arange(n), zero, True), 0 * context.q.tocsr()[:n])
        else:
            made = Sparse.of(self.Q.pattern, self.Q.entries).symmetric()
            Q = matrix(_Part(made.values, made.pattern, self.Q.shared), context.reduced_P.reduced_mat.tocsr())
        first = self.equalities
        q = _Affine(context.q.tocsr()[:n], columns, (n,))
        return [Q, q, *rows(self.G, slice(first, None)), *rows(self.A, slice(first))]


def _spread(entries: Any, places: Any, size: int) -> Any:
    """Rows of a matrix at their places among so many; the others are zero."""
    one = scipy_sparse.csr_array((np.ones(len(places)), (places, np.arange(len(places)))), (size, len(places)))
    return (one @ entries).tocsr()


def _places(indices: Any, starts: Any, reduced: Any) -> tuple[Any, Any, Any]:
    """Row and column of each entry, and whether it depends on a parameter: the last column of the map is constant."""
    dependence = reduced.reduced_mat.tocsc()[:, :-1].tocsr()
    dependence.eliminate_zeros()
    columns = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return np.asarray(indices, dtype=np.int64), columns, np.diff(dependence.indptr) > 0


def _part(rows: Any, columns: Any, free: Any, chosen: Any, first: int, size: tuple[int, int]) -> _Part:
    """The chosen entries, row by row; `first` is the part's first row."""
    entries = np.flatnonzero(chosen)
    entries = entries[np.lexsort((columns[entries], rows[entries]))]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows[entries] - first, minlength=size[0]))])
    pattern = Pattern(torch.as_tensor(starts), torch.as_tensor(columns[entries]), size)
    return _Part(torch.as_tensor(entries), pattern, not free[entries].any())

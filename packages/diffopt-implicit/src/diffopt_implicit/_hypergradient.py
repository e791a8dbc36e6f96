"""`hypergradient`: the derivative of an outer loss in the hyperparameters of an inner one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from diffopt_implicit._closure import closure_message, tracked_names
from diffopt_implicit._equation import detached
from diffopt_implicit._hypergradient_method import Estimate, HypergradientMethod
from diffopt_implicit._inner_problem import InnerProblem, Loss, minus
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._root_check import quotient, size
from diffopt_implicit._solved_adjoints import CG
from diffopt_implicit._torch import is_tracked, is_transformed, outside_graphs

DEFAULT = CG()


class HypergradientInfo(NamedTuple):
    """How well the adjoint of a hypergradient is solved; under `torch.func.vmap`, of each.

    Attributes:
        residual: ``|v - H u|``, of the adjoint ``u`` that was used.
        relative_residual: `residual` / ``|v|``: 1 is as bad as ``u = 0``.
        error: An estimate of the norm of the hypergradient's error that comes from the
            residual ``r``: ``|B^T r| |u| / |H u|``. No bound: where the Hessian has
            eigenvalues far below those that `u` has met, the error is larger.
        iterations: Int64 scalar, how many the method took.
        adjoint: ``u``, like the parameters: what to pass as `init` next time.
        direction: Like the parameters, the direction against which `BOME` moves them; empty
            for methods that take the parameters as solved.

    Example:
        >>> import torch
        >>> inner = lambda w, lam: (w - lam).square().sum()
        >>> outer = lambda w, lam: w.sum()
        >>> w, lam = torch.ones(3), torch.tensor(1.0)
        >>> gradient, info = hypergradient(inner, outer, w, lam, info=True)
        >>> gradient, info.relative_residual
        (tensor(3.), tensor(0., dtype=torch.float64))
    """

    residual: Tensor
    relative_residual: Tensor
    error: Tensor
    iterations: Tensor
    adjoint: Tree
    direction: Tree


@overload
def hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Tree,
    hparams: Tree,
    method: HypergradientMethod = ...,
    *,
    init: Tree | None = None,
    create_graph: bool = False,
    info: Literal[False] = False,
) -> Tree: ...


@overload
def hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Tree,
    hparams: Tree,
    method: HypergradientMethod = ...,
    *,
    init: Tree | None = None,
    create_graph: bool = False,
    info: Literal[True],
) -> tuple[Tree, HypergradientInfo]: ...


@outside_graphs
def hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Tree,
    hparams: Tree,
    method: HypergradientMethod = DEFAULT,
    *,
    init: Tree | None = None,
    create_graph: bool = False,
    info: bool = False,
) -> Tree | tuple[Tree, HypergradientInfo]:
    """Return the derivative of an outer loss in hyperparameters that parameters depend on.

    With ``w(lam)`` the minimum of ``inner_loss(w, lam)``, ``H`` the inner loss's second
    derivative in ``w`` and ``B`` that of its slope in ``lam``::

        d/dlam outer(w(lam), lam) = d outer/dlam - B^T u,  H u = v = d outer/dw

    The methods differ in how they come by ``u`` and ``B^T u``: `Exact`, `CG`, `NormalCG`,
    `Neumann`, `FixedPoint`, `Nystrom`, `OneStep`, `IdentityApprox` and `StochasticAdjoint` by
    products with ``H`` and ``B``, reverse over reverse; `FiniteDifference`, `SAMA`, `F2SA`
    and `BOME` by first derivatives alone.

    Args:
        inner_loss: ``(params, hparams) ->`` scalar, of torch operations.
        outer_loss: ``(params, hparams) ->`` scalar.
        params: The minimum of `inner_loss`, any tree of real floating-point tensors. How it
            was found does not matter, and no graph of it is followed.
        hparams: Any tree; its floating-point tensors, real or complex, are differentiated.
        method: A value, by default `CG()`; swap it to swap the estimator.
        init: An adjoint to start from, the `info.adjoint` of an earlier call. Methods that do
            not iterate, and `Neumann`, which begins at zero, leave it aside.
        create_graph: Keep the result differentiable in `hparams`, `params` moving with them
            by the same method. Under the transforms of `torch.func` it always is.
        info: Return a `HypergradientInfo` too, for one or two products more.

    Returns:
        A tree like `hparams`, None in place of leaves that are no floating-point tensors; or
        ``(gradient, info)``.

    Raises:
        LinearSolveError: If the method's linear system is not solved.
        NotImplementedError: If the method cannot be differentiated again, and is.
        TypeError: If `params` hold anything but real floating-point tensors.
        ValueError: If a loss is no scalar, if `init` does not look like `params`, if
            `inner_loss` draws random numbers where products with its second derivatives are
            taken, or if a tensor whose second derivative would be lost reaches it by closure.

    Example:
        Ridge regression, and the derivative of a validation loss in its penalty:

        >>> import torch
        >>> inner = lambda w, lam: (w - 3).square().sum() / 2 + lam * w.square().sum() / 2
        >>> outer = lambda w, lam: (w - 1).square().sum() / 2
        >>> lam = torch.tensor(0.5)
        >>> w = torch.full((2,), 3 / 1.5)  # the minimum
        >>> hypergradient(inner, outer, w, lam)  # 2 (w - 1) dw/dlam, dw/dlam = -w / 1.5
        tensor(-2.6667)

    Source:
        Bengio, *Gradient-based optimization of hyperparameters*, Neural Computation 12, 2000;
        the methods' own in their docstrings.
    """
    problem = InnerProblem.at(inner_loss, outer_loss, params, hparams)
    again = create_graph or any(is_transformed(t) for t in (*problem.params, *problem.hparams))
    if again:
        check_differentiable(method, problem)
    with nullcontext() if again else torch.no_grad():
        return estimated(problem, method, init, info=info)


def estimated(
    problem: InnerProblem, method: HypergradientMethod, init: Tree | None, *, info: bool
) -> Tree | tuple[Tree, HypergradientInfo]:
    """Let a method estimate the hypergradient, and give it the form of the hyperparameters."""
    start = None if init is None else detached(problem.vector(init, "`init`"))
    estimate = method.estimate(problem, start)
    (gradient,) = problem.selection.like_args(estimate.gradient)
    return (gradient, described(estimate, problem)) if info else gradient


def check_differentiable(method: HypergradientMethod, problem: InnerProblem) -> None:
    """Refuse second derivatives that would be lost or wrong."""
    if not method.differentiable:
        raise NotImplementedError(
            f"`{type(method).__name__}` gives no second derivatives: what it approximates would "
            "be differentiated with errors of the size of the result. Use `CG()` or another "
            "method that solves the adjoint system, or detach the hyperparameters."
        )
    slope = problem.inner_slope(detached(problem.params), detached(problem.hparams))
    if any(is_tracked(value) for value in slope):
        names = tracked_names(problem.inner_loss)
        raise ValueError(closure_message("`inner_loss`", names))


@torch.no_grad()
def described(estimate: Estimate, problem: InnerProblem) -> HypergradientInfo:
    """Take the residual of an adjoint, and what it means for the hypergradient."""
    u, v = detached(estimate.adjoint), detached(estimate.slope)
    product = detached(estimate.product())
    rest = minus(v, product)
    residual, enlarged = size(rest), quotient(size(u), size(product))
    direction = estimate.direction
    return HypergradientInfo(
        residual,
        quotient(residual, size(v)),
        size(detached(estimate.mixed(rest))) * enlarged,
        torch.as_tensor(estimate.iterations),
        problem.tree(u),
        () if direction is None else problem.tree(detached(direction)),
    )

"""Give a solution of an equation the derivatives of the solution, to every order.

Here all is flat: unknowns and parameters are tuples of tensors, a condition maps
``(unknowns, parameters)`` to residuals shaped like the unknowns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._root_check import RootCheck, quotient, size
from diffopt_implicit._torch import Tensors, alive, outside_graphs, vjp

Condition = Callable[[Tensors, Tensors], Tensors]
LinearMap = Callable[[Tensors], Tensors]
Solve = Callable[[LinearMap, Tensors], Tensors]

# NOTE [derivatives of every order]
# Let F(x, p) = 0 define x(p), A = dF/dx and B = dF/dp. Then dx = -A^{-1} B dp, and a cotangent v
# of x becomes -B^T u, where A^T u = v. `_Solution` is the identity on x with these two rules.
# To be differentiated again, they must be built from things whose derivatives are right:
# - x is the *output* that was saved, so that it still depends on p;
# - u is again the solution of an equation, G(u; x, p, v) = A^T u - v = 0, and `_Solution` makes
#   it so. Its iterations see detached values and are never differentiated;
# - products with A and B are transposes of vector-Jacobian products (reverse over reverse).
#   torch gives wrong values for reverse over forward in layer norm, batch norm, solve and det.


def attach(
    condition: Condition,
    solve: Solve,
    solution: Tensors,
    params: Tensors,
    check: RootCheck | None = None,
) -> Tensors:
    """Return `solution`, differentiable in `params` as where `condition` vanishes."""
    setting = Setting(condition, solve, len(solution), check)
    return _Solution.apply(setting, *solution, *params)  # type: ignore[no-any-return]


@dataclass(frozen=True)  # no named tuple: torch would take it for a tree
class Setting:
    """All that the derivative of a solution needs beside tensors.

    Attributes:
        condition: What vanishes at the solution.
        solve: The linear solver.
        count: How many tensors the solution is made of.
        check: What to ask of the solution, None where it was seen to already.
    """

    condition: Condition
    solve: Solve
    count: int
    check: RootCheck | None


class _Solution(torch.autograd.Function):
    """The identity on a solution, whose derivative is that of the equation it solves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(setting: Setting, *tensors: Tensor) -> Tensors:
        return tuple(tensor.clone() for tensor in tensors[: setting.count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.setting = inputs[0]
        params = inputs[1 + ctx.setting.count :]
        ctx.save_for_backward(*output, *params)
        ctx.save_for_forward(*output, *params)

    @staticmethod
    @outside_graphs
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        setting: Setting = ctx.setting
        condition, count, check = setting.condition, setting.count, setting.check
        x, params = cut(alive(ctx.saved_tensors), count)
        chosen = [i for i, needed in enumerate(ctx.needs_input_grad[1 + count :]) if needed]
        u = linear_solution(
            transposed_jacobian(condition), setting.solve, cotangents, (*x, *params)
        )
        residual, pull = pull_params(condition, x, params, chosen)
        pulled = pull(u)
        if check is not None and check.on_inexact != "ignore":
            slope = quotient(size(pulled), size(cotangents))
            check(residual, x, cotangents, u, tuple(params[i] for i in chosen), slope)
        gradients: list[Tensor | None] = [None] * (1 + count + len(params))
        for i, gradient in zip(chosen, pulled, strict=True):
            gradients[1 + count + i] = -gradient
        return tuple(gradients)

    @staticmethod
    @outside_graphs
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        setting: Setting = ctx.setting
        condition, count, check = setting.condition, setting.count, setting.check
        x, params = cut(alive(ctx.saved_tensors), count)
        given = tangents[1 + count :]
        chosen = [
            i
            for i, (p, t) in enumerate(zip(params, given, strict=True))
            if t is not None and (p.is_floating_point() or p.is_complex())
        ]
        residual, pull = pull_params(condition, x, params, chosen)
        steps = alive(given[i] for i in chosen)
        rhs = tuple(-moved for moved in transpose(pull, x)(steps))
        dx = linear_solution(jacobian(condition), setting.solve, rhs, (*x, *params))
        if check is not None and check.on_inexact != "ignore":
            slope = quotient(size(dx), size(steps))
            check(residual, x, rhs, dx, tuple(params[i] for i in chosen), slope)
        return dx


MatrixAt = Callable[[Tensors, int], LinearMap]


def linear_solution(matrix_at: MatrixAt, solve: Solve, rhs: Tensors, params: Tensors) -> Tensors:
    """Solve ``A(params) u = rhs``, differentiably in `rhs` and `params`."""
    u = solve(matrix_at(detached(params), len(rhs)), detached(rhs))
    return attach_linear(matrix_at, solve, u, rhs, params)


def attach_linear(
    matrix_at: MatrixAt, solve: Solve, u: Tensors, rhs: Tensors, params: Tensors
) -> Tensors:
    """Return `u`, differentiable as the solution of ``A(params) u = rhs``."""
    count = len(rhs)

    def equation(u: Tensors, rest: Tensors) -> Tensors:
        right, at = cut(rest, count)
        return tuple(a - b for a, b in zip(matrix_at(at, count)(u), right, strict=True))

    return attach(equation, solve, detached(u), (*rhs, *params))


def transposed_jacobian(condition: Condition) -> MatrixAt:
    """Return ``(x, params) -> (u -> A^T u)``, with `A` the derivative in the unknowns."""

    def at(values: Tensors, count: int) -> LinearMap:
        x, params = cut(values, count)
        _, pull = vjp(lambda *x: condition(x, params), *x)
        return lambda u: pull(tuple(u))

    return at


def jacobian(condition: Condition) -> MatrixAt:
    """Return ``(x, params) -> (u -> A u)``, with `A` the derivative in the unknowns."""

    def at(values: Tensors, count: int) -> LinearMap:
        return transpose(transposed_jacobian(condition)(values, count), values[:count])

    return at


def pull_params(
    condition: Condition, x: Tensors, params: Tensors, chosen: Sequence[int]
) -> tuple[Tensors, LinearMap]:
    """Return the residual and ``u -> B^T u``, `B` the derivative in the chosen parameters."""

    def residual(*values: Tensor) -> Tensors:
        unknowns, moved = cut(values, len(x))
        replaced = list(params)
        for i, value in zip(chosen, moved, strict=True):
            replaced[i] = value
        return condition(unknowns, tuple(replaced))

    # In `x` too, and dropped: so a condition finds it differentiable, whichever derivative is
    # taken, and may use `torch.autograd.grad` with respect to it.
    value, pull = vjp(residual, *x, *(params[i] for i in chosen))
    return value, lambda u: pull(tuple(u))[len(x) :]


def transpose(linear: LinearMap, like: Tensors) -> LinearMap:
    """Return the transpose of a linear map of tuples shaped like `like`."""
    zeros = tuple(torch.zeros_like(leaf) for leaf in like)
    _, pull = vjp(lambda *u: linear(u), *zeros)
    return lambda v: pull(tuple(v))


def cut(tensors: Sequence[Tensor], count: int) -> tuple[Tensors, Tensors]:
    """Split off the first `count`."""
    return tuple(tensors[:count]), tuple(tensors[count:])


def detached(tensors: Tensors) -> Tensors:
    """Return the values alone, at every level of differentiation."""
    return tuple(tensor.detach() for tensor in tensors)

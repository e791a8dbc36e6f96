"""Mirror descent: gradient steps in the geometry of the problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pytree_core import tree_map
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._descent import length
from diffopt_implicit._solvers._gradient_step import Step, StepState, first_state, taken
from diffopt_implicit._solvers._objective import Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._step_size import StepSize, check_step_size, given_step


@dataclass(frozen=True)
class MirrorMap:
    """A geometry: the gradient of a convex function, and the way back onto the feasible set.

    Attributes:
        to_dual: ``params ->`` a tree alike, the gradient of the function.
        from_dual: Its inverse, composed with the Bregman projection on the feasible set.

    Example:
        >>> import torch
        >>> positive = MirrorMap(torch.log, torch.exp)  # unnormalized Kullback-Leibler
        >>> positive.from_dual(positive.to_dual(torch.tensor(2.0)))
        tensor(2.)
    """

    to_dual: Callable[[Tree], Tree]
    from_dual: Callable[[Tree], Tree]


def kl_simplex(value: float = 1.0) -> MirrorMap:
    """Return the geometry of Kullback and Leibler on the simplex: exponentiated gradients.

    Args:
        value: What vectors, the last dimension of each leaf, sum to; positive.

    Returns:
        The map with ``log``, and ``value * softmax`` back.

    Example:
        >>> import torch
        >>> kl_simplex().from_dual(torch.zeros(2))
        tensor([0.5000, 0.5000])

    Source:
        Beck & Teboulle, *Mirror descent and nonlinear projected subgradient methods for convex
        optimization*, Oper. Res. Letters 31, 2003, section 5.
    """
    check_positive("value", value)
    back = partial(tree_map, partial(scaled_softmax, value))
    return MirrorMap(partial(tree_map, logarithm), back)


def logarithm(leaf: Tensor) -> Tensor:
    """Return the logarithm, without a derivative where that is infinite."""
    positive = leaf > 0
    return torch.where(positive, torch.where(positive, leaf, 1.0).log(), -torch.inf)


def scaled_softmax(value: float, leaf: Tensor) -> Tensor:
    """Return `value` times the softmax over the last dimension."""
    return value * leaf.softmax(-1)


@dataclass(frozen=True)
class MirrorDescent(Solver):
    """Minimize on a set by ``x <- from_dual(to_dual(x) - stepsize grad f(x))``.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar to minimize, smooth.
        stepsize: A number or tensor, or a schedule ``iter_num ->`` such.
        mirror: The geometry; default that of `kl_simplex`.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        tol: Stop where the Euclidean norm of ``(new x - x) / stepsize`` is at most this.

    Example:
        >>> import torch
        >>> cost = torch.tensor([0.0, 0.5, 3.0])
        >>> def regularized(x, cost):
        ...     return (x * cost).sum() + 0.5 * x.square().sum()
        >>> x = MirrorDescent(regularized, 1.0).run(torch.full((3,), 1 / 3), cost).params
        >>> [round(float(v), 3) for v in x]
        [0.75, 0.25, 0.0]

    Source:
        Nemirovski & Yudin, *Problem Complexity and Method Efficiency in Optimization*, 1983; Beck &
        Teboulle, Oper. Res. Letters 31, 2003, eq. 3.11.
    """

    fun: Callable[..., Any]
    stepsize: StepSize
    mirror: MirrorMap = field(default_factory=kl_simplex)
    has_aux: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self.stepsize)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> StepState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        return first_state(init_params)

    def update(self, params: Tree, state: StepState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one mirror step."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        at = Objective(self.fun, self.has_aux, space, args, kwargs).at(x)
        size = given_step(self.stepsize, state.iter_num, state.error)
        new = space.vector(self._mirrored(params, space.tree(size * at.grad)), "`from_dual`")
        error = length(new - x) / size.detach()
        moved, after = taken(Step(new, size, error), state, x, at, self.tol)
        return OptStep(space.tree(moved), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``params`` less a mirror step of size 1 from there."""
        grad = gradient(self.fun, self.has_aux, params, args, kwargs)
        image = self._mirrored(params, grad)
        return tree_map(lambda x, z: x - z, params, image)

    def _mirrored(self, params: Tree, move: Tree) -> Tree:
        dual = tree_map(lambda z, g: z - g, self.mirror.to_dual(params), move)
        return self.mirror.from_dual(dual)

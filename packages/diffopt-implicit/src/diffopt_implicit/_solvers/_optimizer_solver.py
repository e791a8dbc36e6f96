"""`OptimizerSolver`: any optimizer as a solver."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from pytree_core import tree_flatten, tree_leaves, tree_unflatten
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._descent import length
from diffopt_implicit._solvers._gradient_step import Step, StepState, first_state, taken
from diffopt_implicit._solvers._objective import Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import is_tracked, is_wrapped


@runtime_checkable
class Transform(Protocol):
    """A pair of pure functions, like the transforms of diffopt-explicit."""

    def init(self, params: Tree) -> Any:
        """Return the state before the first step."""
        ...

    def update(self, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        """Return what to add to the parameters, and the state after it."""
        ...


@dataclass(frozen=True)
class OptimizerSolver(Solver):
    """Minimize by an optimizer: a transform, or one of `torch.optim`.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar to minimize; `run_iterator` gives ``data``.
        opt: Values with ``init(params)`` and ``update(grads, state, params)``, whose updates are
            added to the parameters, like the transforms of diffopt-explicit; or what makes a
            `torch.optim.Optimizer` of a list of tensors, like
            ``functools.partial(torch.optim.Adam, lr=0.1)``. The latter can neither be unrolled
            nor batched by `torch.func.vmap`, and is copied at each update.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        tol: Stop where the Euclidean norm of the gradient, over all leaves, is at most this.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> solver = OptimizerSolver(
        ...     lambda x, a: (x - a).square().sum(), partial(torch.optim.SGD, lr=0.25)
        ... )
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> x = solver.run(torch.zeros(2), a).params
        >>> torch.autograd.grad(x.sum(), a)
        (tensor([1., 1.]),)
    """

    fun: Callable[..., Any]
    opt: Any
    has_aux: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.opt, Transform) or callable(self.opt)):
            raise TypeError(
                "`opt` must have `init` and `update`, or make a `torch.optim.Optimizer` of a list "
                f"of tensors, got {type(self.opt).__name__}."
            )

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> StepState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        return first_state(init_params, self._transform.init(init_params))

    def update(self, params: Tree, state: StepState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step of the optimizer."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        at = Objective(self.fun, self.has_aux, space, args, kwargs).at(x)
        updates, memory = self._transform.update(space.tree(at.grad), state.memory, params)
        new = x + space.vector(updates, "What `opt` returns")
        step = Step(new, torch.ones_like(state.error), length(at.grad), memory)
        moved, after = taken(step, state, x, at, self.tol)
        return OptStep(space.tree(moved), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient of `fun`."""
        return gradient(self.fun, self.has_aux, params, args, kwargs)

    @property
    def _transform(self) -> Transform:
        return self.opt if isinstance(self.opt, Transform) else TorchTransform(self.opt)


@dataclass(frozen=True)
class TorchTransform:
    """An optimizer of `torch.optim`, which changes what it is given, as two pure functions.

    Attributes:
        factory: Makes it, of a list of tensors.
    """

    factory: Callable[[list[Tensor]], torch.optim.Optimizer]

    def init(self, params: Tree) -> Any:
        """Return the optimizer's state before the first step."""
        return Opaque(self._made(params).state_dict())

    def update(self, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        """Return the change of copies of the parameters."""
        grads, spec = tree_flatten(updates)
        for leaf in (*grads, *tree_leaves(params)):
            refuse_derivatives(leaf)
        optimizer = self._made(params)
        optimizer.load_state_dict(copy.deepcopy(state.value))
        copies = [p for group in optimizer.param_groups for p in group["params"]]
        for leaf, grad in zip(copies, grads, strict=True):
            leaf.grad = grad.detach().clone()
        optimizer.step()
        moves = [new.detach() - old for new, old in zip(copies, tree_leaves(params), strict=True)]
        return tree_unflatten(spec, moves), Opaque(optimizer.state_dict())

    def _made(self, params: Tree) -> torch.optim.Optimizer:
        copies = [leaf.detach().clone() for leaf in tree_leaves(params)]
        optimizer = self.factory(copies)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "`opt` must make a `torch.optim.Optimizer` of a list of tensors, got "
                f"{type(optimizer).__name__}. Give a class with its options, like "
                "`functools.partial(torch.optim.Adam, lr=0.1)`."
            )
        return optimizer


@dataclass(frozen=True)
class Opaque:
    """A leaf of a state that holds what is no tree of tensors.

    Attributes:
        value: What is held.
    """

    value: Any


def refuse_derivatives(leaf: Tensor) -> None:
    """Refuse what would pass through an optimizer of torch without its derivatives."""
    if is_wrapped(leaf) or (torch.is_grad_enabled() and is_tracked(leaf)):
        raise ValueError(
            "An optimizer of `torch.optim` can be neither unrolled nor batched by a function "
            "transform: it changes its parameters in place. Use `adjoint='implicit'` outside "
            "`torch.func.vmap`, or a transform with `init` and `update`, such as those of "
            "diffopt-explicit."
        )

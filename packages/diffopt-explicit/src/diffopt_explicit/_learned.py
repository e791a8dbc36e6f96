"""Learned update rules: any function or module as a transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._parameters import check_alike, check_params
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import (
    map_present,
    place,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_map_with_path,
    tree_unflatten,
)


class LearnedState(NamedTuple):
    """What a learned rule remembers between steps."""

    memory: Tree  # of each parameter


@dataclass(frozen=True)
class Learned:
    """A function or module for each parameter's update; see `learned`."""

    rule: Callable[..., Any] | Tree
    memory: Callable[[Tensor], Any] | None = None

    def init(self, params: Tree) -> LearnedState:
        """Return the memories before the first step."""
        check_params(params)
        begin = self.memory
        return LearnedState(tree_map(lambda p: () if begin is None else begin(p), params))

    def update(
        self, updates: Tree, state: LearnedState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, LearnedState]:
        """Let the rule work on every parameter that has an update."""
        check_alike(updates, params)
        grads, spec = tree_flatten(updates, none_is_leaf=True)
        memories = spec.flatten_up_to(state.memory)
        one = callable(self.rule)
        rules = [self.rule] * len(grads) if one else spec.flatten_up_to(self.rule)
        for index, (grad, rule) in enumerate(zip(grads, rules, strict=True)):
            if grad is None:
                continue
            if self.memory is None:
                update = rule(grad)
            else:
                update, memories[index] = rule(grad, memories[index])
            if not isinstance(update, Tensor) or update.shape != grad.shape:
                path = tree_flatten_with_path(updates, none_is_leaf=True)[0][index]
                raise ValueError(
                    f"The rule for the parameter at {place(path)} returned {_describe(update)}, "
                    f"but its gradient has shape {tuple(grad.shape)}."
                )
            grads[index] = update
        return tree_unflatten(spec, grads), LearnedState(tree_unflatten(spec, memories))


@dataclass(frozen=True)
class Kronecker:
    """Updates times a matrix along each of their axes; see `kronecker`."""

    factors: Tree

    def init(self, params: Tree) -> tuple[()]:
        """Return the empty state; refuses factors that are not of the parameters' sizes."""
        check_params(params)
        tree_map_with_path(_check_factors, params, self.factors)
        return ()

    def update(
        self, updates: Tree, state: tuple[()], params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, tuple[()]]:
        """Multiply the updates by their factors."""
        check_alike(updates, params)
        return map_present(_multiply, updates, self.factors), state


def learned(
    rule: Callable[..., Any] | Tree, memory: Callable[[Tensor], Any] | None = None
) -> Learned:
    """Make an optimizer, or a part of one, of a function or module.

    What the rule is made of is learned by differentiating the outer loss: parameters of a module,
    or tensors that a function uses. Under `torch.func` make the transform inside the function
    that is differentiated, with `torch.func.functional_call`.

    Args:
        rule: Called for each parameter as ``rule(gradient) -> update``, or with a memory as
            ``rule(gradient, memory) -> (update, memory)``. Or a tree of such functions, one for
            each parameter. What it returns is *added* to the parameter, if nothing follows.
        memory: What makes the memory of a parameter: ``memory(param)``, any tree of tensors.

    Raises:
        ValueError: In a step, if an update is not shaped like its gradient.

    Example:
        >>> import torch
        >>> from diffopt_explicit import learned, unroll
        >>> log_rate = torch.tensor(-2.0, requires_grad=True)
        >>> tx = learned(lambda g: -log_rate.exp() * g)
        >>> end = unroll(lambda w: w.square().sum(), tx, torch.ones(2), steps=3).params
        >>> bool(torch.autograd.grad(end.sum(), log_rate)[0] < 0)
        True

    Source: Andrychowicz et al., *Learning to learn by gradient descent by gradient descent*,
    NeurIPS 2016.
    """
    return Learned(rule, memory)


def kronecker(factors: Tree) -> Kronecker:
    """Multiply each update by a matrix along each of its axes, which may be learned.

    A matrix ``X`` with factors ``(L, R)`` becomes ``L @ X @ R``: the product of its elements with
    the Kronecker product of ``R.T`` and ``L``, at the cost of the factors. In general::

        update[i, j, ...] = sum of L[i, a] * X[a, b, ...] * R[b, j] * ... over a, b, ...

    Where there are fewer factors than axes, the last axes count as one (the height and width of
    a filter); where there are none, the update stays as it is.

    Args:
        factors: For each parameter a tuple of square matrices, as `kronecker_factors` makes them.

    Example:
        >>> import torch
        >>> from diffopt_explicit import chain, kronecker, kronecker_factors, sgd
        >>> params = {"w": torch.ones(2, 3)}
        >>> factors = kronecker_factors(params)
        >>> tx = chain(kronecker(factors), sgd(0.1))  # plain gradient descent, to begin with

    Source: Park & Oliva, *Meta-curvature*, NeurIPS 2019, eqs. 4-7; Arnold et al., *When MAML can
    adapt fast and how to assist when it cannot*, AISTATS 2021.
    """
    return Kronecker(factors)


def kronecker_factors(params: Tree) -> Tree:
    """Make identities that require grad, one for each axis of each parameter, as `kronecker` uses.

    All axes after the second count as one.

    Example:
        >>> import torch
        >>> from diffopt_explicit import kronecker_factors
        >>> [tuple(f.shape) for f in kronecker_factors(torch.ones(8, 4, 3, 3))]
        [(8, 8), (4, 4), (9, 9)]
    """
    check_params(params)

    def identities(param: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.eye(size, dtype=param.dtype, device=param.device, requires_grad=True)
            for size in _sizes(param, 3)
        )

    return tree_map(identities, params)


def _sizes(param: Tensor, count: int) -> list[int]:
    """The sizes of a parameter's first axes, with all after the last of `count` in that one."""
    return list(param.flatten(count - 1).shape if 0 < count < param.dim() else param.shape)


def _check_factors(path: tuple[Any, ...], param: Tensor, factors: Any) -> None:
    sizes = _sizes(param, len(factors))
    if factors and [tuple(factor.shape) for factor in factors] != [(n, n) for n in sizes]:
        raise ValueError(
            f"The parameter at {place(path)} needs square factors of the sizes {sizes}, got "
            f"{', '.join(str(tuple(factor.shape)) for factor in factors)}."
        )


def _multiply(update: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    product = update.reshape(_sizes(update, len(factors)))
    for axis, factor in enumerate(factors):
        # The first from the left, as in `L @ X @ R`, the others from the right.
        along = product.movedim(axis, -1)
        with torch.autocast(update.device.type, enabled=False):  # which is for the loss
            product = (along @ (factor.T if axis == 0 else factor)).movedim(-1, axis)
    return product.reshape(update.shape)


def _describe(update: Any) -> str:
    return f"shape {tuple(update.shape)}" if isinstance(update, Tensor) else repr(update)

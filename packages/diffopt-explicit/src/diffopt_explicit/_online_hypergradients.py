"""Hypergradients after every step, for learning hyperparameters while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._gradient import Recorded
from diffopt_explicit._inner_step import InnerStep
from diffopt_explicit._outside import differentiable
from diffopt_explicit._pull import with_graph
from diffopt_explicit._tangents import Carried, assembled, contract, push
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import detach, tree_flatten, tree_leaves, tree_unflatten
from diffopt_explicit._unroll import batches_of


class OnlineStep(NamedTuple):
    """Where training is after a step, and where its hyperparameters should go."""

    params: Tree  # without a graph
    opt_state: Any
    loss: Tensor  # 0-d, before the step
    outer_loss: Tensor  # 0-d, after it
    hypergradient: Tree  # of `outer_loss`, like the learned tensors


def online_hypergradients(
    loss: Callable[..., Tensor],
    tx: Transform,
    params: Tree,
    *,
    outer: Callable[[Tree], Tensor],
    learned: Tree,
    steps: int | None = None,
    batches: Iterable[Tree] | None = None,
    opt_state: Any = None,
) -> Iterator[OnlineStep]:
    """Train, and after every step yield the exact gradient of an outer loss by a few numbers.

    Real-time hyperparameter optimization: how the parameters depend on the `learned` numbers,
    by all steps so far, is carried along in forward mode. Between the steps the numbers may be
    changed in place; what was carried then stands for their change in all steps alike.
    The memory is that of `Forward`, and does not grow with the steps, of which there may be
    endlessly many.

    Args:
        loss: The inner loss: a 0-d tensor, called as ``loss(params)`` or ``loss(params, batch)``.
        tx: The inner optimizer.
        params: Initial parameters, which count as constant. They are not changed.
        outer: The outer loss of the parameters, a 0-d tensor.
        learned: Tree of tensors that require grad, used by `loss`, `tx` or `outer`. Everything
            else counts as constant.
        steps: How many steps to take, if `loss` needs no batch.
        batches: What to pass to `loss` in each step; may be endless.
        opt_state: State of `tx` to go on from; by default a new one.

    Yields:
        The state after each step, both losses, and the hypergradient.

    Raises:
        ValueError: If a learned tensor does not require grad, or the first step and the outer loss
            do not depend on it.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adam, online_hypergradients
        >>> lr = torch.tensor(0.001, requires_grad=True)
        >>> loss = lambda w: (w - 3).square().sum()
        >>> for now in online_hypergradients(
        ...     loss, adam(lr), torch.zeros(2), outer=loss, learned=lr, steps=200
        ... ):
        ...     with torch.no_grad():
        ...         _ = lr.sub_(1e-3 * now.hypergradient.clamp(-1, 1))
        >>> bool(now.outer_loss < 0.1) and bool(lr > 0.01)  # fixed, the rate would end at 15.7
        True

    Source: Franceschi et al., *Forward and reverse gradient-based hyperparameter optimization*,
    ICML 2017, algorithm 2 and section 4.
    """
    wanted, spec = tree_flatten(learned)
    for place, tensor in enumerate(wanted):
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            raise ValueError(
                f"`learned` must be tensors that require grad; number {place} is {tensor!r}. "
                "Call `requires_grad_()` on it before it is given to the loss or the optimizer."
            )
    return _train(
        InnerStep(loss, tx, Recorded()),
        (params, tx.init(params) if opt_state is None else opt_state),
        batches_of(steps, batches),
        outer,
        wanted,
        spec,
    )


def _train(
    step: Any,
    start: Tree,
    inputs: Iterable[tuple[Tree, ...]],
    outer: Callable[[Tree], Tensor],
    wanted: list[Tensor],
    spec: Any,
) -> Iterator[OnlineStep]:
    carry, carried = detach(start), Carried()
    state = list(filter(differentiable, tree_leaves(carry)))
    for tensor in wanted:
        carried.add(tensor, state)
    reached: list[bool] | None = None
    for arguments in inputs:
        carry, leaves = with_graph(carry)
        with torch.enable_grad():
            after, loss, _ = step(carry, arguments, True)
        state = list(filter(differentiable, tree_leaves(after)))
        present = carried.of_inputs(wanted)
        carried.tangents, used = push(state, [*leaves, *wanted], present)
        carry, loss = detach((after, loss))
        outer_loss, numbers, direct = _outer(outer, carry[0], wanted, carried)
        if reached is None:
            reached = [a or b is not None for a, b in zip(used[len(leaves) :], direct, strict=True)]
            _check_reached(reached)
        hypergradient = [
            whole if besides is None else whole + besides
            for whole, besides in zip(assembled(wanted, numbers), direct, strict=True)
        ]
        params, opt_state = carry
        whole = tree_unflatten(spec, hypergradient)
        yield OnlineStep(params, opt_state, loss, outer_loss, whole)


def _outer(
    outer: Callable[[Tree], Tensor], params: Tree, wanted: list[Tensor], carried: Carried
) -> tuple[Tensor, list[Tensor | None], Sequence[Tensor | None]]:
    """The outer loss, its derivative by each learned number by way of the parameters, and else."""
    params, leaves = with_graph(params)
    with torch.enable_grad():
        value = outer(params)
    if value.dim() or not value.requires_grad:
        raise ValueError(
            "`outer` must return a 0-d tensor that depends on the parameters, got "
            f"{value!r}. Take its mean or sum."
        )
    found = torch.autograd.grad(value, [*leaves, *wanted], allow_unused=True)
    bars = found[: len(leaves)]
    numbers = [contract(bars, tangent[: len(leaves)]) for tangent in carried.tangents]
    return value.detach(), numbers, found[len(leaves) :]


def _check_reached(reached: list[bool]) -> None:
    if not all(reached):
        raise ValueError(
            f"Neither the first step nor the outer loss depends on number {reached.index(False)} "
            "of `learned`. Was it detached, or another tensor given to the optimizer?"
        )

"""Unrolls of any length in the memory of a step: derivatives are carried forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._outside import Outside, differentiable, tensors_in_graph
from diffopt_explicit._pull import with_graph, with_proxies
from diffopt_explicit._store import Inputs, Losses, Step, Store, Unrolled, track_last
from diffopt_explicit._tangents import Carried, Tangent, assembled, contract, push
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, tree_flatten, tree_leaves, tree_unflatten
from diffopt_explicit._uncompiled import ONE_GRAPH, never_traced


@dataclass(frozen=True)
class Forward:
    """Differentiate an unroll on the way there, with respect to a few numbers.

    Beside the state, its derivative with respect to each number is carried from step to step.
    Exact: what `Store` gives, to rounding. The memory is that of one step, and of one more state
    for each number; it does not grow with the steps. The time grows with the number of numbers:
    each costs about two gradients a step.

    For learning rates, regularization, and whatever else is few. What counts is every tensor
    that requires grad and that the steps use, by `meta_params`, in the optimizer or by closure,
    and the initial parameters, if they require grad: detach these unless they are to be learned.
    The gradient itself cannot be differentiated in turn.

    Attributes:
        limit: The most numbers to carry derivatives for; more are refused.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Forward, sgd, unroll
        >>> lr = torch.tensor(0.5, requires_grad=True)
        >>> w = torch.tensor(1.0)
        >>> result = unroll(lambda w: w**2 / 2, sgd(lr), w, steps=3, adjoint=Forward())
        >>> torch.autograd.grad(result.params, lr)  # (1 - lr) ** 3
        (tensor(-0.7500),)

    Source: Franceschi et al., *Forward and reverse gradient-based hyperparameter optimization*,
    ICML 2017, algorithm 2.
    """

    limit: int = 64

    def run(self, step: Step, start: Tree, inputs: Inputs, *, tracked_from: int) -> Unrolled:
        """Take one step for each of `inputs`; differentiable from step `tracked_from` on."""
        if torch.compiler.is_compiling():
            never_traced(Forward, "run")
            raise NotImplementedError(f"`Forward` is not traced: {ONE_GRAPH}.")
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                "`Forward` works by ordinary autograd, not under transforms of `torch.func`. "
                "Use `torch.func.jvp` or `jacfwd` of an unroll by `Store()`."
            )
        if not torch.is_grad_enabled():
            return Store().run(step, start, inputs, tracked_from=0)
        if tracked_from > 0:
            return track_last(self, step, start, inputs, tracked_from)
        return _Pushed(self.limit, step, start).take(inputs)


class _Pushed:
    """Steps that are taken with derivatives."""

    def __init__(self, limit: int, step: Step, start: Tree) -> None:
        self._limit, self._step = limit, step
        self._outside, self._carried = Outside(), Carried()
        self._carry = detach(start)
        state = list(filter(differentiable, tree_leaves(start)))
        for tensor in tensors_in_graph(start):
            self._add(tensor, state)
        self._of_losses: list[Losses] = [Losses() for _ in self._carried.tangents]
        self._of_extras: list[Tangent] = [[] for _ in self._carried.tangents]
        self._steps, self._besides = 0, 0  # taken, and tensors that they returned besides

    def take(self, inputs: Inputs) -> Unrolled:
        """Take all steps, and make what they give part of the graph."""
        losses, extras = Losses(), []
        for arguments in inputs:
            loss, extra = self._push(arguments)
            losses.append(loss)
            extras.append(extra)
        done = Unrolled(self._carry, losses.stack(), extras)
        leaves, spec = tree_flatten(done)
        places = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]
        tangents = [self._tangent(row, done.losses) for row in range(len(self._of_losses))]
        outputs = Pushed.apply(
            tangents, len(places), *(leaves[i] for i in places), *self._carried.tensors
        )
        for i, output in zip(places, outputs, strict=True):
            leaves[i] = output
        return tree_unflatten(spec, leaves)

    def _push(self, arguments: tuple[Tree, ...]) -> tuple[Tensor, Any]:
        """Take a step, and its derivatives with it."""
        carry, leaves = with_graph(self._carry)
        proxies: dict[Tensor, Tensor] = {}
        arguments = with_proxies(arguments, proxies)
        with torch.enable_grad():
            results = self._step(carry, arguments, True)
        self._outside.find(results, {id(tensor) for tensor in [*leaves, *proxies.values()]})
        present = [*proxies, *self._outside.leaves]
        self._carry_new(present, leaves)
        after, loss, extra = results
        state = list(filter(differentiable, tree_leaves(after)))
        besides = list(filter(differentiable, tree_leaves(extra)))
        outputs = [*state, loss, *besides]
        inputs = [*leaves, *proxies.values(), *self._outside.leaves]
        pushed, _ = push(outputs, inputs, self._carried.of_inputs(present))
        for row, tangent in enumerate(pushed):
            self._carried.tangents[row] = tangent[: len(state)]
            of_loss = tangent[len(state)]
            self._of_losses[row].append(torch.zeros_like(loss) if of_loss is None else of_loss)
            self._of_extras[row] += tangent[len(state) + 1 :]
        self._steps, self._besides = self._steps + 1, self._besides + len(besides)
        self._carry, loss, extra = detach(results)
        return loss, extra

    def _carry_new(self, present: Sequence[Tensor], state: Sequence[Tensor]) -> None:
        """Carry derivatives also with respect to what is used for the first time."""
        known = set(map(id, self._carried.tensors))
        for tensor in present:
            if id(tensor) not in known:
                self._add(tensor, state)
        for _ in range(len(self._carried.tangents) - len(self._of_losses)):
            self._of_losses.append(Losses())
            self._of_extras.append([None] * self._besides)

    def _add(self, tensor: Tensor, state: Sequence[Tensor]) -> None:
        numbers = len(self._carried.tangents) + tensor.numel()
        if numbers > self._limit:
            raise ValueError(
                f"`Forward` would carry {numbers} derivatives, with those of a tensor of shape "
                f"{tuple(tensor.shape)}, more than `limit={self._limit}`. Detach what is not to be "
                "learned (initial parameters, say), or use `Replay()` for many numbers."
            )
        self._carried.add(tensor, state)

    def _tangent(self, row: int, losses: Tensor) -> Tangent:
        """The derivative of all that the steps gave with respect to one number."""
        of_losses = self._of_losses[row].stack().to(losses)
        before = losses.new_zeros(self._steps - len(of_losses))  # its first use
        of_losses = torch.cat([before, of_losses])
        return [*self._carried.tangents[row], of_losses, *self._of_extras[row]]


class Pushed(torch.autograd.Function):
    """What an unroll gives, as a function with a known derivative."""

    @staticmethod
    def forward(ctx: Any, tangents: list[Tangent], count: int, *tensors: Tensor) -> Any:
        ctx.tangents, ctx.count = tangents, count
        ctx.like = [tensor.detach() for tensor in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "`Forward` gives first derivatives. To differentiate the gradient in turn "
                "(`create_graph=True`), unroll by `Store()` or `Replay()`."
            )
        gradients = assembled(ctx.like, [contract(cotangents, row) for row in ctx.tangents])
        return None, None, *[None] * ctx.count, *gradients

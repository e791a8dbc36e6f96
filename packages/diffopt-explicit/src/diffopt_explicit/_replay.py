"""Unrolls that fit in memory: steps are taken again, one by one, to be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffopt_explicit import _binomial
from diffopt_explicit._outside import Outside, differentiable, tensors_in_graph
from diffopt_explicit._snapshots import Home, Snapshot, nothing_changed, take_snapshot
from diffopt_explicit._store import Inputs, Step, Store, Unrolled
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import (
    detach,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
    wide,
)


@dataclass(frozen=True)
class Replay:
    """Differentiate an unroll by taking its steps again, in reverse order.

    On the way forward no graph is kept, only the state (parameters, optimizer state, random
    numbers) before some of the steps. On the way back the state before each step is computed
    again from the nearest of these, and the step is taken once more, with a graph, to be
    differentiated alone. Exact: what `Store` gives, to rounding. The memory is that of the
    snapshots and of one step; the time that of `Store` and of ``advances(steps)`` steps without
    a graph. The snapshots stand where they save the most steps (binomial checkpointing).

    All tensors that the loss and the optimizer use get their gradients, also those that they
    close over; but work before the unroll that leads to such a tensor (a network that computes
    features, say) is differentiated anew in each step, unless it is passed by `meta_params` or
    `batches`. To differentiate the gradient in turn, the unroll is done again by `Store`.

    Attributes:
        snapshots: How many states to keep, at least 1; by default twice the square root of the
            number of steps, with which steps are taken less than twice besides, on average.
        modules: Modules whose buffers the loss changes, such as running statistics. They are
            put back for each step that is taken again.
        offload: Where to keep the snapshots: a device such as ``"cpu"``, or a folder as a
            `pathlib.Path`.
        verify: Whether to compare a step with what it gave before, to find steps that are not
            functions: the ``"last"`` one, ``"always"`` each, or ``"never"``. What is compared
            is the norm of each tensor, to half the digits of the dtype.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Replay, sgd, unroll
        >>> lr = torch.tensor(0.5, requires_grad=True)
        >>> w = torch.tensor(1.0)
        >>> result = unroll(lambda w: w**2 / 2, sgd(lr), w, steps=3, adjoint=Replay())
        >>> result.params  # (1 - lr) ** 3
        tensor(0.1250, grad_fn=<ReplayedBackward>)
        >>> torch.autograd.grad(result.params, lr)
        (tensor(-0.7500),)

    Source: Griewank & Walther, *Algorithm 799: revolve*, ACM TOMS 26, 2000; Engstrom et al.,
    *Optimizing ML training with metagradient descent*, 2025, for its use on training runs.
    """

    snapshots: int | None = None
    modules: tuple[nn.Module, ...] = ()
    offload: Home = None
    verify: Literal["never", "last", "always"] = "last"

    def __post_init__(self) -> None:
        if self.snapshots is not None and self.snapshots < 1:
            raise ValueError(f"`snapshots` must be at least 1, got {self.snapshots}.")
        if self.verify not in ("never", "last", "always"):
            raise ValueError(f"`verify` must be 'never', 'last' or 'always', got {self.verify!r}.")

    def slots(self, steps: int) -> int:
        """How many snapshots an unroll of so many steps keeps at once."""
        wanted = math.ceil(2 * math.sqrt(steps)) if self.snapshots is None else self.snapshots
        return max(1, min(wanted, steps))

    def advances(self, steps: int) -> int:
        """How many steps without a graph are taken, on the way there and back."""
        return _binomial.advances(steps, self.slots(steps)) + (steps > 0)

    def run(self, step: Step, start: Tree, inputs: Inputs, *, tracked_from: int) -> Unrolled:
        """Take one step for each of `inputs`; differentiable from step `tracked_from` on."""
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
            raise NotImplementedError(
                "`Replay` works by ordinary autograd (`loss.backward()`, `torch.autograd.grad`), "
                "not under transforms of `torch.func` or `torch.compile`. Use `Store()` there."
            )
        first = min(max(tracked_from, 0), len(inputs))
        if first == len(inputs) or not torch.is_grad_enabled():
            return Store().run(step, start, inputs, tracked_from=len(inputs))
        before = Store().run(step, start, inputs[:first], tracked_from=first)
        carry = before.carry if first else start
        after = _Reversible(self, step, carry, inputs[first:]).run()
        losses = torch.cat([before.losses, after.losses]) if first else after.losses
        return Unrolled(after.carry, losses, [*before.extras, *after.extras])


class _Reversible:
    """Steps that were taken, and can be taken again in any order."""

    def __init__(self, adjoint: Replay, step: Step, start: Tree, inputs: Inputs) -> None:
        self._adjoint, self._step, self._start, self._inputs = adjoint, step, start, inputs
        self._slots = adjoint.slots(len(inputs))
        self._arguments = tensors_in_graph(start, inputs)
        self._outside = Outside()
        self._snapshots: list[Snapshot] = []
        self._fingerprints: dict[int, Tensor] = {}  # of the carry after a step

    def run(self) -> Unrolled:
        """Take all steps, and make what they give part of the graph."""
        steps = len(self._inputs)
        carry, losses, extras = detach(self._start), torch.empty(steps), []
        # The last one besides, since the way back begins there.
        wanted = {0, *_binomial.snapshots(0, steps - 1, self._slots), steps - 1}
        for index in range(steps):
            if index in wanted:
                self._snapshots.append(self._snapshot(index, carry))
            done = self._advance(index, carry)
            self._outside.find(done)
            carry, loss, extra = detach(done)
            losses = losses.to(loss) if index == 0 else losses
            losses[index] = loss
            extras.append(extra)
            if self._is_verified(index):
                self._fingerprints[index] = _fingerprint(carry)
        leaves, spec = tree_flatten((carry, losses, extras))
        places = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]
        tensors = [*self._arguments, *self._outside.leaves]
        outputs = Replayed.apply(self, len(places), *(leaves[i] for i in places), *tensors)
        for i, output in zip(places, outputs, strict=True):
            leaves[i] = output
        return Unrolled(*tree_unflatten(spec, leaves))

    def _snapshot(self, index: int, carry: Tree) -> Snapshot:
        return take_snapshot(index, carry, self._adjoint.modules, self._adjoint.offload)

    def _advance(self, index: int, carry: Tree) -> tuple[Tree, Tensor, Any]:
        """Take a step that has no graph but that of tensors from outside."""
        with torch.enable_grad():
            return self._step(carry, detach(self._inputs[index]), False)

    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of `_arguments` and of the tensors from outside, step by step."""
        # A second call begins with the first snapshot alone, and takes the others anew.
        snapshots, self._snapshots = self._snapshots, self._snapshots[:1]
        gradients = _Sums([*self._arguments, *self._outside.leaves])
        bars = list(cotangents)
        with nothing_changed(self._start, self._adjoint.modules):
            for index in reversed(range(len(self._inputs))):
                carry = self._return_to(index, snapshots)
                bars = self._step_back(index, carry, bars, gradients)
        starts = filter(differentiable, tree_leaves(self._start))
        for start, bar in zip(starts, bars[:-1], strict=True):  # the last is of the losses
            gradients.add(start, bar)
        return gradients.values

    def _return_to(self, index: int, snapshots: list[Snapshot]) -> Tree:
        """Compute the state before a step again; what is too late in `snapshots` is dropped."""
        while snapshots[-1].index > index:
            snapshots.pop()
        at = snapshots[-1].index
        carry = snapshots[-1].restore(self._adjoint.modules)
        wanted = set(_binomial.snapshots(at, index, self._slots - len(snapshots) + 1))
        for i in range(at, index):
            if i in wanted:
                snapshots.append(self._snapshot(i, carry))
            carry, _, _ = detach(self._advance(i, carry))
        return carry

    def _step_back(
        self, index: int, carry: Tree, bars: list[Tensor | None], gradients: _Sums
    ) -> list[Tensor | None]:
        """Turn the cotangents of all that follows a step into those of what precedes it.

        Both are of the carry, then of the losses and of what the loss returned besides, in all
        steps so far.
        """
        carry, leaves = _with_graph(carry)
        arguments, proxies = self._proxies(self._inputs[index])
        with torch.enable_grad():
            after, loss, extra = self._step(carry, arguments, True)
        if self._is_verified(index):
            self._compare(index, after)
        outputs = list(filter(differentiable, tree_leaves(after)))
        besides = list(filter(differentiable, tree_leaves(extra)))
        of_losses = bars[len(outputs)]
        bars_here = [*bars[: len(outputs)], None if of_losses is None else of_losses[index]]
        bars_here += bars[len(bars) - len(besides) :]
        found = _gradients(
            [*outputs, loss, *besides],
            bars_here,
            [*leaves, *proxies.values(), *self._outside.leaves],
            retain_graph=True,  # of what led to tensors from outside
        )
        of_carry, of_others = found[: len(leaves)], found[len(leaves) :]
        others = [*proxies, *self._outside.leaves]
        for tensor, gradient in zip(others, of_others, strict=True):
            gradients.add(tensor, gradient)
        return [*of_carry, *bars[len(outputs) : len(bars) - len(besides)]]

    def _proxies(self, tree: Tree) -> tuple[Tree, dict[Tensor, Tensor]]:
        """The tree with tensors of its own for those that are in a graph."""
        proxies = {t: t.detach().requires_grad_() for t in tensors_in_graph(tree)}
        return tree_map(lambda leaf: _proxy(leaf, proxies), tree), proxies

    def _is_verified(self, index: int) -> bool:
        if self._adjoint.verify == "last":
            return index == len(self._inputs) - 1
        return self._adjoint.verify == "always"

    def _compare(self, index: int, carry: Tree) -> None:
        """Refuse a step that gives something else than before."""
        expected, found = self._fingerprints[index], _fingerprint(detach(carry))
        if found.shape == expected.shape and torch.allclose(
            found, expected, rtol=_half_precision(carry), atol=0, equal_nan=True
        ):
            return
        raise RuntimeError(
            f"Step {index} of the unroll gave another result when it was taken again, so its "
            "gradient would be wrong. A step must be a function of its arguments and of torch's "
            "default random numbers: name modules with running statistics in "
            "`Replay(modules=...)`, and use no generator of your own."
        )

    def pull_with_graph(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The same as `pull`, as a function that can be differentiated."""
        with nothing_changed(self._start, self._adjoint.modules), torch.enable_grad():
            self._snapshots[0].restore(self._adjoint.modules)
            again = Store().run(self._step, self._start, self._inputs, tracked_from=0)
            outputs = list(filter(differentiable, tree_leaves(tuple(again))))
            inputs = [*self._arguments, *self._outside.leaves]
            return _gradients(outputs, cotangents, inputs, create_graph=True)


class _Sums:
    """A sum for each of some tensors, of what is added."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self.values: list[Tensor | None] = [None] * len(tensors)

    def add(self, tensor: Tensor, value: Tensor | None) -> None:
        place = self._places.get(id(tensor))
        if place is None or value is None:
            return
        old = self.values[place]
        self.values[place] = value if old is None else old + value


def _with_graph(tree: Tree) -> tuple[Tree, list[Tensor]]:
    """The tree with leaves that gradients can be taken of, and these."""
    leaves, spec = tree_flatten(tree)
    leaves = [t.detach().requires_grad_() if differentiable(t) else t for t in leaves]
    return tree_unflatten(spec, leaves), list(filter(differentiable, leaves))


def _proxy(leaf: Any, proxies: dict[Tensor, Tensor]) -> Any:
    return proxies.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf


def _gradients(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    **options: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad`, where outputs may have no cotangent, or no graph."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if cotangent is not None and output.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    wanted, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(wanted, inputs, given, allow_unused=True, **options))


def _fingerprint(carry: Tree) -> Tensor:
    """The norm of each leaf, by which two states are told apart."""
    leaves = [wide(leaf) for leaf in tree_leaves(carry) if differentiable(leaf)]
    norms = [torch.linalg.vector_norm(leaf).double().cpu() for leaf in leaves]
    return torch.stack(norms) if norms else torch.empty(0)


def _half_precision(tree: Tree) -> float:
    """The root of the unit roundoff of the widest error among some tensors."""
    dtypes = {leaf.dtype for leaf in tree_leaves(tree) if differentiable(leaf)}
    return max((torch.finfo(dtype).eps ** 0.5 for dtype in dtypes), default=0.0)


class Replayed(torch.autograd.Function):
    """What an unroll gives, as a function of all tensors that it depends on."""

    @staticmethod
    def forward(ctx: Any, steps: _Reversible, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.steps, ctx.count = steps, count
        ctx.save_for_backward(*tensors[count:])  # to notice if they are changed in place
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        _ = ctx.saved_tensors
        pull = ctx.steps.pull_with_graph if torch.is_grad_enabled() else ctx.steps.pull
        return None, None, *[None] * ctx.count, *pull(cotangents)

"""Steps that were taken, and can be taken again in any order to be differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._compiled_step import CompiledStep, Promised
from diffopt_explicit._inner_step import InnerStep
from diffopt_explicit._outside import (
    Outside,
    differentiable,
    differentiable_leaves,
    tensors_in_graph,
)
from diffopt_explicit._placement import Online, Placement
from diffopt_explicit._pull import Pairs, Sums, gradients_of, with_graph, with_proxies
from diffopt_explicit._shelf import Shelf
from diffopt_explicit._snapshots import (
    Home,
    Snapshot,
    Unchanged,
    nothing_changed,
    take_snapshot,
)
from diffopt_explicit._store import Losses, Step, Store, Unrolled, length
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, tree_leaves
from diffopt_explicit._verify import Fingerprint, fingerprint, is_alike
from diffopt_explicit._watch import Phase, Progress

if TYPE_CHECKING:
    from diffopt_explicit._replay import Replay

UNSHELVED = 16  # the states that stay where they are, as it would cost more to move so few


class Taken(NamedTuple):
    """A step with its graph."""

    carry: list[Tensor]  # before the step, as leaves of the graph
    arguments: dict[Tensor, Tensor]  # by what they stand for, leaves too
    results: tuple[Tree, Tensor, Any]  # of the step

    @property
    def counts(self) -> tuple[int, int]:
        """How many tensors the carry and the extra have that can have gradients."""
        after, _, extra = self.results
        return len(differentiable_leaves(after)), len(differentiable_leaves(extra))

    def pull(
        self, cotangents: Sequence[Tensor | None], outside: list[Tensor]
    ) -> tuple[list[Tensor | None], Pairs]:
        """The gradients of the carry before the step, and of all else that it depends on.

        Args:
            cotangents: Of the carry after the step, of the loss, and of the extra.
            outside: Leaves of the graph that the steps close over.
        """
        after, loss, extra = self.results
        outputs = [*differentiable_leaves(after), loss, *differentiable_leaves(extra)]
        found = gradients_of(
            outputs,
            cotangents,
            [*self.carry, *self.arguments.values(), *outside],
            retain_graph=bool(outside),  # of what led to tensors from outside
        )
        count = len(self.carry)
        return found[:count], zip([*self.arguments, *outside], found[count:], strict=True)


class Reversible:
    """Steps of an unroll, for the adjoint that is asked for."""

    def __init__(self, adjoint: Replay, step: Step, start: Tree) -> None:
        self._adjoint, self._step, self._start = adjoint, step, start
        self._inputs: list[Unchanged] = []
        self._arguments = {id(tensor): tensor for tensor in tensors_in_graph(start)}
        self._outside = Outside()
        self._snapshots: list[Snapshot] = []
        self._shelf = Shelf()
        self._last: Taken | None = None  # kept until it is differentiated
        self._before: tuple[int, Tree] | None = None  # the step that was taken last, and its carry
        self._fingerprints: dict[int, Fingerprint] = {}  # of the carry after a step
        self._verified: int | None = None  # which step, if one
        self._steps: int | None = None  # how many, once that is known
        self._placement: Placement | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that the steps depend on, and that is part of a graph."""
        return [*self._arguments.values(), *self.outside]

    @property
    def outside(self) -> list[Tensor]:
        """Those of them that reached the steps by closure."""
        return self._outside.leaves

    def take(self, inputs: Iterable[tuple[Tree, ...]]) -> Unrolled:
        """Take one step for each of `inputs`; what they give has no graph."""
        self._steps = length(inputs)
        wanted = self._wanted()
        online, carry, losses, extras = Online(), detach(self._start), Losses(), []
        for index, arguments in enumerate(inputs):
            began = perf_counter()
            self._inputs.append(Unchanged(arguments))
            self._arguments |= {id(tensor): tensor for tensor in tensors_in_graph(arguments)}
            if wanted is not None and index in wanted:
                self._keep(index, carry, self._snapshots)
            elif wanted is None:
                self._keep_online(online, index, carry)
            first_of_two = index == 0 and self._adjoint.verify == "first"
            if first_of_two:
                self._rehearse(carry)
            carry, loss, extra = detach(self._first_time(index, carry))
            losses.append(loss)
            extras.append(extra)
            if first_of_two:
                self._compare(0, carry)
            elif self._is_verified(index):
                self._fingerprints[index] = fingerprint(carry)
            self._tell("forward", index, began)
        self._end(carry)
        return Unrolled(carry, losses.stack(), extras)

    def _wanted(self) -> set[int] | None:
        """The states to keep on the way there, or None where its end is not known."""
        if self._steps is None:
            return None
        self._placement = self._adjoint.placement(self._steps)
        # The last step is not taken again; the way back begins with the one before.
        last = max(0, self._steps - 2)
        self._verified = last if self._adjoint.verify == "last" and self._steps > 1 else None
        return {0, *self._placement.between(0, last, 1), last}

    def _first_time(self, index: int, carry: Tree) -> tuple[Tree, Tensor, Any]:
        """Take a step on the way there, where tensors from outside are looked for."""
        if index + 1 == self._steps:
            self._last = self._with_graph(index, carry)
            mine = {id(tensor) for tensor in [*self._last.carry, *self._last.arguments.values()]}
            self._outside.find(self._last.results, mine)
            return self._last.results
        with torch.enable_grad():
            done = self._step(carry, detach(self._inputs[index].load()), False)
        self._outside.find(done)
        return done

    def _end(self, carry: Tree) -> None:
        """Note what could not be known before the last step."""
        if self._steps is None:
            self._steps = len(self._inputs)
            self._placement = self._adjoint.placement(self._steps)
            if self._adjoint.verify == "last":
                self._verified = self._steps - 1
                self._fingerprints[self._verified] = fingerprint(carry)

    def _keep(self, index: int, carry: Tree, snapshots: list[Snapshot]) -> None:
        """Add the state before a step."""
        taken = take_snapshot(index, carry, self._adjoint.modules)
        snapshots.append(taken.moved(self._home(len(snapshots))))

    def _home(self, position: int) -> Home | Shelf:
        """Where the state with so many before it is kept."""
        away = self._adjoint.offload
        return self._shelf if away is None and position >= UNSHELVED else away

    def _keep_online(self, online: Online, index: int, carry: Tree) -> None:
        """Let a snapshot take another's place; it is moved once it will stay."""
        dropped = online.dropped(index, self._adjoint.slots(index + 2))
        if dropped == index:
            return
        self._snapshots = [old for old in self._snapshots if old.index != dropped]
        if self._snapshots:
            home = self._home(len(self._snapshots) - 1)
            self._snapshots[-1] = self._snapshots[-1].moved(home)
        self._snapshots.append(take_snapshot(index, carry, self._adjoint.modules))

    def pull(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of `tensors`, step by step."""
        # A second call begins with the first snapshot alone, and takes the others anew.
        snapshots, self._snapshots = self._snapshots, self._snapshots[:1]
        gradients = Sums(self.tensors)
        bars = list(cotangents)
        with nothing_changed(self._start, self._adjoint.modules):
            for index in reversed(range(len(self._inputs))):
                taken, self._last = self._last, None
                if taken is None:
                    taken = self._again(index, snapshots)
                began = perf_counter()
                bars = self._step_back(index, taken, bars, gradients)
                self._tell("backward", index, began)
        starts = filter(differentiable, tree_leaves(self._start))
        for start, bar in zip(starts, bars[:-1], strict=True):  # the last is of the losses
            gradients.add(start, bar)
        return gradients.values

    def _again(self, index: int, snapshots: list[Snapshot]) -> Taken | Promised:
        """Take a step with a graph, from a state that is computed again."""
        carry = self._return_to(index, snapshots)
        if self._is_verified(index):
            self._before = None
            taken = self._with_graph(index, carry)
            self._compare(index, taken.results[0])
            return taken
        promised = None
        if isinstance(self._step, CompiledStep):
            promised = self._step.promised(carry, self._inputs[index].load())
        return promised or self._with_graph(index, carry)

    def _return_to(self, index: int, snapshots: list[Snapshot]) -> Tree:
        """Compute the state before a step again; what is too late in `snapshots` is dropped."""
        assert self._placement is not None
        while snapshots[-1].index > index:
            snapshots.pop()
        at = snapshots[-1].index
        carry = snapshots[-1].restore(self._adjoint.modules)
        wanted = set(self._placement.between(at, index, len(snapshots)))
        for i in range(at, index):
            began = perf_counter()
            if i in wanted:
                self._keep(i, carry, snapshots)
            carry = self._advance(i, carry)
            self._tell("again", i, began)
        return carry

    def _advance(self, index: int, carry: Tree) -> Tree:
        """The state after a step, which is taken without a graph."""
        with torch.no_grad():
            return detach(self._step(carry, detach(self._inputs[index].load()), False)[0])

    def _with_graph(self, index: int, carry: Tree) -> Taken:
        """Take a step from tensors of its own."""
        step, before = self._step, self._before
        self._before = index, carry
        if before is not None and before[0] == index + 1 and isinstance(step, InnerStep):
            step = partial(step, known=before[1])  # as it was computed on the way there
        # What the run began with needs a gradient only where it is part of a graph.
        carry, leaves = with_graph(carry, None if index else self._start)
        arguments, proxies = with_proxies(self._inputs[index].load())
        with torch.enable_grad():
            return Taken(leaves, proxies, step(carry, arguments, True))

    def _step_back(
        self, index: int, taken: Taken | Promised, bars: list[Tensor | None], gradients: Sums
    ) -> list[Tensor | None]:
        """Turn the cotangents of all that follows a step into those of what precedes it.

        Both are of the carry, then of the losses and of what the loss returned besides, in all
        steps so far.
        """
        count, besides = taken.counts
        of_losses, end = bars[count], len(bars) - besides
        of_loss = None if of_losses is None else of_losses[index]
        of_carry, of_others = taken.pull([*bars[:count], of_loss, *bars[end:]], self.outside)
        for tensor, gradient in of_others:
            gradients.add(tensor, gradient)
        return [*of_carry, *bars[count:end]]

    def _is_verified(self, index: int) -> bool:
        return self._adjoint.verify == "always" or index == self._verified

    def _rehearse(self, carry: Tree) -> None:
        """Take the first step, as if it had not been."""
        with nothing_changed(self._start, self._adjoint.modules):
            self._fingerprints[0] = fingerprint(self._advance(0, carry))

    def _compare(self, index: int, carry: Tree) -> None:
        if not is_alike(self._fingerprints[index], carry):
            raise RuntimeError(
                f"Step {index} of the unroll gave another result when it was taken again, so its "
                "gradient would be wrong. A step must be a function of its arguments and of "
                "torch's default random numbers: name modules with running statistics in "
                "`Replay(modules=...)`, and use no generator of your own."
            )

    def _tell(self, phase: Phase, index: int, began: float) -> None:
        if self._adjoint.watch is not None:
            self._adjoint.watch(Progress(phase, index, self._steps, perf_counter() - began))

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """For a while, let random numbers and buffers be as before the first step."""
        with nothing_changed(self._start, self._adjoint.modules):
            self._snapshots[0].restore(self._adjoint.modules)
            yield

    def pull_with_graph(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The same as `pull`, as a function that can be differentiated."""
        inputs = [arguments.load() for arguments in self._inputs]
        with self.as_before(), torch.enable_grad():
            again = Store().run(self._step, self._start, inputs, tracked_from=0)
            outputs = list(filter(differentiable, tree_leaves(tuple(again))))
            return gradients_of(outputs, cotangents, self.tensors, create_graph=True)

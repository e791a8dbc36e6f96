"""Steps that were taken, and can be taken again in any order to be differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffopt_explicit._compiled_step import CompiledStep, Promised
from diffopt_explicit._course import Course
from diffopt_explicit._inner_step import InnerStep
from diffopt_explicit._outside import Outside, differentiable, tensors_in_graph
from diffopt_explicit._placement import Online
from diffopt_explicit._pull import Sums, gradients_of
from diffopt_explicit._shelf import Shelf
from diffopt_explicit._snapshots import (
    Home,
    Snapshot,
    Unchanged,
    nothing_changed,
    take_snapshot,
)
from diffopt_explicit._store import Losses, Step, Store, Unrolled, length
from diffopt_explicit._taken import Taken
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, tree_leaves
from diffopt_explicit._verify import Fingerprint, fingerprint, is_alike
from diffopt_explicit._watch import Phase, Progress

if TYPE_CHECKING:
    from diffopt_explicit._replay import Replay

UNSHELVED = 16  # the states that stay where they are, as it would cost more to move so few


class Reversible:
    """Steps of an unroll, for the adjoint that is asked for."""

    def __init__(self, adjoint: Replay, step: Step, start: Tree, size: int) -> None:
        self._adjoint, self._step, self._start = adjoint, step, start
        self._size = size  # how many steps are differentiated at once
        self._inputs: list[Unchanged] = []
        self._arguments = {id(tensor): tensor for tensor in tensors_in_graph(start)}
        self._outside = Outside()
        self._snapshots: list[Snapshot] = []
        self._shelf = Shelf()
        self._last: Taken | None = None  # the last steps, kept until they are differentiated
        self._before: tuple[int, Tree] | None = None  # where the steps taken last began
        self._fingerprints: dict[int, Fingerprint] = {}  # of the carry after a step
        self._verified: int | None = None  # which step, if one
        self._steps: int | None = None  # how many, once that is known
        self._course: Course | None = None

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
        if self._steps is not None:
            self._course = course = self._adjoint.course(self._steps, self._size)
            if course.turn and self._adjoint.verify == "last":
                self._verified = course.turn - 1  # the last step that is taken again
        online, carry, losses, extras = Online(), detach(self._start), Losses(), []
        for index, arguments in enumerate(inputs):
            began = perf_counter()
            if self._inputs and self._inputs[-1].holds(arguments):
                self._inputs.append(self._inputs[-1])  # one for maybe 100,000 steps
            else:
                self._inputs.append(Unchanged(arguments))
                self._arguments |= {id(tensor): tensor for tensor in tensors_in_graph(arguments)}
            if self._course is None:
                self._keep_online(online, index, carry)
            elif index in self._course.there:
                self._keep(index, carry, self._snapshots)
            first_of_two = index == 0 and self._adjoint.verify == "first"
            if first_of_two:
                self._rehearse(carry)
            carry, loss, extra = self._first_time(index, carry)
            losses.append(loss)
            extras.append(extra)
            if first_of_two:
                self._compare(0, carry)
            elif self._is_verified(index):
                self._fingerprints[index] = fingerprint(carry)
            self._tell("forward", began, index)
        self._end(carry)
        return Unrolled(carry, losses.stack(), extras)

    def _first_time(self, index: int, carry: Tree) -> tuple[Tree, Tensor, Any]:
        """Take a step on the way there, where tensors from outside are looked for."""
        if self._course is not None and index >= self._course.turn:
            return self._keep_graph(index, self._course, carry)
        with torch.enable_grad():
            done = self._step(carry, detach(self._inputs[index].load()), False)
        self._outside.find(done)
        return detach(done)

    def _keep_graph(self, index: int, course: Course, carry: Tree) -> tuple[Tree, Tensor, Any]:
        """Take a step that is not taken again."""
        self._last = taken = self._last or self._begun(index, carry)
        after, loss, extra = taken.add(self._step, self._inputs[index].load())
        if index + 1 == course.steps:
            self._outside.find(taken.results, set(map(id, taken.own)))
            after = detach(after)  # of the others, the next step goes on
        return after, loss.detach(), detach(extra)

    def _begun(self, index: int, carry: Tree) -> Taken:
        # What the run began with needs a gradient only where it is part of a graph.
        return Taken(index, carry, None if index else self._start)

    def _end(self, carry: Tree) -> None:
        """Note what could not be known before the last step."""
        if self._steps is None:
            self._steps = len(self._inputs)
            self._course = self._adjoint.course(self._steps, self._size)
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
        """The gradients of `tensors`, some steps at once."""
        # A second call begins with the first snapshot alone, and takes the others anew.
        snapshots, self._snapshots = self._snapshots, self._snapshots[:1]
        gradients, bars, end = Sums(self.tensors), list(cotangents), len(self._inputs)
        with nothing_changed(self._start, self._adjoint.modules):
            while end:
                taken, self._last = self._last, None
                if taken is None:
                    taken = self._again(end, snapshots)
                began = perf_counter()
                bars = self._step_back(taken, end, bars, gradients)
                self._tell("backward", began, *reversed(range(taken.first, end)))
                end = taken.first
        starts = filter(differentiable, tree_leaves(self._start))
        for start, bar in zip(starts, bars[:-1], strict=True):  # the last is of the losses
            gradients.add(start, bar)
        return gradients.values

    def _again(self, end: int, snapshots: list[Snapshot]) -> Taken | Promised:
        """Take the steps before `end` with a graph, from a state that is computed again."""
        assert self._course is not None
        while snapshots[-1].index >= end:
            snapshots.pop()
        begin = self._course.begin(end, snapshots[-1].index)
        carry = self._return_to(begin, snapshots)
        if (
            isinstance(self._step, CompiledStep)
            and begin + 1 == end
            and not self._is_verified(begin)
        ):
            promised = self._step.promised(begin, carry, self._inputs[begin].load())
            if promised is not None:
                return promised
        return self._with_graph(begin, end, carry)

    def _return_to(self, index: int, snapshots: list[Snapshot]) -> Tree:
        """Compute the state before a step again, from the last of `snapshots`."""
        assert self._course is not None
        at = snapshots[-1].index
        carry = snapshots[-1].restore(self._adjoint.modules)
        wanted = set(self._course.between(at, index, len(snapshots)))
        for i in range(at, index):
            began = perf_counter()
            if i in wanted:
                self._keep(i, carry, snapshots)
            carry = self._advance(i, carry)
            self._tell("again", began, i)
        return carry

    def _advance(self, index: int, carry: Tree) -> Tree:
        """The state after a step, which is taken without a graph."""
        with torch.no_grad():
            return detach(self._step(carry, detach(self._inputs[index].load()), False)[0])

    def _with_graph(self, begin: int, end: int, carry: Tree) -> Taken:
        """Take some steps in a row with their graph."""
        before, self._before = self._before, (begin, carry)
        taken = self._begun(begin, carry)
        for index in range(begin, end):
            step, verified = self._step, self._is_verified(index)
            after = None if before is None or before[0] != index + 1 else before[1]
            if after is not None and not verified and isinstance(step, InnerStep):
                step = partial(step, known=after)  # as it was computed on the way there
            taken.add(step, self._inputs[index].load())
            if verified:
                self._compare(index, taken.carry)
        return taken

    def _step_back(
        self, taken: Taken | Promised, end: int, bars: list[Tensor | None], gradients: Sums
    ) -> list[Tensor | None]:
        """Turn the cotangents of all that follows some steps into those of what precedes them.

        Both are of the carry, then of the losses and of what the loss returned besides, in all
        steps so far.
        """
        count, besides = taken.counts
        of_losses, rest = bars[count], len(bars) - besides
        of_mine = [None if of_losses is None else of_losses[i] for i in range(taken.first, end)]
        mine = [*bars[:count], *of_mine, *bars[rest:]]
        return [*taken.pull(mine, self.outside, gradients), *bars[count:rest]]

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

    def _tell(self, phase: Phase, began: float, *indices: int) -> None:
        if self._adjoint.watch is not None:
            seconds = (perf_counter() - began) / len(indices)
            for index in indices:
                self._adjoint.watch(Progress(phase, index, self._steps, seconds))

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

"""A problem in the course of its solution."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from pytree_core import tree_leaves, tree_map
from torch import Tensor

from diffopt_implicit._condition import random_states
from diffopt_implicit._multilevel._batches import Batches
from diffopt_implicit._multilevel._descent import TransformDescent, descent_of
from diffopt_implicit._multilevel._loss_scale import LossScale
from diffopt_implicit._multilevel._problem import Problem
from diffopt_implicit._multilevel._randomness import on_cpu
from diffopt_implicit._multilevel._unrolled_steps import Moment, Record, Step
from diffopt_implicit._multilevel._variables import detached_copy, overwrite, variables_of
from diffopt_implicit._torch import Tensors


class Level:
    """All that changes while a problem is solved.

    Attributes:
        turns: How many turns it has had.
        count: How many steps it has taken.
        last: What its last step was taken on.
        recorded: How many of its last steps are kept to be taken again.
    """

    def __init__(self, problem: Problem, recorded: int) -> None:
        self.problem, self.recorded = problem, recorded
        self.variables = variables_of(problem.name, problem.params)
        self.descent = descent_of(
            problem.name, self.variables, problem.optimizer, problem.scheduler
        )
        self.batches = Batches(problem.name, problem.data)
        self.scale = LossScale() if problem.autocast is torch.float16 else None
        self.turns = self.count = 0
        self.last: Step = ()
        self.start: dict[str, Any] | None = None  # where to roll back to
        self.record: Record | None = None
        self.reads: dict[str, set[int]] = {}  # which leaves of problems above its loss depends on

    @property
    def leaves(self) -> Tensors:
        """The parameters."""
        return self.variables.leaves

    @property
    def skipped(self) -> int:
        """How many steps were left out, as their gradient overflowed."""
        return 0 if self.scale is None else self.scale.skipped

    def draw(self) -> Iterator[Moment]:
        """Take the batches of the next step, each after the one before was used."""
        for _ in range(self.problem.gradient_accumulation):
            yield self.moment(self.batches.next())

    def moment(self, batch: Any) -> Moment:
        """Bring a batch to where the parameters are."""
        device = self.leaves[0].device

        def move(leaf: Any) -> Any:
            return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

        return Moment(tree_map(move, batch), random_states())

    def begin_turn(self) -> None:
        """Remember where the steps begin that are rolled back, or taken again."""
        place = self.turns % self.problem.unroll_steps
        if place == 0 and self.problem.roll_back:
            self.start = self.position()
        if self.recorded and place == self.problem.unroll_steps - self.recorded:
            assert isinstance(self.descent, TransformDescent)  # checked with the methods
            self.record = Record(detached_copy(self.leaves), self.descent.state, [])

    def step(self, gradient: Tensors, taken_on: Step) -> None:
        """Take a step."""
        self.descent.step(gradient)
        self.last = taken_on
        self.count += 1
        if self.record is not None:
            self.record.steps.append(taken_on)

    def roll_back(self) -> None:
        """Go back to where the last steps began."""
        if self.start is not None:
            self.return_to(self.start)
            self.record = None

    def position(self) -> dict[str, Any]:
        """Return a copy of all that a step changes."""
        return {
            "params": detached_copy(self.leaves),
            "buffers": detached_copy(tuple(self.variables.buffers.values())),
            "descent": copy.deepcopy(self.descent.state_dict()),
        }

    def return_to(self, position: dict[str, Any]) -> None:
        """Undo what was changed since."""
        overwrite(self.leaves, position["params"])
        overwrite(tuple(self.variables.buffers.values()), position["buffers"])
        self.descent.load_state_dict(position["descent"])

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that matters for what comes."""
        return {
            **self.position(),
            "turns": self.turns,
            "count": self.count,
            "batches": self.batches.state_dict(),
            "scale": None if self.scale is None else self.scale.state_dict(),
            "last": plain(self.last),
            "start": self.start,
            "record": None if self.record is None else self.recorded_state(self.record),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that was saved."""
        self.return_to(state)
        self.turns, self.count = state["turns"], state["count"]
        self.batches.load_state_dict(state["batches"])
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        self.last, self.start = moments(state["last"]), state["start"]
        record, self.record = state["record"], None
        if record is not None:
            assert isinstance(self.descent, TransformDescent)
            steps = [moments(step) for step in record["steps"]]
            before = self.descent.like_state(record["state"])
            self.record = Record(tuple(record["params"]), before, steps)

    def recorded_state(self, record: Record) -> dict[str, Any]:
        """Return a copy of a record, of types that `torch.load` trusts."""
        return {
            "params": detached_copy(record.leaves),
            "state": copy.deepcopy(tree_leaves(record.state)),
            "steps": [plain(step) for step in record.steps],
        }


def plain(step: Step) -> list[tuple[Any, ...]]:
    """Copy the moments of a step into plain tuples."""
    return [tuple(copy.deepcopy(moment)) for moment in step]


def moments(step: list[tuple[Any, ...]]) -> Step:
    """Make moments of plain tuples."""
    return tuple(Moment(batch, on_cpu(random)) for batch, random in step)

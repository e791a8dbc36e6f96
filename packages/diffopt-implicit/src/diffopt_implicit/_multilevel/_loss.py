"""The losses of a program: evaluated, repeated, and descended again."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from diffopt_implicit._equation import detached
from diffopt_implicit._multilevel._descent import TransformDescent
from diffopt_implicit._multilevel._level import Level
from diffopt_implicit._multilevel._randomness import randomness
from diffopt_implicit._multilevel._unrolled_steps import Moment, Step
from diffopt_implicit._multilevel._variables import Values
from diffopt_implicit._torch import Tensors

Point = dict[str, Tensors]  # the parameters of problems, or what belongs to each of them


class Losses:
    """The losses of all levels, as functions of the parameters that they read."""

    def __init__(self, levels: dict[str, Level]) -> None:
        self.levels = levels

    def value(self, name: str, at: Point, moment: Moment, live: bool = False) -> Tensor:
        """Evaluate the loss of a problem; only if `live` may it change the problem's buffers."""
        problem = self.levels[name].problem
        read = (name, *problem.upper, *problem.lower)
        bound = {
            other: self.levels[other].variables.bind(at[other], live and other == name)
            for other in read
        }
        value = problem.loss(Values(name, bound), moment.batch)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"The loss of `{name}` must return a scalar tensor, got {got}. Take its mean."
            )
        return value

    def repeated(self, name: str, at: Point, step: Step) -> Tensor:
        """Evaluate a loss as an earlier step did, with the same batches and random numbers."""
        total = []
        for moment in step:
            with randomness(moment.random):
                total.append(self.value(name, at, moment))
        return torch.stack(total).mean()

    def unrolled(self, name: str, above: Point, steps: int | None) -> Tensors:
        """Take the last steps of a problem again, as functions of the parameters above it."""
        level = self.levels[name]
        record, descent = level.record, level.descent
        assert isinstance(descent, TransformDescent)  # checked with the methods
        if record is None or not record.steps:
            raise ValueError(
                f"`{name}` has taken no step since its last solution was used, and there is "
                "nothing to unroll. Lower its `warmup_steps`."
            )
        params, state = record.leaves, record.state
        constant = 0 if steps is None else len(record.steps) - steps
        for i, step in enumerate(record.steps):
            values = {key: detached(x) for key, x in above.items()} if i < constant else above
            params, state = descent.advance(params, state, self.slope(name, params, values, step))
        return params

    def slope(self, name: str, params: Tensors, above: Point, step: Step) -> Tensors:
        """Return the gradient that a step was taken along."""

        def value(*params: Tensor) -> Tensor:
            with self.precision(name):
                return self.repeated(name, {**above, name: params}, step)

        return torch.func.grad(value, argnums=tuple(range(len(params))))(*params)

    def precision(self, name: str) -> torch.autocast | nullcontext[None]:
        """Return the context of a problem's own steps."""
        level = self.levels[name]
        if level.problem.autocast is None:
            return nullcontext()
        return torch.autocast(level.leaves[0].device.type, dtype=level.problem.autocast)

    def check_unrolled(self, name: str, solution: Tensors) -> None:
        """Refuse a solution that taking its steps again did not lead to."""
        for ours, theirs in zip(solution, self.levels[name].leaves, strict=True):
            slack = torch.finfo(theirs.dtype).eps ** 0.5
            if not torch.allclose(ours, theirs, rtol=slack, atol=slack):
                raise ValueError(
                    f"The last steps of `{name}`, taken again, lead elsewhere (by "
                    f"{(ours - theirs).abs().max():.2g}), so the derivative would be that of other "
                    "steps. Its loss depends on what changes between calls: keep that in the "
                    "batch, or among the problem's parameters."
                )

"""One step of one problem: its loss, its total derivative, and the change of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._equation import detached
from diffopt_implicit._multilevel._dependence import Slope, check_closure, note_dependence
from diffopt_implicit._multilevel._loss import Point
from diffopt_implicit._multilevel._program import Program, joined, like
from diffopt_implicit._multilevel._unrolled_steps import Moment, Step
from diffopt_implicit._root_check import size


class Slopes(NamedTuple):
    """The derivatives of a loss in the parameters that it reads.

    Attributes:
        loss: Its mean over the batches of a step.
        of: By problem; those on which it does not depend are left out.
        taken_on: What it was evaluated on.
    """

    loss: Tensor
    of: Point
    taken_on: Step


def advance(program: Program, name: str) -> dict[str, float | Tensor]:
    """Take a step of a problem, and return what there is to tell about it."""
    level = program.levels[name]
    slopes = slopes_of(program, name, level.draw())
    told: dict[str, float | Tensor] = {"loss": slopes.loss}
    rate = level.descent.learning_rate()
    if rate is not None:
        told["learning_rate"] = rate
    if level.scale is not None:
        finite = all(bool(s.isfinite().all()) for slope in slopes.of.values() for s in slope)
        told["loss_scale"] = level.scale.value
        level.scale.update(finite)
        told["skipped"] = level.skipped
        if not finite:
            return told
    gradient = program.gradient(name, slopes.of)
    level.step(gradient, slopes.taken_on)
    return {**told, "gradient_norm": size(gradient)}


def slopes_of(program: Program, name: str, moments: Iterable[Moment]) -> Slopes:
    """Differentiate a loss in its problem's parameters, and in each solution that it reads."""
    level = program.levels[name]
    # The constants too, once: a loss that ignores one is a mistake.
    upper = level.problem.upper if level.count == 0 else ()
    names = (name, *program.graph.below[name], *upper)
    scale = 1.0 if level.scale is None else level.scale.value
    losses, total, taken_on = [], [], []
    for moment in moments:
        loss, slope = slope_on(program, name, names, moment, scale)
        losses.append(loss)
        taken_on.append(moment)
        total = [added(a, b) for a, b in zip(total or [None] * len(slope), slope, strict=True)]
    found = like({key: program.levels[key].leaves for key in names}, names, total)
    if level.count == 0:
        note_dependence(program.graph, program.levels, name, found)
    factor = 1 / (scale * len(losses))
    of = {
        key: tuple(
            torch.zeros_like(leaf) if slope is None else factor * slope
            for slope, leaf in zip(found[key], program.levels[key].leaves, strict=True)
        )
        for key in (name, *program.graph.below[name])
        if key == name or any(slope is not None for slope in found[key])
    }
    return Slopes(torch.stack(losses).mean(), of, tuple(taken_on))


def slope_on(
    program: Program, name: str, names: tuple[str, ...], moment: Moment, scale: float
) -> tuple[Tensor, tuple[Slope, ...]]:
    """Return the loss of a problem on one batch, and its derivatives, enlarged by `scale`."""
    problem = program.levels[name].problem
    at = program.now((name, *problem.upper, *problem.lower))
    tracked = {key: tuple(leaf.requires_grad_() for leaf in at[key]) for key in names}
    with torch.enable_grad(), program.losses.precision(name):
        loss = program.losses.value(name, {**at, **tracked}, moment, live=True)
        if not loss.requires_grad:
            raise ValueError(
                f"The loss of `{name}` depends on no parameters of any problem. Read them as "
                f"`at.{name}`, and detach nothing on the way."
            )
    inputs = joined(tracked, names)
    if program.levels[name].count == 0:
        check_closure(problem, loss, inputs)
    slope = torch.autograd.grad(loss * scale, inputs, allow_unused=True)
    return detached((loss,))[0], slope


def added(ours: Slope, theirs: Slope) -> Slope:
    """Add derivatives that may not be there."""
    if ours is None or theirs is None:
        return ours if theirs is None else theirs
    return ours + theirs

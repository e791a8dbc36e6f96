"""The method that differentiates a solution through the steps that led to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._torch import Tensors


@dataclass(frozen=True)
class UnrolledSteps:
    """Differentiate a solution through the steps that led to it, in `Problem.lower`.

    The steps that the lower problem took since its last `unroll_steps` began, or the last of
    them, are taken again on the same batches with the same random numbers, as functions of
    the problems above. The parameters before them are constants. Its optimizer must be a
    transform (``init``, ``update``), as those of `diffopt_explicit`.

    Attributes:
        steps: How many of the last steps, positive and at most the lower problem's
            `unroll_steps`; None for all of these.

    Example:
        >>> UnrolledSteps(5)
        UnrolledSteps(steps=5)

    Source:
        Franceschi, Donini, Frasconi & Pontil, *Forward and reverse gradient-based
        hyperparameter optimization*, ICML 2017, section 3; with `steps`, Shaban, Cheng, Hatch
        & Boots, *Truncated back-propagation for bilevel optimization*, AISTATS 2019.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_positive("steps", self.steps)


class Moment(NamedTuple):
    """What a loss was evaluated on.

    Attributes:
        batch: The batch.
        random: The states of torch's generators before.
    """

    batch: Any
    random: Tensors


Step = tuple[Moment, ...]  # a moment for each batch over which a step's gradient was taken


class Record(NamedTuple):
    """The last steps of a problem, to be taken again.

    Attributes:
        leaves: The parameters before them.
        state: The transform's state before them.
        steps: What each was taken on.
    """

    leaves: Tensors
    state: Any
    steps: list[Step]

"""Multiplying updates: by a constant, by the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from diffopt_explicit._hyperparameter import Hyperparameter, Schedule, check_range, everywhere
from diffopt_explicit._stepwise import Stepwise
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import map_present


@dataclass(frozen=True)
class Scale(Stepwise):
    """Updates times a factor.

    Attributes:
        factor: A number, a 0-d tensor, or a schedule.
    """

    factor: Hyperparameter

    def __post_init__(self) -> None:
        check_range("factor", self.factor, -float("inf"))

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Multiply the updates by the factor."""
        factors = everywhere(self, "factor", step, updates)
        return map_present(lambda u, factor: (factor * u).to(u.dtype), updates, factors)


@dataclass(frozen=True)
class ScaleByLearningRate(Stepwise):
    """Updates times the negative learning rate: from ascent directions to descent steps.

    Attributes:
        lr: A number, a 0-d tensor, a schedule, or a tree of numbers and tensors shaped
            like the parameters (Meta-SGD), each tensor broadcasting against its parameter.
    """

    lr: Hyperparameter

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Multiply the updates by the negative learning rate."""
        rates = everywhere(self, "lr", step, updates)
        return map_present(lambda u, lr: (-lr * u).to(u.dtype), updates, rates)


def scale(factor: Hyperparameter) -> Scale:
    """Multiply updates by `factor`: a number, a 0-d tensor, or a schedule.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale
        >>> tx = scale(2.0)
        >>> tx.update([torch.ones(2)], tx.init(None))
        ([tensor([2., 2.])], StepState(step=1))
    """
    return Scale(factor)


def scale_by_schedule(schedule: Schedule) -> Scale:
    """Multiply updates by the value of a schedule, a function of the step (0, 1, ...).

    Raises:
        TypeError: For what is no function.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_schedule
        >>> tx = scale_by_schedule(lambda step: 1 / (1 + step))
        >>> _, state = tx.update([torch.ones(1)], tx.init(None))
        >>> tx.update([torch.ones(1)], state)[0]
        [tensor([0.5000])]
    """
    if not callable(schedule):
        raise TypeError(
            f"`schedule` must be a function of the step, got {schedule!r}; see `scale`."
        )
    return Scale(schedule)


def scale_by_learning_rate(lr: Hyperparameter) -> ScaleByLearningRate:
    """Multiply updates by ``-lr``, so that adding them descends.

    Args:
        lr: A non-negative number, a 0-d tensor (which may be learned), a schedule from
            the step (0, 1, ...) to either, or a tree of them shaped like the parameters.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_learning_rate
        >>> tx = scale_by_learning_rate(torch.tensor(0.1))
        >>> tx.update([torch.ones(2)], tx.init(None))
        ([tensor([-0.1000, -0.1000])], StepState(step=1))

    Source: a rate for each weight is Meta-SGD: Li et al., *Meta-SGD: learning to learn
    quickly for few-shot learning*, 2017, eq. 3.
    """
    return ScaleByLearningRate(lr)

"""What an optimizer's step is, for both paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

from torch import Tensor

from diffopt_kernels import _native


@dataclass(frozen=True, eq=False)
class Rule:
    """One optimizer's step, but for maximization and weight decay, which are applied around it.

    Its native half is the struct of this name in src/kernels/rules.
    """

    name: str
    numbers: dict[str, float]  # hyperparameters but for weight decay, and what each is less than
    states: tuple[tuple[str, ...], ...]  # the state columns of each variant
    # (variant, step, numbers, gradient, states) to the update and the new states
    formula: Callable[[int, int, Sequence[Any], Tensor, list[Tensor]], tuple[Tensor, ...]]

    @cached_property
    def code(self) -> int:
        """What the native part knows it by."""
        return _native.rules[self.name][0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters, weight decay as the last."""
        return (*self.numbers, "weight_decay")

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        """What each hyperparameter is less than."""
        return (*map(float, self.numbers.values()), inf)

    @cached_property
    def width(self) -> int:
        """Number of hyperparameters, with weight decay."""
        return len(self.names)


class Call(NamedTuple):
    """What a step is told besides its inputs.

    The inputs are one flat tuple, as an autograd function needs them: the rule's numbers and
    weight decay, then all gradients, each column of states and, if there is weight decay or the
    updates are applied, all parameters. The outputs are the updates, or the new parameters, and the
    columns of new states.
    """

    rule: Rule
    variant: int
    steps: tuple[int, ...]  # one a tensor
    decay: int  # 0: none, 1: coupled, 2: decoupled
    maximize: bool
    applied: bool  # whether the new parameters are asked for, in the place of the updates
    plain: bool  # whether every number is a float, for all tensors


# Functions, not properties: the compiler of torch 2.9 cannot trace those of a NamedTuple.
def depth(call: Call) -> int:
    """Return the number of state columns."""
    return len(call.rule.states[call.variant])


def has_params(call: Call) -> bool:
    """Return whether the inputs end with the parameters."""
    return call.applied or call.decay > 0


def split(call: Call, inputs: tuple[Any, ...]) -> tuple[list[Any], list[list[Any]]]:
    """Return the numbers, and the columns: gradients, states and, if any, parameters."""
    width, count = call.rule.width, len(call.steps)
    columns = [list(inputs[k : k + count]) for k in range(width, len(inputs), count)]
    return list(inputs[:width]), columns

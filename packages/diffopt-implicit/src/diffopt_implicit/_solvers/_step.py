"""What a solver returns, and the least that it remembers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffopt_implicit._linear_system import Tree


class OptStep(NamedTuple):
    """What a solver returns: where it is, and what it remembers.

    Example:
        >>> OptStep(params=1.0, state=None).params
        1.0
    """

    params: Tree
    state: Any


class State(Protocol):
    """The least that a solver remembers; each a tensor with an entry an example, or one."""

    @property
    def iter_num(self) -> Tensor:
        """Int64, how many updates each example has taken."""
        ...

    @property
    def error(self) -> Tensor:
        """How far each example is from a solution, to be held against the tolerance."""
        ...

    @property
    def status(self) -> Tensor:
        """Int64, a `SolverStatus`; ``RUNNING`` until the example is finished."""
        ...

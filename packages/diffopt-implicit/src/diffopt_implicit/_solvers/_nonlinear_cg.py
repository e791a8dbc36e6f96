"""Nonlinear conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffopt_implicit._solvers._descent import Descent, Move
from diffopt_implicit._solvers._line_search import LineSearch
from diffopt_implicit._solvers._zoom import ZoomLineSearch

Method = Literal["polak-ribiere", "fletcher-reeves", "hestenes-stiefel"]


NEARLY_EXACT = ZoomLineSearch(c2=0.1)


class ConjugateMemory(NamedTuple):
    """What conjugate gradients remember.

    Attributes:
        share: The multiple ``beta`` of the last direction that the next contains.
        direction: The last.
        decrease: Of the last step, ``step slope``, to which the next should amount.
    """

    share: Tensor
    direction: Tensor
    decrease: Tensor


@dataclass(frozen=True)
class NonlinearCG(Descent):
    """Minimize along conjugate directions: the memory of one vector.

    ``d <- -g + beta d``, for the gradients ``g`` before and ``h`` after a step, ``y = h - g``::

        polak-ribiere     beta = max(0, h^T y / g^T g)
        fletcher-reeves   beta = h^T h / g^T g
        hestenes-stiefel  beta = max(0, h^T y / d^T y)

    Attributes:
        fun: As of `LBFGS`.
        linesearch: As of `LBFGS`, by the Wolfe conditions; the default is exacter, ``c2=0.1``.
        has_aux: As of `LBFGS`.
        method: Which ``beta``.
        tol: As of `LBFGS`.

    Example:
        >>> import torch
        >>> solver = NonlinearCG(lambda x, a: (a * x.square()).sum() - x.sum())
        >>> solver.run(torch.zeros(2), torch.tensor([1.0, 4.0])).params
        tensor([0.5000, 0.1250])

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2006, section 5.2, eqs. 5.41, 5.44-5.46.
    """

    linesearch: LineSearch = NEARLY_EXACT
    method: Method = "polak-ribiere"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            named = ", ".join(map(repr, get_args(Method)))
            raise ValueError(f"`method` must be one of {named}, got {self.method!r}.")

    def first_memory(self, x: Tensor) -> ConjugateMemory:
        """Return a direction of zeros."""
        none = torch.zeros_like(x.detach())
        return ConjugateMemory(none.sum(), none, none.sum())

    def direction(self, memory: ConjugateMemory, grad: Tensor) -> Tensor:
        """Return ``-grad + beta direction``."""
        return memory.share * memory.direction - grad

    def remembered(self, memory: ConjugateMemory, move: Move) -> ConjugateMemory:
        """Return the direction, and ``beta``."""
        share = SHARES[self.method](move)
        decrease = torch.dot(move.step, move.previous)
        return ConjugateMemory(share, move.direction, decrease)

    def first_step(self, memory: ConjugateMemory, slope: Tensor, unit: Tensor) -> Tensor:
        """Return the step that would decrease the function as much as the last one did."""
        known = memory.decrease < 0
        return torch.where(known, torch.where(known, memory.decrease, 1.0) / slope, unit)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, and give 0 where there is nothing to divide by."""
    safe = torch.where(denominator == 0, 1.0, denominator)
    return torch.where(denominator == 0, 0.0, numerator / safe)


def polak_ribiere(move: Move) -> Tensor:
    """Return Polak and Ribière's, not below 0."""
    share = quotient(torch.dot(move.grad, move.change), torch.dot(move.previous, move.previous))
    return share.clamp(min=0)


def fletcher_reeves(move: Move) -> Tensor:
    """Return Fletcher and Reeves'."""
    return quotient(torch.dot(move.grad, move.grad), torch.dot(move.previous, move.previous))


def hestenes_stiefel(move: Move) -> Tensor:
    """Return Hestenes and Stiefel's, not below 0."""
    share = quotient(torch.dot(move.grad, move.change), torch.dot(move.direction, move.change))
    return share.clamp(min=0)


SHARES: dict[str, Callable[[Move], Tensor]] = {
    "polak-ribiere": polak_ribiere,
    "fletcher-reeves": fletcher_reeves,
    "hestenes-stiefel": hestenes_stiefel,
}

"""Updates that are no numbers: replaced, or not applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from diffopt_explicit._stepwise import Stepwise
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import map_present, tree_leaves


@dataclass(frozen=True)
class NanToNum(Stepwise):
    """Updates with numbers in the place of NaN and infinities; see `nan_to_num`."""

    nan: float = 0.0
    posinf: float | None = None
    neginf: float | None = None

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Replace what is not finite."""
        return map_present(
            lambda u: torch.nan_to_num(u, self.nan, self.posinf, self.neginf), updates
        )


class ApplyIfFiniteState(NamedTuple):
    """What was skipped."""

    consecutive: int  # steps skipped since the last one taken
    total: int  # steps skipped
    inner: Any  # the state of the transform


@dataclass(frozen=True)
class ApplyIfFinite:
    """No step where a gradient is not finite; see `apply_if_finite`."""

    transform: Transform
    max_consecutive_errors: int = 5

    def __post_init__(self) -> None:
        if self.max_consecutive_errors < 0:
            raise ValueError(
                "`max_consecutive_errors` must be a number of steps, got "
                f"{self.max_consecutive_errors}."
            )

    def init(self, params: Tree) -> ApplyIfFiniteState:
        """Return the state before the first step."""
        return ApplyIfFiniteState(0, 0, self.transform.init(params))

    def update(
        self, updates: Tree, state: ApplyIfFiniteState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ApplyIfFiniteState]:
        """Let the transform work, or stand still."""
        consecutive, total, inner = state
        if _all_finite(updates):
            updates, inner = self.transform.update(updates, inner, params, **extra)
            return updates, ApplyIfFiniteState(0, total, inner)
        if consecutive == self.max_consecutive_errors:
            updates, inner = self.transform.update(updates, inner, params, **extra)
            return updates, ApplyIfFiniteState(consecutive, total, inner)
        still = map_present(torch.zeros_like, updates)
        return still, ApplyIfFiniteState(consecutive + 1, total + 1, inner)


def zero_nans() -> NanToNum:
    """Replace NaN by 0; infinities stay.

    Example:
        >>> import torch
        >>> from diffopt_explicit import zero_nans
        >>> tx = zero_nans()
        >>> tx.update([torch.tensor([1.0, float("nan"), float("inf")])], tx.init(None))[0]
        [tensor([1., 0., inf])]
    """
    return NanToNum(0.0, float("inf"), -float("inf"))


def nan_to_num(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> NanToNum:
    """Replace NaN and infinities by numbers, which are constants to derivatives.

    Args:
        nan: What takes the place of NaN.
        posinf: What takes the place of infinity; by default the greatest number of the dtype.
        neginf: Likewise of minus infinity; by default the least number.

    Example:
        >>> import torch
        >>> from diffopt_explicit import nan_to_num
        >>> tx = nan_to_num(posinf=9.0)
        >>> tx.update([torch.tensor([1.0, float("nan"), float("inf")])], tx.init(None))[0]
        [tensor([1., 0., 9.])]
    """
    return NanToNum(nan, posinf, neginf)


def apply_if_finite(transform: Transform, max_consecutive_errors: int = 5) -> ApplyIfFinite:
    """Take no step where a gradient is NaN or infinite: updates are 0, and the state stays.

    It looks at the values: one synchronization a step on a GPU, a graph break under
    `torch.compile`, and an error under `torch.vmap`, where `nan_to_num` or `zero_nans` serve.

    Args:
        transform: What is applied to finite gradients.
        max_consecutive_errors: After so many skipped steps in a row, gradients are let
            through as they are, so that the failure shows.

    Raises:
        ValueError: For a negative number of errors.

    Example:
        >>> import torch
        >>> from diffopt_explicit import apply_if_finite, sgd
        >>> tx = apply_if_finite(sgd(0.1), max_consecutive_errors=5)
        >>> updates, state = tx.update([torch.tensor(float("nan"))], tx.init([torch.tensor(1.0)]))
        >>> updates, state.total
        ([tensor(0.)], 1)

    Source: the semantics are those of Optax.
    """
    return ApplyIfFinite(transform, max_consecutive_errors)


def _all_finite(updates: Tree) -> bool:
    finite = [torch.isfinite(update).all() for update in tree_leaves(updates)]
    try:
        return all(map(bool, finite))
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError(
            "`apply_if_finite` decides by the values of the gradients, which differ among the "
            "samples of `torch.vmap`. Use `nan_to_num` or `zero_nans` there."
        ) from None

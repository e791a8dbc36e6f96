"""What torch keeps to itself: levels of transforms inside a tensor, and compilation."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

Tensors = tuple[Tensor, ...]
P = ParamSpec("P")
R = TypeVar("R")

# Within it operations see tensors as they are, and not as levels of `torch.func` that are active.
outside_transforms = torch._C._DisableFuncTorch


def outside_graphs(func: Callable[P, R]) -> Callable[P, R]:
    """Let `torch.compile` break its graph around a function, as `torch.compiler.disable` does."""
    # Solvers branch on values. Dynamo takes a second or more to import, and what it has not been
    # imported for is in no graph.
    disabled = _disable_dynamo(func)

    @functools.wraps(func)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" in sys.modules:
            return disabled(*args, **kwargs)
        return func(*args, **kwargs)

    return called


def levels(tensor: Tensor) -> Iterator[Tensor]:
    """Yield `tensor`, then what each transform wrapped around it holds, outermost first."""
    yield tensor
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
        yield tensor


def any_true(claim: Tensor) -> bool:
    """Tell whether a boolean tensor holds anywhere, in any example of any `vmap` around it."""
    # NOTE [data-dependent stopping under vmap]
    # A batched tensor refuses `.item()`, as its examples may disagree. The iterations here
    # freeze each example that is finished (`torch.where`), so that one more round changes
    # nothing for it; it is then right to go on until *no* example needs a round, and that
    # question has one answer, which the innermost, unbatched tensor holds. The alternative,
    # a fixed number of rounds, would pay the worst case at every call.
    *_, physical = levels(claim)
    return bool(physical) if physical.ndim == 0 else bool(physical.detach().any())


def by_example(*values: Tensor) -> list[list[float]]:
    """Return numbers as rows, one for each example of any `vmap` around them."""
    # Stacked, because under `vmap` some may be batched and others not.
    *_, rows = levels(torch.stack([value.detach().double() for value in values], dim=-1))
    with outside_transforms():
        return rows.reshape(-1, len(values)).tolist()


def nan_largest(number: float) -> tuple[bool, float]:
    """Return what to compare numbers by, so that NaN is larger than all others."""
    return math.isnan(number), number


def is_tracked(tensor: Tensor) -> bool:
    """Tell whether any derivative, reverse or forward, at any level, flows into `tensor`."""
    return any(level.requires_grad or has_tangent(level) for level in levels(tensor))


def is_wrapped(tensor: Tensor) -> bool:
    """Tell whether a transform of `torch.func` around this call holds `tensor`."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def whole(scalar: Tensor) -> Tensor:
    """Return a number as a plain tensor, whose parts may be shared out over processes."""
    full: Callable[[], Tensor] | None = getattr(scalar, "full_tensor", None)
    return scalar if full is None else full()


def is_transforming() -> bool:
    """Tell whether this call is within any transform of `torch.func`."""
    return _functorch.peek_interpreter_stack() is not None


def is_recorded() -> bool:
    """Tell whether what is computed here may be recorded: differentiated, mapped or compiled."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or is_transforming()
        or forward_ad._current_level >= 0
    )


def is_traced(*tensors: Tensor) -> bool:
    """Tell whether values cannot be looked at: within `torch.func`, or while compiling."""
    return torch.compiler.is_compiling() or any(map(is_wrapped, tensors))


def plain(tensor: Tensor, name: str) -> Tensor:
    """Return the values of `tensor`, outside of every transform, for what is not of torch."""
    for level in levels(tensor):
        if _functorch.is_batchedtensor(level):
            raise ValueError(
                f"`{name}` leaves torch and cannot be mapped by `torch.func.vmap`: call it for one "
                "example after another."
            )
        tensor = level
    with outside_transforms():
        return tensor.detach()


def is_transformed(tensor: Tensor) -> bool:
    """Tell whether a transform around this call differentiates `tensor`."""
    return (is_wrapped(tensor) and is_tracked(tensor)) or has_tangent(tensor)


def has_tangent(tensor: Tensor) -> bool:
    """Tell whether `tensor` carries a forward-mode tangent, as far as the active level sees."""
    # NOTE [tangents under other transforms]
    # Within `grad` or `vmap` inside `jvp` the tangent of the outer level cannot be looked at:
    # `vmap` has no rule for it and `grad` hides it. A closed-over tensor is then not found.
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None
    except RuntimeError:
        return False


def alive(tensors: Iterable[Tensor]) -> Tensors:
    """Take tensors out of the levels of transforms that have ended.

    A pullback of `torch.func.vjp` may be called after its transform, and hands on tensors still
    wrapped in it. Torch unwraps one such layer by itself; when ours are wrapped and ended
    again, there are two, and it fails ("escaped?").
    """
    return tuple(_unwrap_ended(tensor) for tensor in tensors)


def _unwrap_ended(tensor: Tensor) -> Tensor:
    while (inner := _functorch.unwrap_if_dead(tensor)) is not tensor:
        tensor = inner
    return tensor


def vjp(func: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[..., Tensors]]:
    """Return ``func(*primals)`` and its vector-Jacobian product: `torch.func.vjp`, typed."""
    result, pull = torch.func.vjp(func, *primals)[:2]
    return result, pull

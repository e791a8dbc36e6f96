"""What the transforms of `torch.func` hide: the levels inside a wrapped tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


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
    return bool(physical.detach().any())


def is_tracked(tensor: Tensor) -> bool:
    """Tell whether any derivative, reverse or forward, at any level, flows into `tensor`."""
    return any(level.requires_grad or has_tangent(level) for level in levels(tensor))


def has_tangent(tensor: Tensor) -> bool:
    """Tell whether `tensor` carries a forward-mode tangent, as far as the active level sees."""
    # NOTE [tangents under other transforms]
    # Within `grad` or `vmap` inside `jvp` the tangent of the outer level cannot be looked at:
    # `vmap` has no rule for it and `grad` hides it. A closed-over tensor is then not found.
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None
    except RuntimeError:
        return False

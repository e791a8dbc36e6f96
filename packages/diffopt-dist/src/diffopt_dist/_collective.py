"""What programs need in which all ranks do the same, on `torch.distributed`'s collectives."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, distributed

from diffopt_dist._remote import mix
from diffopt_dist._world import get_rank


def seed_rank(seed: int, step: int = 0) -> int:
    """Seed torch, NumPy and Python with a number of this rank's own.

    Args:
        seed: The same on all ranks.
        step: The step of the program, for random numbers that a resumed run draws again.

    Returns:
        The number, which follows from the arguments and the rank alone.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import launch, seed_rank
        >>> first, second = launch(lambda: (seed_rank(0), torch.rand(()).item()), nprocs=2)
        >>> first == second
        False
    """
    own = mix(mix(seed, step), get_rank())
    torch.manual_seed(own)
    np.random.seed(own % 2**32)
    random.seed(own)
    return own


def average_gradients(parameters: Iterable[Tensor], weight: float = 1.0) -> None:
    """Make every parameter's gradient its mean over all ranks, in place.

    For a gradient that several backward passes have accumulated, and for ranks with uneven
    shares: if each rank's gradient is that of its mean loss, and `weight` its number of
    examples, this is the gradient of the mean over all examples. One message for each type of
    tensor; all ranks must call it, with parameters of the same shapes.

    Args:
        parameters: Tensors whose ``grad`` is averaged; one without counts as zero.
        weight: That of this rank's gradients in the mean; zero if it had no example.

    Raises:
        RuntimeError: Without a process group (``launch(..., collectives="gloo")``).
        ValueError: On all ranks, if their parameters differ in size, or the weights make no
            mean.

    Example:
        >>> import torch
        >>> from diffopt_dist import average_gradients, get_rank, launch
        >>> def main():
        ...     w = torch.zeros(1, requires_grad=True)
        ...     (w * (1 + get_rank())).sum().backward()
        ...     average_gradients([w], weight=3 - 2 * get_rank())
        ...     return w.grad.item()
        >>> launch(main, nprocs=2, collectives="gloo")
        [1.25, 1.25]
    """
    if not distributed.is_initialized():
        raise RuntimeError(
            "There is no process group: start the world by `launch(..., collectives='gloo')` or "
            "`auto_init_rpc(collectives=...)`."
        )
    given = list(parameters)
    groups: defaultdict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for parameter in given:
        groups[parameter.dtype, parameter.device].append(parameter)
    share = weight / _total(given, weight)
    for parameters in groups.values():
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.detach().reshape(-1) for gradient in found]) * share
        distributed.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in found])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view(parameter.shape).clone()


def _total(parameters: list[Tensor], weight: float) -> float:
    """The sum of all ranks' weights, after a look at whether they mean the same parameters."""
    device = parameters[0].device if parameters else torch.device("cpu")
    size = sum(parameter.numel() for parameter in parameters)
    own = torch.tensor([size, weight], dtype=torch.float64, device=device)
    everywhere = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everywhere, own)
    sizes = [int(each[0]) for each in everywhere]
    weights = [float(each[1]) for each in everywhere]
    if len(set(sizes)) > 1:
        raise ValueError(f"The ranks average parameters of {sizes} elements, which must agree.")
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(
            f"The ranks' weights are {weights}: none may be negative, and one must be positive."
        )
    return sum(weights)

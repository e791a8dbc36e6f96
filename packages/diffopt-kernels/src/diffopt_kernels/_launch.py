"""Calls of the native loops: which memory they get, and where they run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _native
from diffopt_kernels._explain import DTYPES
from diffopt_kernels._rule import Call


def forward(
    call: Call, inputs: tuple[Any, ...], sizes: list[int], in_place: bool, addresses: list[int]
) -> None:
    """Run the step on arrays at these addresses, inputs and outputs, which the caller holds."""
    _run("forward", call, inputs, sizes, in_place, addresses)


def vjp(
    call: Call,
    inputs: tuple[Any, ...],
    sizes: list[int],
    sums: Tensor | None,
    addresses: list[int],
) -> None:
    """Run the vector-Jacobian product likewise; rows of size 0 are left out."""
    _run("vjp", call, inputs, sizes, 0 if sums is None else sums.data_ptr(), addresses)


def addresses_of(arrays: Sequence[Tensor | None]) -> list[int]:
    """Return where these tensors lie, and 0 for those that are absent."""
    return [0 if t is None else t.data_ptr() for t in arrays]


def in_one_order(arrays: Sequence[Any], count: int) -> tuple[list[Any], list[Tensor]]:
    """Return these columns of `count` tensors such that those of a row lie alike in memory, dense.

    That is also how the outputs are to lie: like the second returned list, as the first column
    does wherever it is dense. A tensor that lies otherwise is copied.
    """
    copied, likes = list(arrays), [torch.empty_like(t) for t in arrays[:count]]
    for k, t in enumerate(arrays):
        like = likes[k % count]
        if t is not None and t.stride() != like.stride():
            copied[k] = torch.empty_like(like).copy_(t)
    return copied, likes


def _run(
    kind: str,
    call: Call,
    inputs: tuple[Any, ...],
    sizes: list[int],
    flag: int,
    addresses: list[int],
) -> None:
    numbers, first = inputs[: call.width], inputs[call.width]
    request = (
        _native.rules[call.rule.name][0],
        call.variant,
        DTYPES[first.dtype],
        call.decay,
        call.maximize,
        numbers if call.plain else _on_host(numbers, len(sizes)),
        sizes,
        call.steps,
        flag,
        addresses,
    )
    if not is_on_cuda(first):
        getattr(_native, kind)(*request, torch.get_num_threads())
        return
    sources = [] if call.plain else _on_device(numbers)
    with torch.cuda.device(first.device):
        # Until the kernels have run, torch gives the workspace to nothing but this stream.
        stream = torch.cuda.current_stream(first.device).cuda_stream
        workspace = None
        if sources or (kind == "vjp" and flag):
            size = _native.cuda_workspace_size(sizes)
            workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
        place = 0 if workspace is None else workspace.data_ptr()
        run = getattr(_native, f"cuda_{kind}")
        run(*request, first.device.index or 0, stream, place, sources)


def is_on_cuda(tensor: Tensor) -> bool:
    """Return whether the tensor is on a CUDA device."""
    return tensor.is_cuda


def _on_host(numbers: Sequence[Any], count: int) -> list[float]:
    """Return the values, one row after another for each tensor; 0 for those on a device."""
    columns = [_values(x) for x in numbers]
    if all(len(column) == 1 for column in columns):
        return [value for (value,) in columns]
    columns = [column * count if len(column) == 1 else column for column in columns]
    return [value for row in zip(*columns, strict=True) for value in row]


def _values(number: Any) -> list[float]:
    if isinstance(number, Tensor):
        if is_on_cuda(number):
            return [0.0]
        return number.reshape(-1).tolist()
    return list(number) if isinstance(number, tuple) else [number]


def _on_device(numbers: Sequence[Any]) -> list[tuple[int, int, int]]:
    """Return address, dtype and stride of each number that is on a device, or nothing at all."""
    found = [
        (x.data_ptr(), DTYPES[x.dtype], x.stride(0) if x.dim() else 0)
        if isinstance(x, Tensor) and is_on_cuda(x)
        else (0, 0, 0)
        for x in numbers
    ]
    return found if any(address for address, _, _ in found) else []

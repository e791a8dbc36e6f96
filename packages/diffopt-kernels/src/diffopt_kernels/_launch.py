"""Calls of the native loops: which memory they get, and where they run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _native
from diffopt_kernels._explain import DTYPES
from diffopt_kernels._native import Found
from diffopt_kernels._rule import Call


def forward(
    call: Call,
    numbers: Sequence[Any],
    found: Found,
    in_place: bool,
    outputs: Sequence[Tensor],
) -> None:
    """Run the step on inputs that lie as `found`; the caller holds them."""
    call = call._replace(applied=call.applied or in_place)
    _run("forward", call, numbers, found, in_place, outputs)


def vjp(
    call: Call,
    numbers: Sequence[Any],
    found: Found,
    sums: Tensor | None,
    outputs: Sequence[Tensor | None],
) -> None:
    """Run the vector-Jacobian product likewise, but for rows that have no cotangents."""
    _run("vjp", call, numbers, found, 0 if sums is None else sums.data_ptr(), outputs)


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
    numbers: Sequence[Any],
    found: Found,
    flag: int,
    outputs: Sequence[Tensor | None],
) -> None:
    request = (
        call.rule.code,
        call.variant,
        call.decay,
        call.maximize,
        call.applied,
        numbers if call.plain else _on_host(numbers, len(call.steps)),
        call.steps,
        flag,
        found,
        [0 if t is None else t.data_ptr() for t in outputs],
    )
    if not is_on_cuda(found):
        getattr(_native, kind)(*request, torch.get_num_threads())
        return
    sources = [] if call.plain else _on_device(numbers)
    gpu = max(found.gpu, 0)  # it is -1 where the CPU emulates one
    with torch.cuda.device(gpu):
        # Until the kernels have run, torch gives the workspace to nothing but this stream.
        stream = torch.cuda.current_stream(gpu).cuda_stream
        workspace = None
        if sources or (kind == "vjp" and flag):
            size = _native.cuda_workspace_size(found.sizes)
            device = "cpu" if found.gpu < 0 else torch.device("cuda", gpu)
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
        place = 0 if workspace is None else workspace.data_ptr()
        run = getattr(_native, f"cuda_{kind}")
        run(*request, gpu, stream, place, sources)


def is_on_cuda(thing: Tensor | Found) -> bool:
    """Return whether a tensor is, or tensors were found, on a CUDA device."""
    return thing.gpu >= 0 if isinstance(thing, Found) else thing.is_cuda


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

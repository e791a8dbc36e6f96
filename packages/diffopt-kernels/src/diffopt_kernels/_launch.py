"""Calls of the native loops: which memory they get, and where they run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _native
from diffopt_kernels._explain import DTYPES
from diffopt_kernels._rule import Call


def forward(
    call: Call, inputs: tuple[Any, ...], likes: list[Tensor], in_place: bool, arrays: list[Any]
) -> None:
    """Run the step on these arrays: inputs and outputs, which the caller holds."""
    request = _request(call, inputs, [t.numel() for t in likes])
    _run("forward", request, in_place, arrays, call, inputs, likes[0].device)


def vjp(
    call: Call,
    inputs: tuple[Any, ...],
    sizes: list[int],
    sums: Tensor | None,
    arrays: list[Any],
    device: torch.device,
) -> None:
    """Run the vector-Jacobian product on these arrays; rows of size 0 are left out."""
    address = 0 if sums is None else sums.data_ptr()
    _run("vjp", _request(call, inputs, sizes), address, arrays, call, inputs, device)


def in_one_order(arrays: Sequence[Any], count: int) -> tuple[Sequence[Any], list[Tensor]]:
    """Return these columns of `count` tensors such that those of a row lie alike in memory, dense.

    That is also how the outputs are to lie: like the second returned list, as the first column
    does wherever it is dense. A tensor that lies otherwise is copied.
    """
    for t in arrays:
        if t is not None and not t.is_contiguous():
            break
    else:
        return arrays, list(arrays[:count])
    copied, likes = list(arrays), [torch.empty_like(t) for t in arrays[:count]]
    for k, t in enumerate(arrays):
        like = likes[k % count]
        if t is not None and t.stride() != like.stride():
            copied[k] = torch.empty_like(like).copy_(t)
    return copied, likes


def _request(call: Call, inputs: tuple[Any, ...], sizes: list[int]) -> tuple[Any, ...]:
    width = call.width
    return (
        _native.rules[call.rule.name][0],
        call.variant,
        DTYPES[inputs[width].dtype],
        call.decay,
        call.maximize,
        inputs[:width] if call.plain else _on_host(inputs[:width], len(sizes)),
        sizes,
        call.steps,
    )


def _run(
    kind: str,
    request: tuple[Any, ...],
    flag: int,
    arrays: list[Any],
    call: Call,
    inputs: tuple[Any, ...],
    device: torch.device,
) -> None:
    addresses = [0 if t is None else t.data_ptr() for t in arrays]
    if not is_on_cuda(inputs[call.width]):
        getattr(_native, kind)(*request, flag, addresses, torch.get_num_threads())
        return
    sources = [] if call.plain else _on_device(inputs[: call.width])
    with torch.cuda.device(device):
        # Until the kernels have run, torch gives the workspace to nothing but this stream.
        stream = torch.cuda.current_stream(device).cuda_stream
        workspace = None
        if sources or (kind == "vjp" and flag):
            size = _native.cuda_workspace_size(request[6])
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
        place = 0 if workspace is None else workspace.data_ptr()
        run = getattr(_native, f"cuda_{kind}")
        run(*request, flag, addresses, device.index or 0, stream, place, sources)


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

"""How tensors travel: small ones as bytes among the rest of a message."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

# In bytes. A tensor that travels apart costs 40 us, the first 200 us; bytes among the rest cost
# more than that from 64 kB on, as they are copied several times.
SMALL = 16 * 1024


class Tensors(list[Any]):
    """Tensors of a message, and what stands for a tensor in it."""

    def __reduce__(self) -> Any:
        return _arrive, ([_depart(item) for item in self],)


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor travels among the rest of the message."""
    # Of other layouts the bytes alone would lose the strides, on which rounding may depend.
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.is_contiguous()
    return plain and tensor.nbytes <= SMALL and not (tensor.is_conj() or tensor.is_neg())


class _Small(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    data: bytes


def _depart(item: Any) -> Any:
    if not isinstance(item, Tensor) or not is_small(item):
        return item
    return _Small(item.dtype, tuple(item.shape), ctypes.string_at(item.data_ptr(), item.nbytes))


def _arrive(items: list[Any]) -> Tensors:
    return Tensors([_restored(item) if isinstance(item, _Small) else item for item in items])


def _restored(small: _Small) -> Tensor:
    tensor = torch.empty(small.shape, dtype=small.dtype)
    ctypes.memmove(tensor.data_ptr(), small.data, len(small.data))
    return tensor

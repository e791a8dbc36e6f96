"""Which path tensors take, and why; how the native part was built."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from diffopt_kernels import _native
from diffopt_kernels._native import Found

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_TYPES = (Tensor, torch.nn.Parameter)
_is_transforming = torch._C._are_functorch_transforms_active
_count_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
locate = _native.Looker(
    _TYPES, tuple(DTYPES), getattr(Tensor, "__dlpack_c_exchange_api__", None)
)  # in torch since 2.10


@functools.cache
def _cuda_obstacle(index: int) -> str:
    """Return why there are no kernels for this GPU; nothing if there are."""
    if not _native.cuda_architectures:
        return "built without CUDA"
    with torch.cuda.device(index):  # which the question would otherwise leave as the current one
        why = _native.cuda_obstacle(index)
    return why and f"{why} (built for {_native.cuda_architectures})"


def ambient_obstacle() -> str:
    """Return what is against the fused path whatever the tensors are; nothing if nothing is."""
    if is_compiling():
        return "torch.compile is tracing, and fuses the composed operations itself"
    if _is_transforming():
        return "a function transform of torch.func is active"
    if forward_ad._current_level >= 0:
        return "a forward-mode differentiation level is active"
    if _count_modes() > 0:
        return "a dispatch mode is active, which must see every operation"
    if _tracing_state() is not None:
        return "torch.jit.trace is recording"
    return ""


def obstacles(tensors: Sequence[Any]) -> Iterator[str]:
    """Yield each reason against the fused path."""
    if why := ambient_obstacle():
        yield why
    if not tensors:
        return
    first = tensors[0]
    for i, tensor in enumerate(tensors):
        if tensor.dtype in DTYPES and locate(((tensor,),), 1) is None:
            yield (
                f"`tensors[{i}]` is {_what_is(tensor)}: "
                "there are kernels for dense CPU and CUDA tensors"
            )
        elif tensor.device != first.device:
            yield (
                f"`tensors[{i}]` is on {tensor.device}, `tensors[0]` on {first.device}: "
                "one call, one device"
            )
        if tensor.dtype is not first.dtype:
            yield (
                f"`tensors[{i}]` is {tensor.dtype}, `tensors[0]` {first.dtype}: one call, one dtype"
            )
    if first.device.type == "cuda" and (why := _cuda_obstacle(first.device.index)):
        yield f"there are no kernels for {first.device}: {why}"
    if first.dtype not in DTYPES:
        yield f"there are no kernels for {first.dtype}"


def look(
    columns: tuple[Any, ...], numbers: Sequence[Tensor], complete: int | None = None
) -> Found | None:
    """Return where these lists of tensors lie, or None if they must take the composed path.

    They must where they do not match each other or are no such lists, too. The `numbers` are those
    hyperparameters that are tensors. Lists after the first `complete` ones may hold None.
    """
    if ambient_obstacle():
        return None
    found = locate(columns, len(columns) if complete is None else complete)
    if found is None or (found.gpu >= 0 and _cuda_obstacle(found.gpu)):
        return None
    for number in numbers:
        of_number = locate(((number,),), 1)
        if of_number is None or of_number.gpu not in (-1, found.gpu):
            return None
    return found


def explain(tensors: Sequence[Tensor]) -> str:
    """Tell which path a step with these tensors takes now, and why.

    Hyperparameters that are tensors take part in both paths. For tensors on a CUDA device the
    fused one reads them there or on the CPU, and never makes either wait for the other.

    Args:
        tensors: All tensors of the step: gradients, moments, parameters.

    Returns:
        One line, and below it one line for each reason against the fused path.

    Example:
        >>> import torch
        >>> print(explain([torch.zeros(3), torch.zeros(2, 2)]))
        fused: 2 dense CPU tensors of torch.float32
        >>> print(explain([torch.zeros(3), torch.zeros(3, dtype=torch.float64)]))
        composed:
        - `tensors[1]` is torch.float64, `tensors[0]` torch.float32: one call, one dtype
    """
    reasons = list(obstacles(tensors))
    if reasons:
        return "\n- ".join(["composed:", *reasons])
    if not tensors:
        return "neither: there are no tensors"
    device = tensors[0].device
    place = "CPU" if device.type == "cpu" else str(device)
    return f"fused: {len(tensors)} dense {place} tensors of {tensors[0].dtype}"


def build_info() -> dict[str, Any]:
    """Return how the native part was built, and what of it this machine uses.

    Returns:
        `version`; `compiler`; `simd`, the instruction set in use; `openmp`, whether large lists
        are spread over threads; `cuda_architectures`, as CMake names them ("80-real" is machine
        code for compute capability 8.0, "100" also PTX for later ones), empty where there are no
        CUDA kernels.

    Example:
        >>> sorted(build_info())
        ['compiler', 'cuda_architectures', 'openmp', 'simd', 'version']
    """
    return {
        "version": _native.version,
        "compiler": _native.compiler,
        "simd": _native.simd,
        "openmp": _native.openmp,
        "cuda_architectures": [name for name in _native.cuda_architectures.split(", ") if name],
    }


def _what_is(tensor: Tensor) -> str:
    if tensor.device.type not in ("cpu", "cuda"):
        return f"on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if type(tensor) not in _TYPES:
        return f"a {type(tensor).__name__}"
    return "not a plain tensor"

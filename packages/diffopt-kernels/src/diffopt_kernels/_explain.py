"""Which path tensors take, and why; how the native part was built."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffopt_kernels import _native

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


_keys = torch._C._dispatch_keys
_raw = torch._C.DispatchKeySet.raw_repr


@functools.cache
def _plain(device: str) -> frozenset[int]:
    """Return the dispatch keys of a device's tensors that are nothing but memory.

    They tell all that could make a tensor's address useless: another device or layout, a lazy
    negation, a wrapper of a function transform (even one that has ended), a subclass.
    """
    if device not in ("cpu", "cuda"):
        return frozenset()
    usual = _raw(_keys(torch.empty(0, device=device)))
    with torch.inference_mode():
        return frozenset((usual, _raw(_keys(torch.empty(0, device=device)))))


_PLAIN = _plain("cpu")


@functools.cache
def _cuda_obstacle(index: int) -> str:
    """Return why there are no kernels for this GPU; nothing if there are."""
    if not _native.cuda_architectures:
        return "built without CUDA"
    why = _native.cuda_obstacle(index)
    return why and f"{why} (built for {_native.cuda_architectures})"


def obstacles(tensors: Sequence[Any]) -> Iterator[str]:
    """Yield each reason against the fused path."""
    yield from _ambient_obstacles()
    if not tensors:
        return
    first = tensors[0]
    for i, tensor in enumerate(tensors):
        if _raw(_keys(tensor)) not in _plain(tensor.device.type):
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


def has_obstacle(tensors: Sequence[Tensor], numbers: Sequence[Any]) -> bool:
    """Return whether the composed path must be taken.

    The `numbers` are those hyperparameters that are tensors.
    """
    dtypes = {t.dtype for t in tensors}
    return (
        len(dtypes) != 1
        or DTYPES.keys().isdisjoint(dtypes)
        or not (_are_plain((*tensors, *numbers)) or _are_on_one_gpu(tensors, numbers))
        or next(_ambient_obstacles(), None) is not None
    )


def is_fusible(columns: Sequence[Any], numbers: Sequence[Any]) -> bool:
    """Return whether these lists match each other and nothing is against the fused path.

    Of anything else than lists of tensors this is false, too.
    """
    for column in columns:
        if not isinstance(column, (list, tuple)):
            return False
    tensors = [t for column in columns for t in column]
    try:
        if has_obstacle(tensors, numbers):
            return False
    except (AttributeError, TypeError):  # not all are tensors
        return False
    shapes = [t.shape for t in columns[0]]
    return all([t.shape for t in column] == shapes for column in columns[1:])


def _are_plain(tensors: Iterable[Any]) -> bool:
    # Mapped, because a loop would take half as long again.
    return _PLAIN.issuperset(map(_raw, map(_keys, tensors)))


def _are_on_one_gpu(tensors: Sequence[Any], numbers: Sequence[Any]) -> bool:
    device = tensors[0].device
    if device.type != "cuda" or _cuda_obstacle(device.index):
        return False
    there = [*tensors, *[x for x in numbers if x.is_cuda]]
    return (
        all(t.device == device for t in there)
        and _plain("cuda").issuperset(map(_raw, map(_keys, there)))
        and _are_plain(x for x in numbers if not x.is_cuda)
        and all(x.dtype in DTYPES for x in numbers)
    )


def explain(tensors: Sequence[Tensor]) -> str:
    """Tell which path a step with these tensors takes now, and why.

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


def _ambient_obstacles() -> Iterator[str]:
    if torch.compiler.is_compiling():
        yield "torch.compile is tracing, and fuses the composed operations itself"
    if torch._C._are_functorch_transforms_active():
        yield "a function transform of torch.func is active"
    if forward_ad._current_level >= 0:
        yield "a forward-mode differentiation level is active"
    if torch._C._len_torch_dispatch_stack() > 0:
        yield "a dispatch mode is active, which must see every operation"
    if torch._C._get_tracing_state() is not None:
        yield "torch.jit.trace is recording"


def _what_is(tensor: Tensor) -> str:
    if tensor.device.type not in ("cpu", "cuda"):
        return f"on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    return "not a plain tensor"

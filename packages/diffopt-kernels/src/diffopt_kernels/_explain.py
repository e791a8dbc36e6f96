"""Which path tensors take, and why; how the native part was built."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffopt_kernels import _cpu

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


_keys = torch._C._dispatch_keys
_raw = torch._C.DispatchKeySet.raw_repr

# A tensor's dispatch keys tell all that could make its address useless: another device or
# layout, a lazy negation, a wrapper of a function transform (even one that has ended), a subclass.
_PLAIN = {_raw(_keys(torch.empty(0, device="cpu")))}
with torch.inference_mode():
    _PLAIN.add(_raw(_keys(torch.empty(0, device="cpu"))))


def obstacles(tensors: Sequence[Any]) -> Iterator[str]:
    """Yield each reason against the fused path; nothing, and nearly no time, if it is taken."""
    yield from _ambient_obstacles()
    first = tensors[0].dtype if tensors else None
    for i, tensor in enumerate(tensors):
        if _raw(_keys(tensor)) not in _PLAIN:
            yield f"`tensors[{i}]` is {_what_is(tensor)}: there are kernels for dense CPU tensors"
        if tensor.dtype is not first:
            yield f"`tensors[{i}]` is {tensor.dtype}, `tensors[0]` {first}: one call, one dtype"
    if first is not None and first not in DTYPES:
        yield f"there are no kernels for {first}"


def has_obstacle(tensors: Sequence[Tensor], numbers: Sequence[Any]) -> bool:
    """Return whether the composed path must be taken.

    The `numbers` are those hyperparameters that are tensors, of any dtype.
    """
    dtypes = {t.dtype for t in tensors}
    return (
        len(dtypes) != 1
        or DTYPES.keys().isdisjoint(dtypes)
        or not _are_plain(tensors)
        or next(_ambient_obstacles(), None) is not None
        or not _are_plain(numbers)
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
    return f"fused: {len(tensors)} dense CPU tensors of {tensors[0].dtype}"


def build_info() -> dict[str, Any]:
    """Return how the native part was built, and what of it this machine uses.

    Returns:
        `version`; `compiler`; `simd`, the instruction set in use; `openmp`, whether large lists
        are spread over threads; `cuda_architectures`, empty where there are no CUDA kernels.

    Example:
        >>> build_info()["cuda_architectures"]
        []
    """
    return {
        "version": _cpu.version,
        "compiler": _cpu.compiler,
        "simd": _cpu.simd,
        "openmp": _cpu.openmp,
        "cuda_architectures": [],
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
    if tensor.device.type != "cpu":
        return f"on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    return "not a plain tensor"

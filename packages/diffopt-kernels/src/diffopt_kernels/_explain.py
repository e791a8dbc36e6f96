"""Which path tensors take, and why; how the native part was built."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffopt_kernels import _cpu

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _dispatch_keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


# A tensor's dispatch keys tell all that could make its address useless: another device or
# layout, a lazy negation, a wrapper of a function transform (even one that has ended), a subclass.
_PLAIN = _dispatch_keys(torch.empty(0, device="cpu"))
with torch.inference_mode():
    _PLAIN_INFERENCE = _dispatch_keys(torch.empty(0, device="cpu"))


def obstacles(tensors: Sequence[Any]) -> Iterator[str]:
    """Yield each reason against the fused path; nothing, and nearly no time, if it is taken."""
    yield from _ambient_obstacles()
    first = tensors[0].dtype if tensors else None
    for i, tensor in enumerate(tensors):
        keys = _dispatch_keys(tensor)
        if keys != _PLAIN and keys != _PLAIN_INFERENCE:
            yield f"`tensors[{i}]` is {_what_is(tensor)}: there are kernels for dense CPU tensors"
        if tensor.dtype is not first:
            yield f"`tensors[{i}]` is {tensor.dtype}, `tensors[0]` {first}: one call, one dtype"
    if first is not None and first not in DTYPES:
        yield f"there are no kernels for {first}"


def has_obstacle(tensors: Sequence[Any], numbers: Sequence[Any] = ()) -> bool:
    """Return whether the composed path must be taken; `numbers` may be of any dtype."""
    if next(obstacles(tensors), None) is not None:
        return True
    return any(
        isinstance(x, Tensor) and _dispatch_keys(x) not in (_PLAIN, _PLAIN_INFERENCE)
        for x in numbers
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

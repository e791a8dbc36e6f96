"""Functions, arguments and results on the wire: tensors apart, all else as bytes."""

from __future__ import annotations

import io
import pickle
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from diffopt_dist._code import CodePickler


def pack(value: Any) -> tuple[list[Tensor], bytes]:
    """The tensors in a value, wherever they are, and the rest by value where need be.

    They are found by identity in containers, modules, objects and what functions capture: each
    is one of the value's inputs or outputs, so that no gradient is lost.

    Raises:
        ValueError: If a tensor is part of a transform of `torch.func`, or not in the CPU's memory.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return pickler.tensors, buffer.getvalue()


def unpack(tensors: list[Tensor], data: bytes) -> Any:
    """The value, with the tensors in their places.

    A leaf that was a parameter becomes one again, in the list too.
    """
    return _Unpickler(io.BytesIO(data), tensors).load()


class _Pickler(CodePickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> tuple[int, bool | None] | None:
        if not isinstance(obj, Tensor):
            return None
        if is_functorch_wrapped_tensor(obj):
            raise ValueError(
                "A tensor inside a transform of torch.func (vmap, grad, jvp) cannot be sent to "
                "another process. Call the transform inside the function that is sent."
            )
        if obj.device.type != "cpu":
            raise ValueError(
                f"A tensor of shape {tuple(obj.shape)} on {obj.device} cannot be sent to another "
                "process or back: tensors travel through the memory of the CPU. Pass `x.cpu()`, "
                "which is differentiable, and call `.to(device)` inside the function that is sent."
            )
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        parameter = obj.requires_grad if isinstance(obj, nn.Parameter) else None
        return self._places[id(obj)], parameter


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        index, parameter = pid
        tensor = self._tensors[index]
        if parameter is not None and tensor.is_leaf and not isinstance(tensor, nn.Parameter):
            self._tensors[index] = nn.Parameter(tensor.detach(), parameter)
        return self._tensors[index]

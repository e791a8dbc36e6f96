"""What a stretch of a program does to tensors, autograd or not, and on which lines."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from diffopt_viz._walk import Function, Slot, slot_of, sources_of

LEAKS = {"item", "tolist", "numpy", "__float__", "__int__", "__complex__", "__array__"}
UNCOUNTED = {"batch_norm", "instance_norm"}  # write statistics without counting a version
NOT_THE_USERS = re.compile(
    rf"<frozen|{re.escape(os.path.dirname(torch.__file__))}[\\/]|"
    rf"{re.escape(sysconfig.get_path('stdlib'))}[\\/](?!site-packages)|"
    r".*[\\/](diffopt_(explicit|implicit|zeroorder|dist|viz|kernels)|pytree_core)[\\/][^\\/]*\.py$"
)


@dataclass(frozen=True)
class Place:
    """A line of the program.

    Attributes:
        file: Its file.
        line: Its number, from 1.
        text: The line itself, where it can be read.
    """

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        text = f": {self.text}" if self.text else ""
        return f"{self.file}:{self.line}{text}"


@dataclass
class Value:
    """What a tensor held after a call, until it was written to."""

    call: int | None
    sources: tuple[int, ...]
    slot: Slot | None
    floating: bool
    leaf: bool


@dataclass(frozen=True)
class _Memory:
    """Whose memory begins at an address, as long as the storage lives."""

    storage: StorageWeakRef
    tensors: list[TensorWeakRef]
    last: int


@dataclass(frozen=True)
class Call:
    """One call of torch that made or rewrote tensors, or took numbers out of them."""

    name: str
    place: Place | None
    mode: str  # "grad", "no_grad" or "inference_mode"
    inputs: tuple[int, ...]
    in_place: bool = False
    leak: bool = False


class watch(TorchFunctionMode):  # noqa: N801 - used as a context, like torch.no_grad
    """Record what happens to tensors inside a ``with`` block, for `find_broken`.

    It is meant for one dry run: each call is noted with its line, and the gradient graph of
    all that is made stays alive as long as the record. Compiled functions run uncompiled
    inside, so that their lines are seen too, if torch.compile is in use on entry. Not seen is
    what other processes, other threads and C++ extensions do with the memory of a tensor.

    Example:
        >>> import torch
        >>> from diffopt_viz import find_broken, watch
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> with watch() as seen:
        ...     loss = x * (w * 2).detach()
        >>> [broken] = find_broken(loss, {"w": w, "x": x}, seen)
        >>> broken.name, broken.reason
        ('w', 'detach')
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.calls: list[Call] = []
        # What custom functions take their inputs from: torch 2.12 forgets it with their results.
        self.custom: dict[Function, list[Function]] = {}
        self._current: Any = WeakTensorKeyDictionary()
        self._memory: dict[int, _Memory] = {}
        self._contexts = ExitStack()
        self._differentiated: tuple[int, ...] = ()

    def __enter__(self) -> watch:
        if "torch._dynamo" in sys.modules:
            self._contexts.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._contexts.close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        before = [(t, _version(t), t.requires_grad) for t in inputs]
        values = tuple(dict.fromkeys(self.value_of(t) for t in inputs))
        result = func(*args, **kwargs)
        name = _name_of(func)
        if name == "backward":
            self._differentiated += values
            return result
        made = list(tensors_in(result))
        if name == ".grad":
            values += self._differentiated
        written = [t for t, *state in before if [_version(t), t.requires_grad] != state]
        if name == ".data" and result is None:  # assigned to
            written = inputs[:1]
        if name in UNCOUNTED:
            written += [t for t in args[1:3] if isinstance(t, Tensor)]
        old = {id(t) for t in inputs}
        fresh = [t for t in made if id(t) not in old and t not in self._current]
        leak = name in LEAKS
        if fresh or written or leak:
            self._note(name, values, fresh, written, leak)
        return result

    def value_of(self, tensor: Tensor) -> int:
        """The value that a tensor holds now, which is new if the tensor was not seen before."""
        known = self._current.get(tensor)
        if known is None:
            known = self._enter(tensor, None, self._aliased(tensor))
        elif tensor.requires_grad:  # it may have got a graph since: a custom function's result
            self.values[known].slot = self._slot_kept(tensor)
            self.values[known].leaf = tensor.is_leaf
        return known

    def _slot_kept(self, tensor: Tensor) -> Slot | None:
        slot = _slot(tensor)
        if slot is not None and isinstance(slot[0], torch._C._FunctionBase):
            self.custom[slot[0]] = sources_of(slot[0])
        return slot

    def _aliased(self, tensor: Tensor) -> tuple[int, ...]:
        """The value last seen on the same memory: `tensor` was made of it, unseen."""
        memory = self._memory.get(_address(tensor))
        return () if memory is None or memory.storage.expired() else (memory.last,)

    def _sharers(self, tensor: Tensor) -> list[Tensor]:
        memory = self._memory.get(_address(tensor))
        refs = [] if memory is None or memory.storage.expired() else memory.tensors
        return [other for ref in refs if (other := ref()) is not None]

    def _enter(self, tensor: Tensor, call: int | None, sources: tuple[int, ...]) -> int:
        slot = self._slot_kept(tensor) if tensor.requires_grad else None
        floating = tensor.is_floating_point() or tensor.is_complex()
        self.values.append(Value(call, sources, slot, floating, tensor.is_leaf))
        index = self._current[tensor] = len(self.values) - 1
        if address := _address(tensor):
            known = [other for other in self._sharers(tensor) if other is not tensor]
            refs = [TensorWeakRef(other) for other in [*known, tensor]]
            self._memory[address] = _Memory(StorageWeakRef(tensor.untyped_storage()), refs, index)
        return index

    def _note(
        self,
        name: str,
        inputs: tuple[int, ...],
        fresh: list[Tensor],
        written: list[Tensor],
        leak: bool,
    ) -> None:
        mode = "grad" if torch.is_grad_enabled() else "no_grad"
        mode = "inference_mode" if torch.is_inference_mode_enabled() else mode
        self.calls.append(Call(name, _place(), mode, inputs, bool(written), leak))
        call = len(self.calls) - 1
        for tensor in fresh:
            self._enter(tensor, call, inputs)
        rewritten = {id(t): t for w in written for t in (w, *self._sharers(w))}
        for tensor in rewritten.values():
            self._enter(tensor, call, tuple({*inputs, self.value_of(tensor)}))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            pending.extend(reversed(value))
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", "") or str(func)
    if name in ("__get__", "__set__"):
        return "." + getattr(getattr(func, "__self__", None), "__name__", name)
    return name


def _slot(tensor: Tensor) -> Slot | None:
    """As `slot_of`; for what a function transform wraps, its operation at this level."""
    if is_functorch_wrapped_tensor(tensor):
        return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)
    try:
        return slot_of(tensor)
    except AssertionError:  # a view of a leaf, made where a custom function computes
        return None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    """Where the storage begins; 0 where there is none to speak of."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, fake, or wrapped by a transform
        return 0


def _place() -> Place | None:
    """The innermost line that is not torch's, the standard library's or this family's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not NOT_THE_USERS.match(file):
            line = linecache.getline(file, frame.f_lineno).strip()
            return Place(file, frame.f_lineno, line)
        frame = frame.f_back
    return None

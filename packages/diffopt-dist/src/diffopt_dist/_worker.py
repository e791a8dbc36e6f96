"""What a worker does: run functions, keep their graphs, pull cotangents back through them."""

from __future__ import annotations

import contextlib
import math
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cloudpickle
import torch
from torch import Tensor

from diffopt_dist import _store
from diffopt_dist._pack import pack, unpack
from diffopt_dist._share import Lent
from diffopt_dist._store import GoneError, Graph, Key
from diffopt_dist._wire import Tensors


class Step(NamedTuple):
    """One thing that a worker is asked to do, whose graph it keeps under a key."""

    serve: Callable[..., tuple[list[Tensor], list[Tensor], bytes]]
    key: Key
    tensors: Tensors  # detached, or lent
    required: list[bool]  # which of them require grad
    track: bool  # whether grad mode was on in the caller
    arguments: tuple[Any, ...]
    allow_nan: bool
    lease: float  # seconds for which the graph is kept after its last use


class Reply(NamedTuple):
    """What a worker answers."""

    tensors: Tensors  # detached
    differentiable: list[bool]  # which of them depend on an input that requires grad
    rest: bytes  # the result without its tensors


class Failure(NamedTuple):
    """What a worker answers when a step raises."""

    text: str
    trace: str
    error: bytes | None  # the exception, if it can be pickled
    gone: bool  # whether only something was missing that was here before


def serve(dead: list[Key], steps: list[Step]) -> Reply | Failure:
    """Forget what is no longer wanted, take the steps, answer for the last."""
    _store.forget(dead)
    try:
        *before, last = steps
        for step in before:
            _take(step)
        return _take(last)
    except BaseException as error:  # SystemExit too, at which torch would never answer
        return _failure(error)


def run(
    inputs: list[Tensor], function: bytes, count: int, rest: bytes, seed: int
) -> tuple[list[Tensor], list[Tensor], bytes]:
    """Call a function, which has the first `count` of the inputs, the arguments the others."""
    captured, own = inputs[:count], inputs[count:]
    fn = unpack(captured, function)
    args, kwargs = unpack(own, rest)
    with _seeded(seed):  # so that any worker gives the same, again too
        outputs, result = pack(fn(*args, **kwargs))
    return [*captured, *own], outputs, result


def pull(
    cotangents: list[Tensor], of: Key, which: list[int], create_graph: bool, keep: bool
) -> tuple[list[Tensor], list[Tensor], bytes]:
    """Pull cotangents back through the graph kept under `of`, which is forgotten but to `keep`."""
    kept: Graph = _store.find(of)
    if not keep:
        _store.forget([of])
    grads = torch.autograd.grad(
        [kept.outputs[index] for index in which],
        [leaf for leaf in kept.inputs if leaf.requires_grad],
        cotangents,
        retain_graph=True,  # the graphs kept under other keys may share it
        create_graph=create_graph,
        allow_unused=True,
    )
    present = [grad for grad in grads if grad is not None]
    rest = pickle.dumps([grad is not None for grad in grads])
    return [*cotangents, *kept.inputs], present, rest


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if torch.backends.cuda.is_built():  # `torch.manual_seed` takes a millisecond elsewhere
            torch.cuda.manual_seed_all(seed)  # also a device that the task is the first to use
        yield


def _take(step: Step) -> Reply:
    leaves = zip(step.tensors, step.required, strict=True)
    inputs = [_received(item).detach().requires_grad_(required) for item, required in leaves]
    with torch.set_grad_enabled(step.track):
        inputs, outputs, rest = step.serve(inputs, *step.arguments)
    sent = Tensors([output.detach() for output in outputs])
    if not step.allow_nan and any(_has_nan(tensor) for tensor in sent):
        raise FloatingPointError("the result has a NaN (`allow_nan=True` lets it pass)")
    wanted = step.track and any(leaf.requires_grad for leaf in inputs)
    differentiable = [wanted and output.requires_grad for output in outputs]
    if any(differentiable):
        _store.keep(step.key, Graph(inputs, outputs), step.lease)
    return Reply(sent, differentiable, rest)


def _received(item: Tensor | Lent) -> Tensor:
    return item.take() if isinstance(item, Lent) else item


def _has_nan(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return math.isnan(torch.linalg.vector_norm(tensor).item())  # in one pass, and one operation


def _failure(error: BaseException) -> Failure:
    try:
        data = cloudpickle.dumps(error)
        pickle.loads(data)
    except Exception:  # it holds something that cannot be sent
        data = None
    text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Failure(text, trace, data, isinstance(error, GoneError))

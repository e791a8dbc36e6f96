"""Functions that run in other processes and are differentiated there.

A call sends a function and detached tensors to a worker, which runs it, keeps the graph,
and returns detached results with a handle to the graph. The backward pass sends cotangents
to the handle and gets gradients; it is itself such a call, so that it can be differentiated
again. One `torch.autograd.Function` stands for all calls of a batch: both directions run in
all workers at the same time.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph as is_graph_retained

from diffopt_dist._dispatch import Dispatch, Progress
from diffopt_dist._pack import pack, unpack
from diffopt_dist._request import Policy, Request
from diffopt_dist._share import share
from diffopt_dist._worker import pull, run


@dataclass(frozen=True)
class Task:
    """A function call to be made by one of some workers."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ranks: Sequence[int]
    number: str = ""  # in messages, such as "task 2 of 8, "
    seed: int | None = None  # of the generator in the worker; None for one of each call's own


_calls = itertools.count()


def mix(seed: int, number: int) -> int:
    """A seed of its own for each number."""
    return hash((seed, number)) % 2**63


def begin(tasks: Sequence[Task], policy: Policy, *, limit: float) -> Pending:
    """Begin with all tasks, at most `limit` at a time in a worker, and wait for none."""
    functions: dict[int, tuple[list[Tensor], bytes]] = {}
    inputs, arguments = [], []
    for task in tasks:
        if id(task.fn) not in functions:
            functions[id(task.fn)] = pack(task.fn)
        captured, function = functions[id(task.fn)]
        own, rest = pack((task.args, task.kwargs))
        seed = task.seed if task.seed is not None else mix(torch.initial_seed(), next(_calls))
        inputs.append([*captured, *own])
        arguments.append((function, len(captured), rest, seed))
    workers = {rank for task in tasks for rank in task.ranks}
    one_by_one = len(tasks) > limit * len(workers)
    shared = share(inputs, policy.lease) if one_by_one else {}
    requests = [
        Request(
            f"{task.number}`{getattr(task.fn, '__name__', task.fn)}`",
            run,
            own_arguments,
            tensors,
            len(tensors),
            task.ranks,
            policy,
            home=task.ranks[0] if len(task.ranks) == 1 else None,
            shared={i: shared[id(x)] for i, x in enumerate(tensors) if id(x) in shared},
        )
        for task, tensors, own_arguments in zip(tasks, inputs, arguments, strict=True)
    ]
    return Pending(requests, [leaf for tensors in inputs for leaf in tensors], limit)


class Pending:
    """Calls that have been made, and whose results are still to come."""

    def __init__(self, requests: list[Request], leaves: list[Tensor], limit: float) -> None:
        self._requests, self._leaves, self._limit = requests, leaves, limit
        self._tracked = torch.is_grad_enabled()
        self._dispatch = Dispatch(requests, limit)
        self._results: list[Any] | None = None

    @property
    def dispatch(self) -> Dispatch:
        """What the calls are doing."""
        return self._dispatch

    def wait(self, progress: Progress | None = None) -> list[Any]:
        """Return the results, in the order of the calls, once all are there; see `call_all`."""
        if self._results is None:
            self._dispatch.wait(progress)
            for request in self._requests:
                request.shared.clear()
            with torch.set_grad_enabled(self._tracked):
                outputs = iter(_Batch.apply(self._requests, self._limit, *self._leaves))
            self._results = [_result(request, outputs) for request in self._requests]
            self._requests, self._leaves = [], []
        return self._results


def _result(request: Request, outputs: Iterator[Tensor]) -> Any:
    tensors = list(itertools.islice(outputs, len(request.reply.differentiable)))
    return unpack(tensors, request.reply.rest)


class _Batch(torch.autograd.Function):
    """The answers to requests, as one function of all their tensors."""

    @staticmethod
    def forward(
        ctx: Any, requests: list[Request], limit: float, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        constant: list[Tensor] = []
        for request in requests:
            received = request.take()
            outputs += received
            flags = zip(received, request.reply.differentiable, strict=True)
            constant += [tensor for tensor, differentiable in flags if not differentiable]
        ctx.requests, ctx.limit = requests, limit
        # Not `save_for_backward`, which is emptied at the first of several backward passes.
        ctx.leaves = leaves
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.leaves)
        pulls, arguments, targets = [], [], []
        all_inputs, all_outputs = iter(range(len(grads))), iter(cotangents)
        for request in ctx.requests:
            own = list(itertools.islice(all_outputs, len(request.reply.differentiable)))
            inputs = list(itertools.islice(all_inputs, request.count))
            which = [index for index, cotangent in enumerate(own) if cotangent is not None]
            if which:
                sent = [own[index] for index in which]
                pulls.append(_pull_of(request, which, sent, len(inputs)))
                arguments += [*sent, *(ctx.leaves[index] for index in inputs)]
                targets.append([index for index in inputs if ctx.leaves[index].requires_grad])
        Dispatch(pulls, ctx.limit).wait()
        for pulled in pulls:
            pulled.of.released = not is_graph_retained()
        results = iter(_Batch.apply(pulls, ctx.limit, *arguments))
        for pulled, wanted in zip(pulls, targets, strict=True):
            for index, present in zip(wanted, pickle.loads(pulled.reply.rest), strict=True):
                grads[index] = next(results) if present else None
        return None, None, *grads


def _pull_of(request: Request, which: list[int], cotangents: Any, inputs: int) -> Request:
    """What pulls the cotangents of some outputs of a request back to its inputs."""
    create_graph, keep = torch.is_grad_enabled(), is_graph_retained()
    if request.released:
        raise RuntimeError(
            f"The graph of {request.what} was released by an earlier backward pass. Pass "
            "`retain_graph=True` to that one."
        )
    if create_graph:  # whose graph leads through the tensors as they are now
        request.check_unchanged()
    return Request(
        f"the backward pass of {request.what}",
        pull,
        (request.key, which, create_graph, keep),
        cotangents,
        len(cotangents) + inputs,
        request.ranks,
        request.policy,
        of=request,
        home=request.home,
    )

"""What is asked of a worker, with all it takes to ask another one instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffopt_dist import _engine, _store
from diffopt_dist._share import Shared
from diffopt_dist._store import Key
from diffopt_dist._wire import Tensors
from diffopt_dist._worker import Reply, Step, serve


@dataclass(frozen=True)
class Policy:
    """What may happen to a request.

    Attributes:
        timeout: Seconds in which a worker must answer; `None` for those of the world.
        retries: How often a request that has failed is made again.
        allow_nan: Whether a result may hold NaN.
        lease: Seconds for which a worker keeps a graph after its last use.
    """

    timeout: float | None = None
    retries: int = 0
    allow_nan: bool = False
    lease: float = 600.0

    def __post_init__(self) -> None:
        for name in ("timeout", "lease"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be a positive number of seconds, got {value}.")
        if self.retries < 0:
            raise ValueError(f"`retries` must not be negative, got {self.retries}.")


@dataclass(eq=False)
class Request:
    """One message to a worker, and its answer.

    Attributes:
        what: Its description in messages.
        serve: The function that answers it there.
        arguments: Arguments of that function, after the tensors.
        tensors: The tensors that are sent.
        count: Of how many tensors it is a function; those not sent the worker knows.
        ranks: The workers that may answer it.
        of: The request whose graph it uses.
        home: The worker that is asked first, and then the one that keeps the graph.
        shared: What tensors in common with other requests are sent by, by their place.
    """

    what: str
    serve: Callable[..., Any]
    arguments: tuple[Any, ...]
    tensors: list[Tensor]
    count: int
    ranks: Sequence[int]
    policy: Policy
    of: Request | None = None
    home: int | None = None
    shared: dict[int, Shared] = field(default_factory=dict)
    track: bool = field(default_factory=torch.is_grad_enabled)
    key: Key = field(default_factory=_store.new_key)
    failures: list[tuple[int, str]] = field(default_factory=list)
    released: bool = False  # whether a backward pass has let go of its graph
    reply: Reply = field(init=False)

    def __post_init__(self) -> None:
        self._required = [tensor.requires_grad for tensor in self.tensors]
        self._versions = [_version(tensor) for tensor in self.tensors]
        self.tensors = [tensor.detach() for tensor in self.tensors]
        self._keepers = _store.release_with(self, self.key)

    def send(self, rank: int, *, again: bool) -> torch.futures.Future[Any]:
        """Send it, with what makes the graph that it uses unless that is there already."""
        chain: list[Request] = [self]
        while (of := chain[0].of) is not None and (again or of.home != rank):
            chain.insert(0, of)
        for request in chain:
            request._check_own()
            request._keepers.add(rank)
        steps = [request._step(rank, again=again) for request in chain]
        return _engine.send(rank, serve, (_store.take_dead(rank), steps), self.policy.timeout)

    def answered(self, rank: int, reply: Reply) -> None:
        """Take the answer, and remember where the graphs are."""
        self._check_own()  # its tensors may still have been on their way
        self.reply = reply
        for shared in self.shared.values():
            shared.arrived(rank)
        if not any(reply.differentiable):
            self._keepers.discard(rank)
        request: Request | None = self
        while request is not None:
            request.home = rank
            request = request.of

    def take(self) -> list[Tensor]:
        """The tensors of the answer, once: a graph that they become part of holds this request."""
        tensors = list(self.reply.tensors)
        self.reply.tensors.clear()
        return tensors

    def check_unchanged(self) -> None:
        """Raise if a tensor that it is a function of is not any more what it was."""
        request: Request | None = self
        while request is not None:
            request._check_own()
            request = request.of

    def _check_own(self) -> None:
        for index, (tensor, before) in enumerate(zip(self.tensors, self._versions, strict=True)):
            if _version(tensor) != before:
                raise RuntimeError(
                    f"Tensor {index}, of shape {tuple(tensor.shape)}, of {self.what} has been "
                    "changed in place since the call was made, and is needed once more. Change "
                    "it after the result and its derivatives are there, or pass a clone."
                )

    def _step(self, rank: int, *, again: bool) -> Step:
        tensors = Tensors(self.tensors)
        for place, shared in self.shared.items():
            tensors[place] = shared.to_send(tensors[place], rank, again=again)
        leaves, settings = (tensors, self._required), (self.policy.allow_nan, self.policy.lease)
        return Step(self.serve, self.key, *leaves, self.track, self.arguments, *settings)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version

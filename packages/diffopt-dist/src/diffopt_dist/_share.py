"""Tensors that the tasks of one call have in common: a worker is sent them once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from diffopt_dist import _store
from diffopt_dist._store import Key
from diffopt_dist._wire import is_small


class Shared:
    """A tensor of several requests, and who has it; kept there for as long as this lives."""

    def __init__(self, lease: float) -> None:
        self._key, self._lease = _store.new_key(), lease
        self._holders: set[int] = set()
        self._keepers = _store.release_with(self, self._key)

    def to_send(self, tensor: Tensor, rank: int, *, again: bool) -> Lent:
        """What stands for the tensor in a message: the tensor itself, unless it is there."""
        self._keepers.add(rank)
        known = rank in self._holders and not again
        return Lent(self._key, None if known else tensor, self._lease)

    def arrived(self, rank: int) -> None:
        """Remember that a worker has it."""
        self._holders.add(rank)


class Lent(NamedTuple):
    """A tensor that a worker is sent, or has been sent before."""

    key: Key
    tensor: Tensor | None
    lease: float

    def take(self) -> Tensor:
        """The tensor, in memory of its own, in which a task may do what it likes.

        Raises:
            GoneError: If it was sent before and is not here any more.
        """
        if self.tensor is None:
            return _store.find(self.key).clone()
        _store.keep(self.key, self.tensor, self.lease)
        return self.tensor.clone()


def share(groups: Sequence[Iterable[Tensor]], lease: float) -> dict[int, Shared]:
    """What the tensors that several groups hold are sent by, by the tensor's `id`."""
    tensors = {id(tensor): tensor for group in groups for tensor in group}
    counts = Counter(number for group in groups for number in {id(tensor) for tensor in group})
    return {
        number: Shared(lease)
        for number, count in counts.items()
        if count > 1 and not is_small(tensors[number].detach())
    }

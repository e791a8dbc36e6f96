"""The endless batches of a problem, which can be taken up again where they were left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from diffopt_implicit._multilevel._randomness import everything, restore_everything

# NOTE [taking up a loader again]
# A loader that can tell its own state (`state_dict`, `load_state_dict`) is asked for it. Any other
# is begun again with the random generators as they were when its epoch began, and as many batches
# as were taken are drawn and dropped: a shuffled `DataLoader`, its workers' seeds and random
# transforms give the same again. What a loader remembers elsewhere is out of reach.


class Stateful(Protocol):
    """A loader that can tell its own state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Batches:
    """Batch after batch, epoch after epoch; None for ever where there is no data.

    Attributes:
        epoch: How many were finished.
        index: How many batches of this one were taken.
    """

    def __init__(self, name: str, data: Iterable[Any] | None) -> None:
        check_data(name, data)
        self.name, self.data = name, data
        self.iterator: Iterator[Any] | None = None
        self.epoch = self.index = 0
        self.begun: dict[str, Any] | None = None  # the random states when this epoch began

    def next(self) -> Any:
        """Return the next batch."""
        if self.data is None:
            return None
        if self.iterator is None:
            self.begin()
        batch = next(self.iterator or iter(()), self)
        if batch is self:
            self.epoch += 1
            self.begin()
            batch = next(self.iterator or iter(()), self)
        if batch is self:
            raise ValueError(f"The data of `{self.name}` holds no batch.")
        self.index += 1
        return batch

    def begin(self) -> None:
        """Begin an epoch."""
        self.begun = {"global": everything(), "own": [g.get_state() for g in self.generators()]}
        self.iterator, self.index = iter(self.data or ()), 0

    def generators(self) -> list[torch.Generator]:
        """List the generators of a loader's own, and of its samplers."""
        sampler, batches = (getattr(self.data, key, None) for key in ("sampler", "batch_sampler"))
        owners = (self.data, sampler, batches, getattr(batches, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def state_dict(self) -> dict[str, Any]:
        """Tell where the data are."""
        own = self.data.state_dict() if is_stateful(self.data) else None
        now = [g.get_state() for g in self.generators()]
        return {
            "epoch": self.epoch,
            "index": self.index,
            "begun": self.begun,
            "own": own,
            "now": now,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where they were."""
        self.epoch, self.index, self.begun = state["epoch"], state["index"], state["begun"]
        self.iterator = None
        if is_stateful(self.data):
            self.data.load_state_dict(state["own"])
        if self.begun is not None:
            before = everything()
            restore_everything(self.begun["global"])
            self.set_generators(self.begun["own"])
            self.iterator = iter(self.data or ())
            for _ in range(0 if is_stateful(self.data) else self.index):
                next(self.iterator)
            restore_everything(before)
        self.set_generators(state["now"])

    def set_generators(self, states: list[Tensor]) -> None:
        """Give the loader's generators their states."""
        for generator, state in zip(self.generators(), states, strict=True):
            generator.set_state(state.cpu())


def is_stateful(data: Any) -> TypeGuard[Stateful]:
    """Tell whether a loader can tell its own state."""
    return hasattr(data, "state_dict") and hasattr(data, "load_state_dict")


def check_data(name: str, data: Any) -> None:
    """Refuse what is no iterable of batches that can begin anew."""
    if data is None:
        return
    one_batch = isinstance(data, Tensor) or (
        isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data)
    )
    if one_batch:
        raise TypeError(
            f"The `data` of `{name}` is one batch, and a collection of batches is expected. "
            "Put it into a list: `data=[(x, y)]`."
        )
    if not hasattr(data, "__iter__"):
        raise TypeError(
            f"The `data` of `{name}` must be an iterable of batches, such as a `DataLoader` or a "
            f"list, got {type(data).__name__}."
        )
    if hasattr(data, "__next__"):
        raise TypeError(
            f"The `data` of `{name}` is an iterator, which ends once for all, and epochs need a "
            "collection that can begin anew. Pass a `DataLoader`, a list, or an object whose "
            "`__iter__` makes the iterator."
        )

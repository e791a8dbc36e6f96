"""States of a run, kept to be returned to."""

from __future__ import annotations

import operator
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from diffopt_explicit._shelf import Shelf, Shelved
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_map, tree_unflatten

Home: TypeAlias = torch.device | str | Path | None
"""Where snapshots are kept: a device, a folder, or where the tensors are."""


@dataclass(frozen=True)
class Snapshot:
    """All that the steps from `index` on depend on: the carry, random numbers, and buffers."""

    index: int
    kept: Unchanged | Shelved | _Moved | _File

    def restore(self, modules: tuple[nn.Module, ...]) -> Tree:
        """Let random numbers and buffers be as they were, and return the carry."""
        carry, random, buffers = self.kept.load()
        random.restore()
        set_buffers(modules, buffers)
        return carry

    def moved(self, home: Home | Shelf) -> Snapshot:
        """The same at home."""
        if home is None or not isinstance(self.kept, Unchanged):
            return self
        tree = self.kept.load()
        if isinstance(home, Shelf):
            return replace(self, kept=Shelved(tree, home))
        away = _File(tree, home) if isinstance(home, Path) else _Moved(tree, torch.device(home))
        return replace(self, kept=away)


def take_snapshot(index: int, carry: Tree, modules: tuple[nn.Module, ...]) -> Snapshot:
    """Keep the state before step `index`: random numbers and buffers are those of now."""
    return Snapshot(index, Unchanged((carry, Random.of(carry), get_buffers(modules))))


class Unchanged:
    """A tree whose tensors nobody may have changed in place when it is needed again."""

    __slots__ = ("_tree", "_versions")  # there is one for each of maybe 100,000 steps

    def __init__(self, tree: Tree) -> None:
        self._tree, self._versions = tree, self._now(tree)

    def holds(self, tree: tuple[Tree, ...]) -> bool:
        """Whether this has the same trees, and they are what they were."""
        mine = self._tree
        same = len(mine) == len(tree) and all(map(operator.is_, mine, tree))
        return same and self._now(mine) == self._versions

    def load(self) -> Tree:
        """The tree."""
        if self._now(self._tree) != self._versions:
            raise RuntimeError(
                "A tensor that an unroll began with, or one of its batches, was changed in place "
                "before the way back, on which `Replay` needs it again. Pass a copy (`clone()`)."
            )
        return self._tree

    @staticmethod
    def _now(tree: Tree) -> tuple[int, ...]:
        leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return tuple([leaf._version for leaf in leaves if not leaf.is_inference()])


class _Moved:
    """A tree on another device."""

    def __init__(self, tree: Tree, device: torch.device) -> None:
        self._devices = tree_map(lambda t: t.device if isinstance(t, Tensor) else None, tree)
        self._tree = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, tree)

    def load(self) -> Tree:
        def back(leaf: Any, device: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return tree_map(back, self._tree, self._devices)


class _File:
    """A tree in a file, which is deleted with this object."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        leaves, self._spec = tree_flatten(tree)
        handle, self._path = tempfile.mkstemp(suffix=".pt", prefix="diffopt-", dir=folder)
        weakref.finalize(self, Path(self._path).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            torch.save(leaves, file)

    def load(self) -> Tree:
        return tree_unflatten(self._spec, torch.load(self._path, weights_only=False))


class Random(NamedTuple):
    """The state of torch's random numbers, on the CPU and on some other devices."""

    cpu: Tensor
    cuda: dict[str, Tensor]  # by device

    @staticmethod
    def of(tree: Tree) -> Random:
        """The state now, on the devices that a tree has tensors on."""
        devices = {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
        cuda = {str(d): torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
        return Random(torch.get_rng_state(), cuda)

    def is_now(self) -> bool:
        """Whether no random number was drawn since."""
        return torch.equal(self.cpu, torch.get_rng_state()) and all(
            torch.equal(state, torch.cuda.get_rng_state(device))
            for device, state in self.cuda.items()
        )

    def restore(self) -> None:
        """Let random numbers be drawn from here on."""
        torch.set_rng_state(_at_the_start(self.cpu))
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(_at_the_start(state), device)


def _at_the_start(state: Tensor) -> Tensor:
    """The same, where its storage begins: from there torch takes a state, whatever its offset."""
    return state.clone() if state.storage_offset() else state


def get_buffers(modules: tuple[nn.Module, ...]) -> list[Tensor]:
    """Copies of the buffers of some modules."""
    return [buffer.detach().clone() for module in modules for buffer in module.buffers()]


def set_buffers(modules: tuple[nn.Module, ...], saved: list[Tensor]) -> None:
    """Put such copies back."""
    live = [buffer for module in modules for buffer in module.buffers()]
    for buffer, old in zip(live, saved, strict=True):
        buffer.detach().copy_(old)


@contextmanager
def nothing_changed(tree: Tree, modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Leave random numbers and buffers as they were, whatever happens inside."""
    random, buffers = Random.of(tree), get_buffers(modules)
    try:
        yield
    finally:
        random.restore()
        set_buffers(modules, buffers)

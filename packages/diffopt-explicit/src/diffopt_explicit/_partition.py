"""Different transforms for different parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import tree_leaves, tree_map


@dataclass(frozen=True)
class Freeze:
    """No update for any parameter."""

    def init(self, params: Tree) -> tuple[()]:
        """Return the empty state."""
        return ()

    def update(
        self, updates: Tree, state: tuple[()], params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, tuple[()]]:
        """Return `None` for every update."""
        return tree_map(lambda _: None, updates), state


@dataclass(frozen=True)
class Identity:
    """Updates as they are."""

    def init(self, params: Tree) -> tuple[()]:
        """Return the empty state."""
        return ()

    def update(
        self, updates: Tree, state: tuple[()], params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, tuple[()]]:
        """Return the updates."""
        return updates, state


@dataclass(frozen=True)
class Partition:
    """Each parameter by the transform that its label names.

    Attributes:
        transforms: A transform for each label.
        labels: Tree of labels shaped like the parameters, or a function from the
            parameters to it.
    """

    transforms: Mapping[Hashable, Transform]
    labels: Tree | Callable[[Tree], Tree]

    def init(self, params: Tree) -> dict[Hashable, Any]:
        """Return the state of each transform, for the parameters that are its own."""
        labels = self._labels(params)
        return {
            label: transform.init(_only(label, labels, params))
            for label, transform in self.transforms.items()
        }

    def update(
        self,
        updates: Tree,
        state: dict[Hashable, Any],
        params: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, dict[Hashable, Any]]:
        """Let each transform update the parameters that are its own."""
        labels = self._labels(updates if params is None else params)
        merged, after = updates, {}
        for label, transform in self.transforms.items():
            own = None if params is None else _only(label, labels, params)
            moved, after[label] = transform.update(
                _only(label, labels, updates), state[label], own, **extra
            )
            merged = tree_map(
                lambda old, of, new, label=label: new if of == label else old,
                *(merged, labels, moved),
                none_is_leaf=True,
            )
        return merged, after

    def _labels(self, params: Tree) -> Tree:
        labels = self.labels(params) if callable(self.labels) else self.labels
        unknown = {label for label in tree_leaves(labels) if label not in self.transforms}
        if unknown:
            raise ValueError(
                f"There is no transform for the labels {sorted(unknown, key=repr)}: there are "
                f"those for {list(self.transforms)}."
            )
        return labels


def partition(
    transforms: Mapping[Hashable, Transform], labels: Tree | Callable[[Tree], Tree]
) -> Partition:
    """Give each parameter the transform that its label names.

    A transform sees the parameters of its own label only; the others are `None` to it.

    Args:
        transforms: A transform for each label.
        labels: Tree of labels shaped like the parameters, or a function from the
            parameters to such a tree.

    Raises:
        ValueError: At the first `init` or `update`, for a label without a transform.

    Example:
        >>> import torch
        >>> from diffopt_explicit import partition, sgd
        >>> tx = partition({"fast": sgd(1.0), "slow": sgd(0.1)}, {"a": "fast", "b": "slow"})
        >>> params = {"a": torch.ones(1), "b": torch.ones(1)}
        >>> tx.update(params, tx.init(params), params)[0]
        {'a': tensor([-1.]), 'b': tensor([-0.1000])}
    """
    return Partition(dict(transforms), labels)


def masked(transform: Transform, mask: Tree | Callable[[Tree], Tree]) -> Partition:
    """Apply a transform to some parameters; the updates of the others pass unchanged.

    (To leave the others as they are, give them `freeze` by `partition`.)

    Args:
        transform: Sees the parameters of the mask only; the others are `None` to it.
        mask: Tree of truth values shaped like the parameters, or a function from the
            parameters to such a tree.

    Example:
        >>> import torch
        >>> from diffopt_explicit import masked, scale
        >>> tx, ones = masked(scale(5.0), {"a": True, "b": False}), torch.ones(1)
        >>> tx.update({"a": ones, "b": ones}, tx.init({"a": ones, "b": ones}))[0]
        {'a': tensor([5.]), 'b': tensor([1.])}

    Source: the semantics are those of Optax.
    """
    return Partition({True: transform, False: Identity()}, mask)


def identity() -> Identity:
    """Pass updates on as they are; of use as a part of `partition`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import identity
        >>> identity().update({"w": torch.ones(1)}, ())
        ({'w': tensor([1.])}, ())
    """
    return Identity()


def freeze() -> Freeze:
    """Leave parameters as they are; of use as a part of `partition`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import freeze
        >>> freeze().update({"w": torch.ones(1)}, ())
        ({'w': None}, ())
    """
    return Freeze()


def _only(label: Hashable, labels: Tree, tree: Tree) -> Tree:
    """The tree with `None` for every leaf of another label."""
    return tree_map(lambda leaf, of: leaf if of == label else None, tree, labels, none_is_leaf=True)

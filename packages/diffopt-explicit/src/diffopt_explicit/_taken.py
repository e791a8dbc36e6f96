"""Steps in a row that were taken with a graph, from tensors of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._outside import differentiable_leaves
from diffopt_explicit._pull import Sums, gradients_of, with_graph, with_proxies
from diffopt_explicit._store import Step
from diffopt_explicit._transform import Tree


class Taken:
    """The graph of some steps in a row; one is added by each call of `add`.

    Attributes:
        first: The first of the steps.
        carry: That after the last of them, part of the graph.
    """

    def __init__(self, first: int, carry: Tree, like: Tree = None) -> None:
        """Begin before step `first`, where `carry` needs a gradient as far as `like` does."""
        self.first = first
        self.carry, self._leaves = with_graph(carry, like)
        self._proxies: dict[Tensor, Tensor] = {}  # by the arguments that they stand for
        self._losses: list[Tensor] = []
        self._extras: list[Any] = []

    def add(self, step: Step, arguments: tuple[Tree, ...]) -> tuple[Tree, Tensor, Any]:
        """Take one more step, and return what it gives."""
        arguments = with_proxies(arguments, self._proxies)
        with torch.enable_grad():
            results = step(self.carry, arguments, True)
        self.carry, loss, extra = results
        self._losses.append(loss)
        self._extras.append(extra)
        return results

    @property
    def results(self) -> tuple[Tree, list[Tensor], list[Any]]:
        """The carry after the steps, the losses, and what the losses returned besides."""
        return self.carry, self._losses, self._extras

    @property
    def own(self) -> list[Tensor]:
        """The leaves of the graph that stand for what was given."""
        return [*self._leaves, *self._proxies.values()]

    @property
    def counts(self) -> tuple[int, int]:
        """How many tensors the carry and the extras have that can have gradients."""
        return len(differentiable_leaves(self.carry)), len(differentiable_leaves(self._extras))

    def pull(
        self, cotangents: Sequence[Tensor | None], outside: list[Tensor], sums: Sums
    ) -> list[Tensor | None]:
        """The gradients of the carry before the steps; those of all else go to `sums`.

        Args:
            cotangents: Of the carry after the steps, of each loss, and of the extras.
            outside: Leaves of the graph that the steps close over.
            sums: What there is so far is added to in the order of `Store`, so that many steps
                at once give the same to the last bit.
        """
        after, extras = differentiable_leaves(self.carry), differentiable_leaves(self._extras)
        given, stand_ins = [*self._proxies, *outside], [*self._proxies.values(), *outside]
        found = gradients_of(
            [*after, *self._losses, *extras, *stand_ins],
            [*cotangents, *map(sums.take, given)],
            [*self._leaves, *stand_ins],
            retain_graph=bool(outside),  # of what led to tensors from outside
        )
        count = len(self._leaves)
        for tensor, gradient in zip(given, found[count:], strict=True):
            sums.add(tensor, gradient)
        return found[:count]

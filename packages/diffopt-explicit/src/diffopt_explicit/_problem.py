"""Unrolls as functions of tensors that are given anew, one by one or as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from diffopt_explicit._fitting import at_once
from diffopt_explicit._outside import differentiable
from diffopt_explicit._reversible import Reversible
from diffopt_explicit._store import Step, Store, Unrolled
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_map, tree_unflatten

if TYPE_CHECKING:
    from diffopt_explicit._replay import Replay


def changing(*trees: Tree) -> list[Tensor]:
    """The different tensors of some trees that a transform knows, or that are in a graph."""
    leaves = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
    found = {id(t): t for t in leaves if is_functorch_wrapped_tensor(t) or t.requires_grad}
    return list(found.values())


def refilled(tree: Tree, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    """The tree with other tensors in the places of some."""
    new = {id(old): other for old, other in zip(tensors, others, strict=True)}
    return tree_map(lambda leaf: new.get(id(leaf), leaf), tree)


class Problem:
    """An unroll of which some tensors are given anew.

    Attributes:
        tensors: Those, in the start and in what the steps get.
        batched: The same for a batch of such tensors, once that was asked for.
    """

    def __init__(
        self, adjoint: Replay, step: Step, start: Tree, inputs: list[tuple[Tree, ...]]
    ) -> None:
        self.adjoint, self.step, self._start, self._inputs = adjoint, step, start, inputs
        self.tensors = changing(start, inputs)
        self.batched: Problem | None = None
        self._taken: tuple[Reversible, list[Tensor], Unrolled] | None = None

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Tree, list[tuple[Tree, ...]]]:
        """The start and the inputs with these tensors in the places of `tensors`."""
        return refilled((self._start, self._inputs), self.tensors, tensors)

    @property
    def taken(self) -> tuple[Reversible, list[Tensor], Unrolled]:
        """The steps, the tensors that they were given, and what they gave."""
        if self._taken is None:
            assert self.batched is not None
            return self.batched.taken
        return self._taken

    def take(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Take all steps, and return the tensors of what they give."""
        own = [t.detach().requires_grad_() if differentiable(t) else t.detach() for t in tensors]
        start, inputs = self.filled(own)
        steps = Reversible(
            self.adjoint, self.step, start, at_once(self.adjoint, self.step, start, inputs)
        )
        done = steps.take(inputs)
        if steps.outside:
            raise ValueError(
                f"A tensor of shape {tuple(steps.outside[0].shape)} that requires grad is used by "
                "a later step of an unroll, but not by the first, without being given to them. "
                "Pass it by `meta_params` or `batches`, or use `Store()`."
            )
        self._taken = steps, own, done
        return tuple(leaf for leaf in tree_leaves(done) if isinstance(leaf, Tensor))

    def rebuilt(self, tensors: Iterable[Tensor]) -> Unrolled:
        """What the steps give, with other tensors."""
        leaves, spec = tree_flatten(self.taken[2])
        return tree_unflatten(spec, _put(leaves, tensors))

    def batch_dims(self, keep: Callable[[Any], bool]) -> list[int]:
        """Where what the steps give, as far as asked for, has the dimension of a batch."""
        carry, _, extras = self.taken[2]
        before, after = (sum(map(keep, tree_leaves(tree))) for tree in (carry, extras))
        return [0] * before + [1] + [0] * after  # losses are a step an entry

    def pull(self, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of those of `tensors` that can have one."""
        steps, own, _ = self.taken
        found = dict(zip(map(id, steps.tensors), steps.pull(cotangents), strict=True))
        wanted = list(filter(differentiable, own))
        gradients = [found.get(id(tensor)) for tensor in wanted]
        return tuple(
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(wanted, gradients, strict=True)
        )

    def stored(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What `take` gives, as far as it is differentiable, with all graphs."""
        start, inputs = self.filled(tensors)
        with self.taken[0].as_before(), torch.enable_grad():
            done = Store().run(self.step, start, inputs, tracked_from=0)
        return list(filter(differentiable, tree_leaves(done)))


class Batch(Problem):
    """Many unrolls at once, whose tensors all have a new first dimension."""

    def __init__(self, one: Problem, size: int, randomness: str) -> None:
        super().__init__(one.adjoint, self._step, None, [])
        self.tensors = one.tensors  # as many
        self._one, self._size, self._randomness = one, size, randomness

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Tree, list[tuple[Tree, ...]]]:
        """The start as a batch, and the inputs as batches apart from all else."""
        start, inputs = self._one.filled(tensors)
        batches = set(map(id, tensors))

        def as_batch(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or id(leaf) in batches:
                return leaf
            return leaf.expand(self._size, *leaf.shape)

        return tree_map(as_batch, start), [_apart(arguments, batches) for arguments in inputs]

    def _step(self, carry: Tree, arguments: tuple[Tree, ...], create_graph: bool) -> Any:
        batches, rest = arguments
        leaves, spec = tree_flatten(carry)
        results: list[Any] = []

        def one(tensors: list[Tensor], batches: list[Tensor]) -> list[Tensor]:
            carry = tree_unflatten(spec, _put(leaves, tensors))
            results[:] = tree_flatten(self._one.step(carry, rest.joined(batches), create_graph))
            return [leaf for leaf in results[0] if isinstance(leaf, Tensor)]

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        found = torch.func.vmap(one, randomness=self._randomness)(tensors, batches)
        return tree_unflatten(results[1], _put(results[0], found))


class _Apart:
    """A tree without some of its tensors. Opaque, so that none of the others is looked at."""

    def __init__(self, leaves: list[Any], spec: Any) -> None:
        self._leaves, self._spec = leaves, spec

    def joined(self, tensors: Iterable[Tensor]) -> Any:
        """The tree with such tensors."""
        remaining = iter(tensors)
        whole = [next(remaining) if leaf is _Apart else leaf for leaf in self._leaves]
        return tree_unflatten(self._spec, whole)


def _apart(tree: Tree, chosen: set[int]) -> tuple[list[Tensor], _Apart]:
    """The tensors chosen by their ids, and the rest of the tree."""
    leaves, spec = tree_flatten(tree)
    tensors = [leaf for leaf in leaves if id(leaf) in chosen]
    return tensors, _Apart([_Apart if id(leaf) in chosen else leaf for leaf in leaves], spec)


def _put(leaves: list[Any], tensors: Iterable[Tensor]) -> list[Any]:
    """The leaves with other tensors."""
    remaining = iter(tensors)
    return [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)

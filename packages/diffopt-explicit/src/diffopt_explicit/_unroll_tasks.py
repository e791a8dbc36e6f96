"""The inner loops of many tasks, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from diffopt_explicit._compiled import code_of
from diffopt_explicit._elementwise import is_elementwise
from diffopt_explicit._gradient import Gradient, Recorded
from diffopt_explicit._store import Adjoint, Store
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import (
    place,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from diffopt_explicit._unroll import UnrollResult, unroll


def unroll_tasks(
    loss: Callable[..., Tensor],
    tx: Transform | Callable[[Tree], Transform],
    params: Tree,
    tasks: Tree,
    *,
    steps: int | None = None,
    batches: Iterable[Tree] | None = None,
    meta_params: Tree | None = None,
    hyperparams: Tree | None = None,
    starts_apart: bool = False,
    adjoint: Adjoint = Store(),
    gradient: Gradient = Recorded(),
    first_order: bool = False,
    chunk_size: int | None = None,
) -> UnrollResult:
    """Minimize an inner loss for each of many tasks: `unroll` of all of them at once.

    What a loop over the tasks gives, to rounding, many times faster where the networks are small.
    Where the optimizer is known to treat every element by itself (those of `torch.optim` but
    `adafactor` and `muon`, and `lion`, without clipping by norms), the parameters of all tasks
    are stacked, and each step is one of the stack, by one call of a fused kernel. With any other
    optimizer whole loops run under `torch.func.vmap`, each with its own norms.

    Args:
        loss: The inner loss of one task, giving a 0-d tensor. Called with the arguments that
            there are of ``loss(params, meta_params, task, batch)``, in this order, under `vmap`:
            it may not branch on values. Random numbers differ from task to task.
        tx: The inner optimizer; or a function of `hyperparams` of one task that returns it.
        params: Initial parameters, the same for all tasks.
        tasks: A tree of tensors, with a first dimension of the tasks: what tells them apart.
        steps: How many steps to take, if `loss` needs no batch.
        batches: What to pass to `loss` in each step, one step an item, for all tasks: trees of
            tensors with a first dimension of the tasks.
        meta_params: What the outer loop learns, passed on to `loss`, the same for all tasks.
        hyperparams: A tree of tensors with a first dimension of the tasks, such as their step
            sizes, of which `tx` makes an optimizer.
        starts_apart: Whether `params` has a first dimension of the tasks: a start for each.
        adjoint: As in `unroll`; not `Forward()` with an optimizer that needs whole loops.
        gradient: `Recorded()`, `Recomputed()` or `Compiled()`, as in `unroll`.
        first_order: Take the inner gradients as constants, as in `unroll`.
        chunk_size: How many tasks to do at once, all by default; fewer need less memory at a
            time, and take longer. Graphs are kept of all of them until they are differentiated:
            for less, use `Replay`, or differentiate the loss of a few tasks at a time.

    Returns:
        Final parameters and state with a first dimension of the tasks, but for what counts steps,
        and `losses` of shape ``(tasks, steps)``.

    Raises:
        ValueError: If the first dimensions differ, or as `unroll` does.

    Example:
        >>> import torch
        >>> from diffopt_explicit import sgd, unroll_tasks
        >>> start, targets = torch.tensor(0.0, requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
        >>> loss = lambda w, target: (w - target) ** 2 / 2
        >>> result = unroll_tasks(loss, sgd(lr=0.5), start, targets, steps=2)
        >>> result.params
        tensor([0.7500, 1.5000, 2.2500], grad_fn=<...>)
        >>> torch.autograd.grad(result.params.sum(), start)  # 3 * (1 - lr) ** 2
        (tensor(0.7500),)
    """
    listed = None if batches is None else list(batches)
    given = {"tasks": tasks, "hyperparams": hyperparams, "batches": listed}
    count = _count(given | ({"params": params} if starts_apart else {}))
    if hyperparams is None and not isinstance(tx, Transform):
        raise TypeError(f"`tx` must be a transform where there are no `hyperparams`, got {tx!r}.")
    if hyperparams is not None and (isinstance(tx, Transform) or not callable(tx)):
        raise TypeError(f"`tx` must be a function of the `hyperparams` of a task, got {tx!r}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be a number of tasks, at least 1, got {chunk_size}.")
    options = {"adjoint": adjoint, "gradient": gradient, "first_order": first_order}
    done = []
    for part in _parts(count, chunk_size or count):
        mine, hyper, some = tree_map(lambda x, part=part: x[part], (tasks, hyperparams, listed))
        start = _start(params, part, starts_apart)
        many = {"steps": steps} if some is None else {"steps": steps, "batches": some}
        if isinstance(tx, Transform) and is_elementwise(tx):
            done.append(_stacked(loss, tx, start, mine, meta_params, many, options))
        else:
            done.append(_loops(loss, tx, start, mine, meta_params, hyper, many, options))
    return done[0] if len(done) == 1 else tree_map(_joined, *done, none_is_leaf=True)


def _start(params: Tree, part: slice, apart: bool) -> Tree:
    """Where some of the tasks begin."""
    size = part.stop - part.start

    def of_part(p: Any) -> Any:
        if not isinstance(p, Tensor):  # which `unroll` refuses
            return p
        return p[part] if apart else p.expand(size, *p.shape)

    return tree_map(of_part, params)


def _stacked(
    loss: Callable[..., Tensor],
    tx: Transform,
    start: Tree,
    tasks: Tree,
    meta_params: Tree | None,
    many: dict[str, Any],
    options: dict[str, Any],
) -> UnrollResult:
    """The steps of the stack of all tasks."""
    given = {"tasks": tasks, "meta_params": meta_params}
    result = unroll(_OfAll(loss), tx, start, meta_params=given, aux=True, **many, **options)
    assert result.aux is not None
    losses = torch.stack(result.aux, 1) if result.aux else torch.empty(_size(tasks), 0)
    return UnrollResult(result.params, result.opt_state, losses)


@dataclass(frozen=True)
class _OfAll:
    """The sum of the losses of all tasks, and these."""

    loss: Callable[..., Tensor]

    @property
    def __code__(self) -> Any:
        return code_of(self.loss)  # by which graphs are told apart

    def __call__(self, params: Tree, given: dict[str, Tree], *batch: Tree) -> tuple[Tensor, Tensor]:
        loss = _arguments_of(self.loss, given["meta_params"])
        losses = _each(loss, params, given["tasks"], *batch)
        return losses.sum(), losses


def _loops(
    loss: Callable[..., Tensor],
    tx: Transform | Callable[[Tree], Transform],
    start: Tree,
    tasks: Tree,
    meta_params: Tree | None,
    hyperparams: Tree | None,
    many: dict[str, Any],
    options: dict[str, Any],
) -> UnrollResult:
    """The loops of all tasks, each under the transform."""
    results: list[Any] = []

    def of_one(params: Tree, given: dict[str, Tree], *batch: Tree) -> Tensor:
        return _arguments_of(loss, given["meta_params"])(params, given["task"], *batch)

    def one(start: Tree, task: Tree, hyperparams: Tree, many: dict[str, Any]) -> list[Tensor]:
        own = tx if isinstance(tx, Transform) else tx(hyperparams)
        given = {"task": task, "meta_params": meta_params}
        result = unroll(of_one, own, start, meta_params=given, **many, **options)
        results[:] = tree_flatten(result)
        return [leaf for leaf in results[0] if isinstance(leaf, Tensor)]

    tensors = iter(_each(one, start, tasks, hyperparams, many))
    leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in results[0]]
    return tree_unflatten(results[1], leaves)


def _arguments_of(loss: Callable[..., Tensor], meta_params: Tree | None) -> Callable[..., Tensor]:
    """The loss as a function of the parameters and what is the task's own."""
    shared = () if meta_params is None else (meta_params,)

    def of_one(params: Tree, *rest: Tree) -> Tensor:
        value = loss(params, *shared, *rest)
        if not isinstance(value, Tensor) or value.dim():
            got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"The loss of a task must be a 0-d tensor, got {got}. Take its mean, or its sum."
            )
        return value

    return of_one


def _each(function: Callable[..., Any], *trees: Tree) -> Any:
    """The function of the trees of one task, for all tasks."""
    leaves, spec = tree_flatten(trees)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def one(tensors: list[Tensor]) -> Any:
        filled = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        return function(*tree_unflatten(spec, filled))

    return vmap(one, randomness="different")([leaves[i] for i in places])


def _size(tasks: Tree) -> int:
    return len(tree_leaves(tasks)[0])


def _parts(count: int, size: int) -> Iterator[slice]:
    """So many tasks, `size` in a row."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _joined(*parts: Any) -> Any:
    """What chunks of tasks gave, together."""
    apart = isinstance(parts[0], Tensor) and parts[0].dim()
    return torch.cat(parts) if apart else parts[0]


def _count(given: dict[str, Tree]) -> int:
    """How many tasks there are."""
    paths, leaves, _ = tree_flatten_with_path(given)
    tensors = [leaf for leaf in tree_leaves(given["tasks"]) if isinstance(leaf, Tensor)]
    if not tensors or not tensors[0].dim() or not len(tensors[0]):
        raise ValueError("`tasks` must have tensors with a first dimension of at least one task.")
    count = len(tensors[0])
    for path, leaf in zip(paths, leaves, strict=True):
        name = f"`{path[0]}{place(path[1:]) if path[1:] else ''}`"
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name} must be a tensor with a first dimension, got {leaf!r}.")
        if not leaf.dim() or len(leaf) != count:
            raise ValueError(
                f"{name} must have a first dimension of {count} tasks, as the first tensor of "
                f"`tasks` has; its shape is {tuple(leaf.shape)}."
            )
    return count

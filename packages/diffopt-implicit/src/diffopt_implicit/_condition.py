"""An optimality condition on trees, as an equation between flat tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_flatten, tree_leaves, tree_unflatten
from torch import Tensor

from diffopt_implicit._closure import closure_message, tracked_names
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import LinearMap, Solve, attach, detached
from diffopt_implicit._linear_system import MatVec, Tree
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._torch import Tensors, any_true, is_tracked, vjp

LinearSolver = Callable[[MatVec, Tree], Tree]


def attach_root(
    optimality_fun: Callable[..., Tree],
    root: Tree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    solve: LinearSolver,
    check: RootCheck,
    name: str = "`optimality_fun`",
) -> Tree:
    """Return `root`, differentiable in the tensors of `args` and `kwargs`."""
    space = Coordinates.of(root, "the root")
    leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    tensors = tuple(leaves[i] for i in places)
    static = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    condition = FlatCondition(optimality_fun, name, space, spec, static, places)
    values = detached(tuple(tree_leaves(root)))
    look_at(condition, values, detached(tensors))
    attached = attach(condition, flat(solve, space.spec), values, tensors, check)
    return tree_unflatten(space.spec, attached)


@dataclass(frozen=True)
class FlatCondition:
    """The condition as a function of the tensors of the root and of the arguments.

    It holds no tensors: autograd keeps it as long as the root, and tensors only until they have
    been used.

    Attributes:
        optimality_fun: The condition, on trees.
        name: What errors call it.
        space: What the root looks like.
        spec: The structure of ``(args, kwargs)``.
        static: The leaves of ``(args, kwargs)``, None in place of the tensors.
        places: The positions of the tensors among the leaves.
    """

    optimality_fun: Callable[..., Tree]
    name: str
    space: Coordinates
    spec: Any
    static: tuple[Any, ...]
    places: tuple[int, ...]

    def __call__(self, root: Tensors, tensors: Tensors) -> Tensors:
        leaves = list(self.static)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(self.spec, leaves)
        residual = self.optimality_fun(tree_unflatten(self.space.spec, root), *args, **kwargs)
        values, spec = tree_flatten(residual)
        shapes = tuple(getattr(value, "shape", None) for value in values)
        if spec != self.space.spec or shapes != self.space.shapes:
            raise ValueError(
                f"{self.name} must return a tree of the root's structure and shapes, "
                f"{self.space.spec}, {[tuple(shape) for shape in self.space.shapes]}; got "
                f"{spec}, {[None if shape is None else tuple(shape) for shape in shapes]}."
            )
        # In the root's dtype, so that cotangents of one are cotangents of the other.
        return tuple(
            value.to(dtype) for value, dtype in zip(values, self.space.dtypes, strict=True)
        )


def look_at(condition: FlatCondition, root: Tensors, values: Tensors) -> None:
    """Evaluate the condition once: its shape, its randomness, and gradients that it would lose."""
    # All that it is given is detached, so what the residual still depends on came by closure.
    # `vjp` makes the root differentiable at a level of its own, which is gone from the
    # result: a condition may so take a gradient in the root by `torch.autograd.grad`.
    before = random_states()
    residual = evaluate(condition, root, values)
    if any(is_tracked(value) for value in residual):
        names = tracked_names(condition.optimality_fun)
        raise ValueError(closure_message(condition.name, names))
    if same_states(before):
        return
    # It may have seeded what it drew: then it draws the same again, and is a function.
    if not same(residual, evaluate(condition, root, values)):
        raise ValueError(
            f"{condition.name} draws random numbers, and two evaluations at one point differ "
            "(dropout in training mode?). It is another equation each time, and a derivative "
            "would mix them: pass the randomness as an argument, such as a mask, seed it inside "
            "`torch.random.fork_rng()`, or call `.eval()`."
        )


def evaluate(condition: FlatCondition, root: Tensors, values: Tensors) -> Tensors:
    """Return the residual, and explain a condition that writes into what it reads."""
    try:
        return vjp(lambda *x: condition(x, values), *root)[0]
    except RuntimeError as error:
        if "mutate a captured Tensor" not in str(error):
            raise
        raise ValueError(
            f"{condition.name} writes in place into a tensor that it is given or closes over "
            "(the running statistics of batch norm in training mode?), and is evaluated more "
            "than once. Call `.eval()`, build the layer with `track_running_stats=False`, or "
            "write into a copy."
        ) from error


def random_states() -> Tensors:
    """Return the states of torch's default generators, of the devices in use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), *devices


def same_states(before: Tensors) -> bool:
    """Tell whether no random number was drawn since; nothing waits for a device here."""
    return all(torch.equal(a, b) for a, b in zip(before, random_states(), strict=True))


def same(ours: Tensors, theirs: Tensors) -> bool:
    """Tell whether tensors are equal, NaN included."""
    pairs = zip(ours, theirs, strict=True)
    return not any(any_true((a != b) & ~(a.isnan() & b.isnan())) for a, b in pairs)


def flat(solve: LinearSolver, spec: Any) -> Solve:
    """Turn a linear solver on trees of one structure into one on tuples of their leaves."""

    def solve_flat(matvec: LinearMap, b: Tensors) -> Tensors:
        def on_trees(x: Tree) -> Tree:
            return tree_unflatten(spec, matvec(tuple(tree_leaves(x))))

        return tuple(tree_leaves(solve(on_trees, tree_unflatten(spec, b))))

    return solve_flat

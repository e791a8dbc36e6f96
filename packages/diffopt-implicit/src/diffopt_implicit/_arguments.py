"""The arguments of a decorated solver: which is `init`, and which are differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pytree_core import tree_map
from torch import Tensor

Tree = Any


def normalized(argnums: int | Sequence[int] | None) -> frozenset[int] | None:
    """Check `argnums` and return it as a set; None stands for all."""
    if argnums is None:
        return None
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers:
        raise ValueError(
            "`argnums` is empty, so nothing would be differentiated; leave it out for all."
        )
    for number in numbers:
        if number == 0:
            raise ValueError(
                "`argnums` counts the solver's positional arguments, and 0 is `init`, on which a "
                "root does not depend. The first argument after it is 1."
            )
        if number < 0:
            raise ValueError(f"`argnums` must be positive, got {number}.")
    return frozenset(numbers)


def positional_names(solver: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the positional parameters of `solver`, as far as they have any."""
    try:
        parameters = inspect.signature(solver).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return ()
    return tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )


def split_init(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tree, tuple[Any, ...], dict[str, Any]]:
    """Take the first argument of the solver out of a call, wherever it stands."""
    if args:
        return args[0], args[1:], kwargs
    if names and names[0] in kwargs:
        rest = dict(kwargs)
        return rest.pop(names[0]), (), rest
    raise TypeError("The solver's first argument, where its search begins, is missing.")


def stop_unchosen(
    chosen: frozenset[int] | None,
    names: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detach the arguments that `argnums` leaves out."""
    if chosen is None:
        return args, kwargs
    numbers = {name: i for i, name in enumerate(names)}
    present = {*range(1, len(args) + 1), *(numbers[key] for key in kwargs if key in numbers)}
    missing = sorted(chosen - present)
    if missing:
        raise ValueError(
            f"`argnums` names argument {missing[0]}, but this call has only the arguments "
            f"{sorted(present)} after `init`, which is 0."
        )
    kept_args = tuple(
        value if i in chosen else without_graph(value) for i, value in enumerate(args, start=1)
    )
    kept_kwargs = {
        key: value if numbers.get(key) in chosen else without_graph(value)
        for key, value in kwargs.items()
    }
    return kept_args, kept_kwargs


def without_graph(tree: Tree, copy: bool = False) -> Tree:
    """Detach the tensors of a tree, and copy them if asked to."""

    def detach(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone() if copy else leaf.detach()

    return tree_map(detach, tree)

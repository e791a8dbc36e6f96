"""The same transform with other hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from diffopt_explicit._transform import Transform

T = TypeVar("T", bound=Transform)


def override(tx: T, **hyperparameters: Any) -> T:
    """Return the transform with some hyperparameters replaced, wherever in it they stand.

    Args:
        tx: A transform made of frozen dataclasses, as all of ours are.
        hyperparameters: New values by name: ``lr``, ``momentum``, ``betas`` ...

    Raises:
        ValueError: For a name that no part of the transform has.

    Example:
        >>> from diffopt_explicit import override, sgd
        >>> override(sgd(lr=0.1), lr=0.5)
        Chain(transforms=(ScaleByLearningRate(lr=0.5),))
    """
    known = _names(tx)
    for name in hyperparameters:
        if name not in known:
            raise ValueError(
                f"There is no hyperparameter `{name}` in {tx!r}; there are {sorted(known)}."
            )
    return _replaced(tx, hyperparameters)


def _parts(value: Any) -> tuple[Any, ...]:
    """The transforms inside a field of a transform."""
    values = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (tuple, list, Mapping)):
        return tuple(part for part in values if isinstance(part, Transform))
    return (value,) if isinstance(value, Transform) else ()


def _names(tx: Any) -> set[str]:
    names = set()
    for field in fields(tx) if is_dataclass(tx) else ():
        parts = _parts(getattr(tx, field.name))
        names.update(*map(_names, parts)) if parts else names.add(field.name)
    return names


def _replaced(tx: Any, hyperparameters: Mapping[str, Any]) -> Any:
    if not is_dataclass(tx) or isinstance(tx, type):
        return tx
    changes: dict[str, Any] = {}
    for field in fields(tx):
        value = getattr(tx, field.name)
        if not _parts(value):
            changes.update({k: v for k, v in hyperparameters.items() if k == field.name})
        elif isinstance(value, Mapping):
            changes[field.name] = {k: _replaced(v, hyperparameters) for k, v in value.items()}
        elif isinstance(value, (tuple, list)):
            changes[field.name] = type(value)(_replaced(v, hyperparameters) for v in value)
        else:
            changes[field.name] = _replaced(value, hyperparameters)
    return replace(tx, **changes)


def hyperparameters(tx: Transform) -> dict[str, Any]:
    """The numbers of a transform by name, but for names with different numbers in its parts."""
    found: dict[str, list[Any]] = {}
    _collect(tx, found)
    return {
        name: values[0]
        for name, values in found.items()
        if all(value is values[0] or _equal(value, values[0]) for value in values)
    }


def anatomy(tx: Transform) -> tuple[Any, ...]:
    """What kinds of parts a transform is made of, whatever their hyperparameters."""
    values = (getattr(tx, field.name) for field in fields(tx)) if is_dataclass(tx) else ()
    return type(tx), *(anatomy(part) for value in values for part in _parts(value))


def _collect(tx: Any, found: dict[str, list[Any]]) -> None:
    for field in fields(tx) if is_dataclass(tx) else ():
        value = getattr(tx, field.name)
        for part in _parts(value):
            _collect(part, found)
        numbers = value if isinstance(value, tuple) and value else (value,)
        if all(isinstance(number, (bool, int, float, Tensor)) for number in numbers):
            found.setdefault(field.name, []).append(value)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, Tensor) and a == b

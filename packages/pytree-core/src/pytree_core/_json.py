"""Structures as JSON: data only, no code and no imports."""

import json
import sys
from typing import Any

from pytree_core._core import TreeSpec, treespec_from_state
from pytree_core._tables import registered

_FORMAT = "pytree_core.TreeSpec"
_FACTORIES = (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
_PLAIN = (type(None), bool, int, float, str)


def to_json(treespec: TreeSpec) -> str:
    """Write a structure; see `TreeSpec.to_json`."""
    _, (state,) = treespec.__reduce__()
    version, nodes = state
    return json.dumps(
        {
            "format": _FORMAT,
            "version": version,
            "nodes": [[kind, arity, _encode_data(kind, data)] for kind, arity, data in nodes],
        }
    )


def from_json(text: str) -> TreeSpec:
    """Read a structure; see `TreeSpec.from_json`."""
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise ValueError(f"the format is {document['format']!r}, not {_FORMAT!r}")
        nodes = tuple(
            (kind, arity, _decode_data(kind, data)) for kind, arity, data in document["nodes"]
        )
        return treespec_from_state((document["version"], nodes))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is not a TreeSpec in JSON: {error}") from error


def _encode_data(kind: str, data: Any) -> Any:
    match kind:
        case "dict" | "ordereddict":
            return _encode(data)
        case "defaultdict":
            factory, keys = data
            if factory is not None and factory not in _FACTORIES:
                raise ValueError(f"the default factory {factory!r} has no safe form in JSON")
            return [factory and factory.__name__, _encode(keys)]
        case "dict_subclass":
            cls, keys = data
            return [_name(cls), _encode(keys)]
        case "namedtuple" | "structsequence":
            return _name(data)
        case "custom":
            namespace, cls, metadata, entries = data
            return [namespace, _name(cls), _encode(metadata), _encode(entries)]
        case _:
            return data


def _decode_data(kind: str, data: Any) -> Any:
    match kind:
        case "dict" | "ordereddict":
            return _decode(data)
        case "defaultdict":
            name, keys = data
            factories = {factory.__name__: factory for factory in _FACTORIES}
            return None if name is None else factories[name], _decode(keys)
        case "dict_subclass":
            name, keys = data
            return _find(name), _decode(keys)
        case "namedtuple" | "structsequence":
            return _find(data)
        case "custom":
            namespace, (module, qualname), metadata, entries = data
            registration = registered(module, qualname, namespace)
            if registration is None:
                raise ValueError(
                    f"register {module}.{qualname} in the namespace {namespace!r} "
                    "before loading a TreeSpec with it"
                )
            return namespace, registration.cls, _decode(metadata), _decode(entries)
        case _:
            return data


def _name(cls: type) -> list[str]:
    return [cls.__module__, cls.__qualname__]


def _find(name: list[str]) -> Any:
    """Find a class in a module that is imported already, running no code of it."""
    module, qualname = name
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if not isinstance(found, type):
        raise ValueError(f"the type {module}.{qualname} is not known here: import it first")
    return found


def _encode(value: Any) -> Any:
    """Write a key or metadata so that its type comes back."""
    kind = _class_of(value)
    if kind in _PLAIN:
        return value
    if kind in (tuple, list):
        return {kind.__name__: [_encode(item) for item in value]}
    if kind is dict:
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    raise ValueError(f"{value!r} has no safe form in JSON")


def _decode(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    ((kind, items),) = value.items()
    match kind:
        case "tuple":
            return tuple(_decode(item) for item in items)
        case "list":
            return [_decode(item) for item in items]
        case "dict":
            return {_decode(key): _decode(item) for key, item in items}
        case _:
            raise ValueError(f"{kind!r} is no kind of value")


def _class_of(value: object) -> Any:
    return type(value)

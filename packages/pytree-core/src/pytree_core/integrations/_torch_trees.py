"""Trees where torch itself takes them apart: `torch.utils._pytree` and `torch.compile`."""

import functools
from typing import Any

import torch.utils._pytree as torch_trees

from pytree_core import _core, _reference
from pytree_core._tables import lookup, parts, registered_types


def register_with_torch(cls: type | None = None, *, namespace: str = "") -> None:
    """Let `torch.utils._pytree`, and so `torch.func` and `torch.vmap`, know registered types.

    Args:
        cls: A registered type. By default all that are registered now, and that torch does
            not know yet.
        namespace: The one that they are registered in.

    Raises:
        ValueError: If `cls` is not registered here, or is registered with torch already.

    Example:
        >>> import torch, pytree_core as pt
        >>> from pytree_core.integrations.torch import register_with_torch
        >>> @pt.dataclasses.dataclass(namespace="doc-torch")
        ... class Pair:
        ...     a: torch.Tensor
        ...     b: torch.Tensor
        >>> register_with_torch(Pair, namespace="doc-torch")
        >>> pair = Pair(torch.ones(2), torch.zeros(2))
        >>> torch.func.vmap(lambda p: p.a + p.b)(pair)
        tensor([1., 1.])
    """
    if cls is None:
        for known in registered_types(namespace):
            if known not in torch_trees.SUPPORTED_NODES:
                register_with_torch(known, namespace=namespace)
        return
    registration = lookup(cls, namespace)
    if registration is None:
        raise ValueError(f"{cls!r} is not registered in the namespace {namespace!r}.")

    def flatten(node: Any) -> tuple[list[Any], Any]:
        children, metadata, _ = parts(registration, node)
        return list(children), metadata

    def flatten_with_keys(node: Any) -> tuple[list[Any], Any]:
        children, metadata, entries = parts(registration, node)
        return list(zip(map(_key, entries), children, strict=True)), metadata

    def unflatten(children: Any, metadata: Any) -> Any:
        return registration.unflatten_func(metadata, tuple(children))

    torch_trees.register_pytree_node(
        cls, flatten, unflatten, flatten_with_keys_fn=flatten_with_keys
    )


@functools.cache
def register_with_dynamo() -> None:
    """Let `torch.compile` trace through the functions of this package without a graph break.

    Inside a compiled function they run in Python, while it is traced and not after.
    Structures made outside cannot be used there, and those made inside not outside. A deque
    comes out without its `maxlen`, which Dynamo does not see.

    Example:
        >>> import torch, pytree_core as pt
        >>> from pytree_core.integrations.torch import register_with_dynamo
        >>> register_with_dynamo()
        >>> @torch.compile(fullgraph=True, backend="eager")
        ... def double(tree):
        ...     return pt.tree_map(lambda x: 2 * x, tree)
        >>> double({"a": torch.ones(2)})
        {'a': tensor([2., 2.])}
    """
    if _core.__backend__ == "python":
        return  # it is what Dynamo traces anyway
    from torch.compiler import substitute_in_graph

    for name in (
        "flatten_one_level",
        "tree_flatten",
        "tree_flatten_with_path",
        "tree_is_leaf",
        "tree_leaves",
        "tree_map",
        "tree_map_with_path",
        "tree_structure",
        "tree_unflatten",
    ):
        substitute: Any = substitute_in_graph(getattr(_core, name), skip_signature_check=True)
        substitute(getattr(_reference, name))


def _key(entry: Any) -> Any:
    make: Any = torch_trees.GetAttrKey if isinstance(entry, str) else torch_trees.SequenceKey
    return make(entry)

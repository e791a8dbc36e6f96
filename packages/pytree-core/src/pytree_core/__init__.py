"""Trees of Python containers, taken apart into leaves and structure, and rebuilt."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from pytree_core._accessors import Accessor as Accessor
from pytree_core._accessors import Attribute as Attribute
from pytree_core._accessors import Item as Item
from pytree_core._accessors import keystr as keystr
from pytree_core._accessors import tree_accessors as tree_accessors
from pytree_core._accessors import tree_flatten_with_accessor as tree_flatten_with_accessor
from pytree_core._accessors import tree_map_with_accessor as tree_map_with_accessor
from pytree_core._broadcast import broadcast_common as broadcast_common
from pytree_core._broadcast import broadcast_prefix as broadcast_prefix
from pytree_core._broadcast import tree_broadcast_common as tree_broadcast_common
from pytree_core._broadcast import tree_broadcast_map as tree_broadcast_map
from pytree_core._broadcast import tree_broadcast_prefix as tree_broadcast_prefix
from pytree_core._core import TreeSpec as TreeSpec
from pytree_core._core import __backend__ as __backend__
from pytree_core._core import clear_cache as clear_cache
from pytree_core._core import tree_flatten as tree_flatten
from pytree_core._core import tree_flatten_with_path as tree_flatten_with_path
from pytree_core._core import tree_is_leaf as tree_is_leaf
from pytree_core._core import tree_leaves as tree_leaves
from pytree_core._core import tree_map as tree_map
from pytree_core._core import tree_map_with_path as tree_map_with_path
from pytree_core._core import tree_structure as tree_structure
from pytree_core._core import tree_unflatten as tree_unflatten
from pytree_core._differences import equality_errors as equality_errors
from pytree_core._differences import prefix_errors as prefix_errors
from pytree_core._iterate import tree_iter as tree_iter
from pytree_core._partial import Partial as Partial
from pytree_core._paths import tree_paths as tree_paths
from pytree_core._reduce import tree_all as tree_all
from pytree_core._reduce import tree_any as tree_any
from pytree_core._reduce import tree_max as tree_max
from pytree_core._reduce import tree_min as tree_min
from pytree_core._reduce import tree_reduce as tree_reduce
from pytree_core._reduce import tree_sum as tree_sum
from pytree_core._registry import register_pytree_node as register_pytree_node
from pytree_core._registry import register_pytree_node_class as register_pytree_node_class
from pytree_core._registry import register_static as register_static
from pytree_core._registry import unregister_pytree_node as unregister_pytree_node
from pytree_core._select import tree_all_only as tree_all_only
from pytree_core._select import tree_any_only as tree_any_only
from pytree_core._select import tree_combine as tree_combine
from pytree_core._select import tree_filter as tree_filter
from pytree_core._select import tree_map_only as tree_map_only
from pytree_core._select import tree_partition as tree_partition
from pytree_core._select import tree_replace_nones as tree_replace_nones
from pytree_core._select import tree_select as tree_select
from pytree_core._specs import treespec_from_collection as treespec_from_collection
from pytree_core._specs import treespec_leaf as treespec_leaf
from pytree_core._transform import all_leaves as all_leaves
from pytree_core._transform import tree_map_ as tree_map_
from pytree_core._transform import tree_transpose as tree_transpose
from pytree_core._transform import tree_transpose_map as tree_transpose_map
from pytree_core._typing import PyTree as PyTree

if _TYPE_CHECKING:
    from pytree_core import dataclasses as dataclasses

__version__: str


def __getattr__(name: str) -> _Any:
    """Get what takes longer to import than all else, when it is asked for."""
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("pytree-core")
    if name == "dataclasses":
        return importlib.import_module("pytree_core.dataclasses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

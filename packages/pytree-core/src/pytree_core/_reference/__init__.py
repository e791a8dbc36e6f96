"""What the native core does, said plainly in Python.

Its specification and the oracle of its tests; what `torch.compile` traces in its place; and
the core itself where there was no compiler to build the native one.
"""

from pytree_core._reference.calls import clear_cache as clear_cache
from pytree_core._reference.calls import flatten_one_level as flatten_one_level
from pytree_core._reference.calls import publish as publish
from pytree_core._reference.calls import tree_flatten as tree_flatten
from pytree_core._reference.calls import tree_flatten_with_path as tree_flatten_with_path
from pytree_core._reference.calls import tree_is_leaf as tree_is_leaf
from pytree_core._reference.calls import tree_leaves as tree_leaves
from pytree_core._reference.calls import tree_map as tree_map
from pytree_core._reference.calls import tree_map_with_path as tree_map_with_path
from pytree_core._reference.calls import tree_structure as tree_structure
from pytree_core._reference.calls import tree_unflatten as tree_unflatten
from pytree_core._reference.kinds import sorted_keys as sorted_keys
from pytree_core._reference.state import treespec_from_state as treespec_from_state
from pytree_core._reference.treespec import TreeSpec as TreeSpec
from pytree_core._reference.treespec import mismatches as mismatches

MAX_DEPTH = 1000

"""Trees of NumPy arrays as vectors: raveling, arithmetic, norms."""

import functools
from typing import Any

import numpy as np

from pytree_core._broadcast import tree_broadcast_prefix
from pytree_core._core import (
    tree_leaves,
    tree_map,
    tree_map_with_path,
)
from pytree_core.integrations._arithmetic import tree_add as tree_add
from pytree_core.integrations._arithmetic import tree_add_scalar_mul as tree_add_scalar_mul
from pytree_core.integrations._arithmetic import tree_mul as tree_mul
from pytree_core.integrations._arithmetic import tree_scalar_mul as tree_scalar_mul
from pytree_core.integrations._arithmetic import tree_sub as tree_sub
from pytree_core.integrations._ravel import Unravel as Unravel
from pytree_core.integrations._ravel import ravel


def tree_ravel(tree: Any, /) -> tuple[np.ndarray[Any, Any], Unravel]:
    """Lay all arrays of a tree end to end in one vector.

    Args:
        tree: A tree of arrays or numbers. Mixed dtypes are promoted to one.

    Returns:
        The vector, and the function that turns such a vector into a tree like `tree`, with
        its dtypes.

    Example:
        >>> import numpy as np
        >>> vector, unravel = tree_ravel({"b": np.ones(2), "a": 0})
        >>> vector
        array([0., 1., 1.])
        >>> unravel(2 * vector)
        {'b': array([2., 2.]), 'a': array(0)}
    """
    return ravel(tree, np)


def tree_vdot(a: Any, b: Any, /) -> Any:
    """Compute ``sum(conj(a) * b)`` over all elements of two trees.

    Args:
        a: A tree of arrays.
        b: A tree of arrays with the structure and the shapes of `a`.

    Returns:
        A number; zero if there are no leaves.

    Raises:
        ValueError: If the structures or the shapes differ.

    Example:
        >>> import numpy as np
        >>> float(tree_vdot([np.ones(2), np.ones(())], [np.ones(2), np.array(5.0)]))
        7.0
    """

    def vdot(path: tuple[Any, ...], x: Any, y: Any) -> Any:
        first, second = np.asarray(x), np.asarray(y)
        if first.shape != second.shape:
            raise ValueError(f"at {path}: the shapes {first.shape} and {second.shape} differ")
        product: Any = np.vdot(first, second)
        return product

    return functools.reduce(np.add, tree_leaves(tree_map_with_path(vdot, a, b)), 0.0)


def tree_l2_norm(tree: Any, /, *, squared: bool = False) -> Any:
    """Compute the Euclidean norm of all elements of a tree.

    Args:
        tree: A tree of arrays.
        squared: Return the square of the norm.

    Example:
        >>> import numpy as np
        >>> float(tree_l2_norm({"a": np.array([3.0]), "b": 4.0}))
        5.0
    """
    square = np.real(tree_vdot(tree, tree))
    return square if squared else np.sqrt(square)


def tree_zeros_like(tree: Any, /) -> Any:
    """Make a tree of zeros like a tree of arrays.

    Args:
        tree: A tree of arrays.

    Example:
        >>> import numpy as np
        >>> tree_zeros_like((np.ones(2), None))
        (array([0., 0.]), None)
    """
    return tree_map(np.zeros_like, tree)


def tree_ones_like(tree: Any, /) -> Any:
    """Make a tree of ones like a tree of arrays.

    Args:
        tree: A tree of arrays.

    Example:
        >>> import numpy as np
        >>> tree_ones_like((np.zeros(2), None))
        (array([1., 1.]), None)
    """
    return tree_map(np.ones_like, tree)


def tree_where(condition: Any, a: Any, b: Any, /) -> Any:
    """Choose the elements of one tree where a condition holds, and of another elsewhere.

    Args:
        condition: A boolean array, or a tree of them that is a prefix of `a`.
        a: A tree of arrays.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> import numpy as np
        >>> tree_where(False, [np.ones(2)], [np.zeros(2)])
        [array([0., 0.])]
    """
    return tree_map(np.where, tree_broadcast_prefix(condition, a), a, b)

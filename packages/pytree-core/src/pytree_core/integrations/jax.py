"""Trees of JAX arrays as vectors: raveling, arithmetic. All differentiable, all traceable."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from pytree_core.integrations._arithmetic import tree_add as tree_add
from pytree_core.integrations._arithmetic import tree_add_scalar_mul as tree_add_scalar_mul
from pytree_core.integrations._arithmetic import tree_mul as tree_mul
from pytree_core.integrations._arithmetic import tree_scalar_mul as tree_scalar_mul
from pytree_core.integrations._arithmetic import tree_sub as tree_sub
from pytree_core.integrations._ravel import Unravel as Unravel
from pytree_core.integrations._ravel import ravel


def tree_ravel(tree: Any, /) -> tuple[Array, Unravel]:
    """Lay all arrays of a tree end to end in one vector.

    Args:
        tree: A tree of arrays or numbers. Mixed dtypes are promoted to one.

    Returns:
        The vector, and the function that turns such a vector into a tree like `tree`, with
        its dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> vector, unravel = tree_ravel({"b": jnp.ones(2), "a": jnp.zeros(())})
        >>> vector.tolist()
        [0.0, 1.0, 1.0]
        >>> unravel(2 * vector)["b"].tolist()
        [2.0, 2.0]
    """
    return ravel(tree, jnp)

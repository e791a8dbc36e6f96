"""Trees of arrays laid out in one vector, with NumPy or what has its functions."""

import math
from dataclasses import dataclass
from typing import Any

from pytree_core._core import TreeSpec, tree_flatten


@dataclass(frozen=True)
class Unravel:
    """Rebuild a tree of arrays from one vector, as `tree_ravel` laid it out.

    Attributes:
        treespec: The structure of the tree.
        shapes: The shape of each leaf.
        dtypes: The dtype of each leaf, which it gets back.
        dtype: The dtype that the vector must have.
    """

    treespec: TreeSpec
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    dtype: Any

    def __call__(self, vector: Any) -> Any:
        """Return the tree whose leaves are the pieces of `vector`."""
        sizes = [math.prod(shape) for shape in self.shapes]
        if vector.shape != (sum(sizes),) or vector.dtype != self.dtype:
            raise ValueError(
                f"expected a vector of {sum(sizes)} {self.dtype}, "
                f"got {vector.dtype} of shape {vector.shape}"
            )
        leaves: list[Any] = []
        start = 0
        for size, shape, dtype in zip(sizes, self.shapes, self.dtypes, strict=True):
            piece = vector[start : start + size].reshape(shape)
            leaves.append((piece if dtype.kind == "c" else piece.real).astype(dtype))
            start += size
        return self.treespec.unflatten(leaves)


def ravel(tree: Any, numpy: Any) -> tuple[Any, Unravel]:
    """Lay all arrays of a tree end to end, with the functions of the module `numpy`."""
    leaves, treespec = tree_flatten(tree)
    arrays = [numpy.asarray(leaf) for leaf in leaves]
    dtypes = tuple(array.dtype for array in arrays)
    dtype = numpy.result_type(*dtypes) if dtypes else numpy.zeros(0).dtype
    unravel = Unravel(treespec, tuple(array.shape for array in arrays), dtypes, dtype)
    parts = [array.reshape(-1).astype(dtype) for array in arrays]
    return numpy.concatenate(parts) if parts else numpy.zeros(0, dtype), unravel

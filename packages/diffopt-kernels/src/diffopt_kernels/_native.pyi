"""The native loops. Addresses are of dense arrays in one common order, 0 for none.

Every function that computes takes the hyperparameters with weight decay as the last: once, or one
row after another for each tensor. Sums are rows of float64, one for each hyperparameter, with a
sum for each tensor.
"""

from collections.abc import Sequence

version: str
compiler: str
simd: str
openmp: bool
rules: dict[str, tuple[int, int, list[int]]]
"""By name: the code, the number of hyperparameters, the number of states of each variant."""
cuda_architectures: str
"""As CMake names them, separated by ", "; where it is empty, there are no functions for CUDA."""

class Looker:
    """Looks at tensors: through DLPack's table of functions if it is given, or their attributes.

    Both tell the same, the first several times faster.
    """

    def __init__(
        self, types: tuple[type, ...], dtypes: tuple[object, ...], exchange: object | None, /
    ) -> None: ...
    def __call__(
        self, columns: tuple[Sequence[object], ...], complete: int, /
    ) -> tuple[list[int], bool, list[int], int, int] | None:
        """Return what lists of tensors have in common, and where they lie.

        That is the sizes of the first list, whether all are contiguous, all addresses, the place
        of their dtype among `dtypes`, and the index of their GPU or -1. Lists after the first
        `complete` ones may hold None, whose address is 0.

        None unless the lists are as long as the first, of tensors that are nothing but memory on
        the CPU or one GPU, of one of the `dtypes`, and shaped alike in each row: of one of the
        `types`, not lazily negated, with an address.
        """

def forward(
    rule: int,
    variant: int,
    dtype: int,
    decay: int,
    maximize: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
    in_place: bool,
    addresses: Sequence[int],
    threads: int,
    /,
) -> None: ...
def vjp(
    rule: int,
    variant: int,
    dtype: int,
    decay: int,
    maximize: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
    sums: int,
    addresses: Sequence[int],
    threads: int,
    /,
) -> None: ...
def cuda_forward(
    rule: int,
    variant: int,
    dtype: int,
    decay: int,
    maximize: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
    in_place: bool,
    addresses: Sequence[int],
    device: int,
    stream: int,
    workspace: int,
    sources: Sequence[tuple[int, int, int]],
    /,
) -> None: ...
def cuda_vjp(
    rule: int,
    variant: int,
    dtype: int,
    decay: int,
    maximize: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
    sums: int,
    addresses: Sequence[int],
    device: int,
    stream: int,
    workspace: int,
    sources: Sequence[tuple[int, int, int]],
    /,
) -> None: ...
def cuda_workspace_size(sizes: Sequence[int], /) -> int: ...
def cuda_obstacle(device: int, /) -> str: ...

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

def look(
    columns: tuple[Sequence[object], ...], types: tuple[type, ...], where: str, /
) -> tuple[list[int], bool, list[int]] | None:
    """Return sizes of the first column, whether all is contiguous, and all addresses.

    None unless the columns are lists as long as the first, of tensors that are nothing but memory,
    of one dtype, and shaped alike in each row: of a type among `types`, not lazily negated, with
    an address, and for which the attribute `where`, such as "is_cpu", is true.
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

"""The native loops. Addresses are of dense arrays in one common order, 0 for none."""

from collections.abc import Sequence

version: str
compiler: str
simd: str
openmp: bool
rules: dict[str, tuple[int, int, list[int]]]
"""By name: the code, the number of hyperparameters, the number of states of each variant."""

def forward(
    rule: int,
    variant: int,
    dtype: int,
    decay: int,
    maximize: bool,
    in_place: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
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
    want_hyper: bool,
    hyper: Sequence[float],
    sizes: Sequence[int],
    steps: Sequence[int],
    addresses: Sequence[int],
    threads: int,
    /,
) -> list[float]: ...

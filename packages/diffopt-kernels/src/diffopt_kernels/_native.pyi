"""The native loops. The arrays they read and write are dense and in one common order.

Every function of the module takes the inputs as they were found (first those of the step, then,
for a vector-Jacobian product, the cotangents), the addresses of the outputs, 0 for none, and the
hyperparameters with weight decay as the last: once, or one row after another for each tensor. Sums
are rows of float64, one for each hyperparameter, with a sum for each tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

version: str
compiler: str
simd: str
openmp: bool
rules: dict[str, tuple[int, int, list[int]]]
"""By name: the code, the number of hyperparameters, the number of states of each variant."""
cuda_architectures: str
"""As CMake names them, separated by ", "; where it is empty, there are no functions for CUDA."""
kept_limit: int
"""How many bytes of outputs that are gone are kept for others."""

class Found:
    """What lists of tensors have in common, and where they lie."""

    @property
    def sizes(self) -> list[int]:
        """Of the first list."""
    @property
    def addresses(self) -> list[int]:
        """Of one list after the other; 0 for None."""
    @property
    def contiguous(self) -> bool:
        """Whether all of them are."""
    @property
    def complete(self) -> bool:
        """Whether none is None."""
    @property
    def gpu(self) -> int:
        """The index of their GPU, or -1."""
    @property
    def dtype(self) -> int:
        """The place of their dtype among those that the looker was given."""

class Looker:
    """Looks at tensors: through DLPack's table of functions if it is given, or their attributes.

    Both tell the same, the first several times faster.
    """

    def __init__(
        self, types: tuple[type, ...], dtypes: tuple[object, ...], exchange: object | None, /
    ) -> None: ...
    def __call__(self, columns: tuple[Sequence[object], ...], complete: int, /) -> Found | None:
        """Return where these lists of tensors lie; those after the first `complete` may hold None.

        None unless there are tensors, and the lists are as long as the first, of tensors that are
        nothing but memory on the CPU or one GPU, of one of the `dtypes`, and shaped alike in each
        row: of one of the `types`, not lazily negated, with an address.
        """

class Passes:
    """Both passes of a step in one call each, from tensors to tensors, for the usual case.

    That is: tensors on the CPU, of which those of a row lie in memory alike and without gaps, such
    as contiguous ones, and hyperparameters of which each is one number for all, a float or a 0-d
    tensor. (`numbers` are hyperparameters with weight decay as the last.) Otherwise both return
    None, as they do where an argument is wrong, and nothing has happened. No address leaves them.
    """

    def __init__(self, looker: Looker, empty_like: Callable[[Tensor], Tensor], /) -> None: ...
    @property
    def keeps(self) -> bool:
        """Whether the memory of large outputs is kept when these are gone."""
    def forward(
        self,
        rule: int,
        variant: int,
        decoupled: bool,
        maximize: bool,
        applied: bool,
        numbers: tuple[Any, ...],
        bounds: tuple[float, ...],
        columns: tuple[Any, ...],
        steps: Any,
        known: tuple[Tensor, ...] | None,
        threads: int,
        /,
    ) -> (
        tuple[int, bool, tuple[int, ...], tuple[int, ...], tuple[Tensor, ...], tuple[Tensor, ...]]
        | None
    ):
        """Take a step of lists of gradients, states and, where they are needed, parameters.

        Returns where weight decay enters, whether all numbers are floats, a step and a size for
        each row, the inputs in a row, and the outputs, which are `known` if these are given. Floats
        are at least 0 and less than their bounds.
        """
    def vjp(
        self,
        rule: int,
        variant: int,
        decay: int,
        maximize: bool,
        applied: bool,
        numbers: tuple[Any, ...],
        steps: tuple[int, ...],
        sizes: tuple[int, ...],
        tensors: tuple[Tensor, ...],
        cotangents: Sequence[Tensor | None],
        needed: tuple[bool, ...],
        threads: int,
        /,
    ) -> tuple[Tensor | None, ...] | None:
        """Take its vector-Jacobian product.

        The `tensors` are, one after the other, those that stand for each of `numbers` that is
        None, and the inputs. They come last in `needed`, as in what an autograd function has been
        given, and so they do in what is returned.
        """

def kept_bytes() -> int:
    """How much memory of outputs is kept now."""

def forward(
    rule: int,
    variant: int,
    decay: int,
    maximize: bool,
    applied: bool,
    hyper: Sequence[float],
    steps: Sequence[int],
    in_place: bool,
    found: Found,
    outputs: Sequence[int],
    threads: int,
    /,
) -> None: ...
def vjp(
    rule: int,
    variant: int,
    decay: int,
    maximize: bool,
    applied: bool,
    hyper: Sequence[float],
    steps: Sequence[int],
    sums: int,
    found: Found,
    outputs: Sequence[int],
    threads: int,
    /,
) -> None: ...
def cuda_forward(
    rule: int,
    variant: int,
    decay: int,
    maximize: bool,
    applied: bool,
    hyper: Sequence[float],
    steps: Sequence[int],
    in_place: bool,
    found: Found,
    outputs: Sequence[int],
    device: int,
    stream: int,
    workspace: int,
    sources: Sequence[tuple[int, int, int]],
    /,
) -> None: ...
def cuda_vjp(
    rule: int,
    variant: int,
    decay: int,
    maximize: bool,
    applied: bool,
    hyper: Sequence[float],
    steps: Sequence[int],
    sums: int,
    found: Found,
    outputs: Sequence[int],
    device: int,
    stream: int,
    workspace: int,
    sources: Sequence[tuple[int, int, int]],
    /,
) -> None: ...
def cuda_workspace_size(sizes: Sequence[int], /) -> int: ...
def cuda_obstacle(device: int, /) -> str: ...

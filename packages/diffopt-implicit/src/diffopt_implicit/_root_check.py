"""Whether a root is solved well enough for its derivative to mean anything."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._torch import Tensors, any_true, by_example, nan_largest, whole

# NOTE [what a residual says about a root]
# The size of F(x) alone says nothing: it has units of its own. To first order the root is off by
# A^{-1} F, and the linear system of the derivative has just been solved with the same A, or its
# transpose: |solution| / |right-hand side| is how much A^{-1} enlarges what matters here. So
# |F| |solution| / |right-hand side| estimates the error of the root at the cost of some norms.
# It is held against the root's own size or, where that is zero, against how far the root moves
# when the arguments change by their own size.

SMALL_EXAMPLE = 1e-3  # of the usual size; below, an example is judged by that


class InexactRootError(RuntimeError):
    """A solver stopped so far from its root that the derivative there would mean nothing.

    Example:
        >>> import torch
        >>> from diffopt_implicit import custom_root
        >>> solver = custom_root(lambda x, a: x - a, on_inexact_root="raise")(lambda init, a: init)
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> try:
        ...     solver(torch.tensor(0.5), a).backward()
        ... except InexactRootError as error:
        ...     print(str(error)[:45])
        The root is not solved: its residual has norm
    """


class InexactRootWarning(UserWarning):
    """The warning given instead of `InexactRootError`, unless told otherwise.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", InexactRootWarning)
    """


@dataclass(frozen=True)
class RootCheck:
    """What to ask of a root when it is differentiated.

    Attributes:
        tol: The largest estimated relative error, positive.
        on_inexact: What to do with a larger one.
        each: Whether the first dimension counts examples that have nothing to do with one
            another, so that each is judged by its own residual, gain and size.
    """

    tol: float = 0.1
    on_inexact: OnFailure = "warn"
    each: bool = False

    def __post_init__(self) -> None:
        check_positive("root_tol", self.tol)
        if self.on_inexact not in ("raise", "warn", "ignore"):
            raise ValueError(
                f"`on_inexact_root` must be 'raise', 'warn' or 'ignore', got {self.on_inexact!r}."
            )

    def __call__(
        self,
        residual: Tensors,
        root: Tensors,
        rhs: Tensors,
        solution: Tensors,
        params: Tensors,
        slope: Tensor,
    ) -> None:
        """Judge a root.

        Args:
            residual: The value of the condition there.
            root: The root.
            rhs: The right-hand side of the linear system of the derivative.
            solution: What solves it.
            params: What the root was differentiated in.
            slope: By how much the root moves for a change of `params` by 1, about.
        """
        measure = sizes if self.each else size
        length, own = measure(residual), measure(root)
        error = length * quotient(measure(solution), measure(rhs))
        moved = slope * size(params)
        if self.each:  # beside the others, where one of them is near zero
            own = torch.maximum(own, SMALL_EXAMPLE * own.square().mean().sqrt())
        reach = torch.where(own > 0, own, moved) if self.each else torch.maximum(own, moved)
        if not any_true(~(error <= self.tol * reach)):
            return
        message = describe(length, quotient(error, reach), self.tol)
        if self.on_inexact == "raise":
            raise InexactRootError(message)
        warnings.warn(message, InexactRootWarning, stacklevel=2)


def describe(residual: Tensor, error: Tensor, tol: float) -> str:
    """Tell how far the worst root is from being solved."""
    length, wrong = max(by_example(residual, error), key=lambda row: nan_largest(row[1]))
    return (
        f"The root is not solved: its residual has norm {length:.3g}, from which its relative "
        f"error is estimated as {wrong:.2g}, where {tol:.2g} is allowed. The derivative is then "
        "that of no root: let the solver go on, check that it and the condition solve the same "
        "problem, or raise `root_tol`; with `on_inexact_root='ignore'` nothing is looked at."
    )


def size(tensors: Tensors) -> Tensor:
    """Return the Euclidean norm of all elements of floating-point tensors."""
    lengths = [whole(torch.linalg.vector_norm(t.detach())).double() for t in tensors]
    return torch.linalg.vector_norm(torch.stack(lengths)) if lengths else torch.zeros(())


def sizes(tensors: Tensors) -> Tensor:
    """Return the Euclidean norm for each index of the first dimension."""
    rows = [t.detach().reshape(t.shape[0], t.shape[1:].numel()) for t in tensors]
    lengths = [torch.linalg.vector_norm(row, dim=1).double() for row in rows]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, and give 0 for 0 / 0."""
    safe = torch.where(denominator > 0, denominator, 1.0)
    none = torch.where(numerator > 0, torch.inf, 0.0)
    return torch.where(denominator > 0, numerator / safe, none)

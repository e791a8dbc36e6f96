"""One step of an inner loop, as a pure function of what is carried from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffopt_explicit._gradient import Gradient
from diffopt_explicit._step import updated
from diffopt_explicit._transform import Transform, Tree


@dataclass(frozen=True, eq=False)  # whose hash torch 2.9 would take while it is traced
class InnerStep:
    """One step of an optimizer, whose carry is the parameters and the optimizer's state."""

    loss: Callable[..., Any]
    tx: Transform
    gradient: Gradient
    aux: bool = False
    first_order: bool = False

    def __call__(
        self,
        carry: tuple[Tree, Any],
        arguments: tuple[Tree, ...],
        create_graph: bool,
        *,
        known: tuple[Tree, Any] | None = None,
    ) -> tuple[tuple[Tree, Any], Tensor, Any]:
        """Return the carry after it, the loss before it, and what the loss returned besides.

        A carry after it that is `known`, from when the same step was taken before, is not
        necessarily computed again, only made part of the graph.
        """
        params, state = carry
        create_graph = create_graph and not self.first_order
        value, extra, grads = self.gradient.take(
            self.loss, params, arguments, aux=self.aux, create_graph=create_graph
        )
        return updated(self.tx, grads, state, params, known), value, extra

"""Inner losses that are given as functions of a module, and computed when a step needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from diffopt_explicit._functional_module import FunctionalModule, names_of
from diffopt_explicit._gradient import Gradient, Recorded
from diffopt_explicit._segments import Segments
from diffopt_explicit._transform import Tree

Buffers: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Tensor | Callable[..., Tensor]


class ToTake(NamedTuple):
    """A loss whose gradient is still to be taken."""

    function: Callable[..., Tensor]  # of the parameters, and of the arguments
    arguments: tuple[Tree, ...]
    way: Gradient


def inner_loss(
    loss: Loss,
    arguments: tuple[Tree, ...],
    way: Gradient,
    find: Callable[[], nn.Module | None],
    buffers: Buffers,
) -> Tensor | ToTake:
    """What a step is given, as what it can take the gradient of.

    Args:
        loss: A number, or a function of the module that `find` finds.
        arguments: What a function gets besides.
        way: How to take its gradient.
        find: Finds the module, also when the step is differentiated.
        buffers: With which the module is called; a function changes them.
    """
    if callable(loss):
        of_params = loss if isinstance(loss, Segments) else _ModuleLoss(loss, find, buffers)
        return ToTake(of_params, arguments, way)
    if arguments:
        raise TypeError(
            f"A step got a loss that is a number, and {len(arguments)} more besides. These are for "
            "a loss that is a function, `loss(fmodule, *arguments)`."
        )
    if not isinstance(way, Recorded):
        raise TypeError(
            f"With `gradient={way!r}` a step takes its loss as a function: the graph of a tensor "
            "is recorded already. Pass `lambda fmodule: ...`, which calls `fmodule` to compute it."
        )
    return loss


class _ModuleLoss:
    """A loss of a module, as a function of the weights with which the module is called.

    The first time, it changes the buffers that it was given. When it is computed again, to be
    differentiated, it begins with what they were, and changes nothing.
    """

    def __init__(
        self, loss: Callable[..., Tensor], find: Callable[[], nn.Module | None], buffers: Buffers
    ) -> None:
        self._loss, self._find = loss, find
        self._live: Buffers | None = buffers
        self._before = _copies(buffers)
        self._names = names_of(self._present())  # which a compiler would do for one module alone

    def __call__(self, params: dict[str, Tensor], *arguments: Tree) -> Tensor:
        buffers = _copies(self._before) if self._live is None else self._live
        fmodule = FunctionalModule(self._present(), params, buffers=buffers, ties=self._names)
        value = self._loss(fmodule, *arguments)
        if self._live is not None:
            self._live.update(fmodule.buffers)
            self._live = None
        return value

    @property
    def __code__(self) -> Any:
        """By which `Compiled` tells losses apart."""
        return getattr(self._loss, "__code__", type(self._loss))

    def _present(self) -> nn.Module:
        module = self._find()
        if module is None:
            raise RuntimeError(
                "The module of an inner step was deleted before the step was differentiated, for "
                "which its loss is computed again. Keep the module, or use `Recorded()`."
            )
        return module


def _copies(buffers: Buffers) -> Buffers:
    return {name: buffer.detach().clone() for name, buffer in buffers.items()}

"""What every optimizer and every part of one is: a pair of pure functions on trees."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

Tree: TypeAlias = Any
"""A nesting of dicts, lists, tuples, named tuples, dataclasses ... with tensors at its leaves."""


@runtime_checkable
class Transform(Protocol):
    """A transformation of gradients into updates, with a state that is passed around.

    The protocol is Optax's. A transform is a value: its hyperparameters are fixed, all
    that changes from step to step is in the state, and neither method changes its
    arguments. Write your own as a frozen dataclass with these two methods; it need not
    inherit from this class.

    A leaf of `updates` that is `None` means that the parameter has no gradient in this
    step. Such a parameter keeps its value and its state, as in ``torch.optim``.
    """

    def init(self, params: Tree) -> Any:
        """Return the state before the first step, for parameters like `params`."""
        ...

    def update(
        self, updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        """Return the transformed updates, and the state after this step.

        Args:
            updates: Gradients, or what an earlier transform made of them. Shaped like
                the parameters, with `None` where there is no gradient.
            state: What `init` or the previous `update` returned.
            params: The parameters, for transforms that look at them (weight decay).
            extra: Further arguments for transforms that know them; others ignore them.
        """
        ...


def check_transform(tx: Any) -> Transform:
    """Return `tx`, or refuse what is no transform."""
    if isinstance(tx, type) or not isinstance(tx, Transform):
        raise TypeError(
            f"`tx` must be a transform, a value with `init` and `update` such as `sgd(0.1)`, got "
            f"{tx!r}."
        )
    return tx

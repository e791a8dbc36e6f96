"""Classes that are constructed with the arguments of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature, signature
from typing import Any, ClassVar

from diffopt_explicit._transform import Transform


class Named:
    """A base of classes whose constructors take a recipe's arguments after their first one.

    ``class Adam(Base, recipe=adam)`` has the signature of `adam` with the first parameter of
    ``Base`` before it.
    """

    recipe: ClassVar[Callable[..., Transform]]

    def __init_subclass__(cls, *, recipe: Callable[..., Transform] | None = None) -> None:
        super().__init_subclass__()
        if recipe is None:
            return
        cls.recipe = staticmethod(recipe)
        first = [*signature(cls.__init__).parameters.values()][1]
        own = signature(recipe).parameters.values()
        cls.__signature__ = Signature([first, *own])  # type: ignore[attr-defined]

    @classmethod
    def arguments(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All arguments of the recipe by name, with its defaults."""
        bound = signature(cls.recipe).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

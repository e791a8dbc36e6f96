"""Whether a saved state is one of a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffopt_implicit._multilevel._level import Level


def check_saved(levels: dict[str, Level], state: Mapping[str, Any]) -> None:
    """Refuse the state of other problems."""
    saved = state.get("problems")
    if saved is None:
        raise ValueError(
            "This is no state of an `Engine`: it has no 'problems'. Pass what `state_dict()` of an "
            "engine returned."
        )
    if set(saved) != set(levels):
        raise ValueError(
            f"The saved state is of the problems {', '.join(sorted(saved))}, and these are "
            f"{', '.join(sorted(levels))}. Make the engine of the same problems first."
        )
    for name, level in levels.items():
        ours = [tuple(leaf.shape) for leaf in level.leaves]
        theirs = [tuple(leaf.shape) for leaf in saved[name]["params"]]
        if ours != theirs:
            raise ValueError(
                f"The saved parameters of `{name}` have the shapes {theirs}, and these have "
                f"{ours}. Make the engine of the same problems first."
            )

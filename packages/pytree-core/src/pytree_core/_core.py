"""The core: native where it was built, else the same in Python."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytree_core._native import *  # noqa: F403

    __backend__: str
else:
    try:
        from pytree_core._native import *  # noqa: F403
        from pytree_core._native import treespec_from_state

        __backend__ = "native"
        # A pickle names this module, so that it can be read where the other core is.
        treespec_from_state.__module__ = __name__
    except ModuleNotFoundError:  # not any ImportError: a broken build is not to be hidden
        from pytree_core._reference import *  # noqa: F403

        __backend__ = "python"

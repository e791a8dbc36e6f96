"""Which core is tested, and how to test the one in Python where the native one is built.

As a plugin (``pytest -p pytree_backend``) this hides the native core.
"""

import sys

import pytest


def pytest_configure() -> None:
    """Make the native core impossible to import."""
    sys.modules["pytree_core._native"] = None  # type: ignore[assignment]


def needs_native(reason: str) -> pytest.MarkDecorator:
    """Skip a test of what only the native core has."""
    import pytree_core

    missing = pytree_core.__backend__ != "native"
    return pytest.mark.skipif(missing, reason=f"only the native core {reason}")

"""Functions by value, which remember the file that they come from."""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_TABLE: Any = cloudpickle.Pickler.dispatch_table


def dumps(value: Any) -> bytes:
    """What `cloudpickle.dumps` gives, but for the files of functions."""
    buffer = io.BytesIO()
    CodePickler(buffer).dump(value)
    return buffer.getvalue()


def _reduce_with_file(code: CodeType) -> tuple[Any, ...]:
    make, parts = _TABLE[CodeType](code)
    return _in_file, (code.co_filename, make, parts)


def _in_file(file: str, make: Callable[..., CodeType], parts: tuple[Any, ...]) -> CodeType:
    return make(*parts).replace(co_filename=file)


class CodePickler(cloudpickle.Pickler):
    """A pickler that keeps the files of functions.

    cloudpickle leaves them out since 3.1.2, and the traceback of an error in another process then
    shows no line of the function that has failed.
    """

    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_with_file}, _TABLE)

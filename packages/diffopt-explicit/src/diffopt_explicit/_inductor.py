"""torch's own compiler, asked for what is fastest on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ON_CPU = {
    # The calls of the kernels in C++ too: no interpreter between kernels, and one program, which
    # takes half the time to compile, since each program first reads torch's headers. torch 2.12
    # warns of it at each matrix product, and nothing was tried with older ones.
    "cpp_wrapper": torch.__version__ >= "2.13",
    # A sum with a matrix product as one call of `addmm` begins with a copy of what is added:
    # slower than to add it within the next pass.
    "pattern_matcher": False,
}


def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph, as a backend of `torch.compile` does."""
    from torch._inductor.compile_fx import compile_fx  # whose import takes seconds

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    with _quiet():
        compiled: Any = compile_fx(graph, inputs, config_patches=ON_CPU if on_cpu else None)
    return compiled


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself that some operations are called from C++ by way of Python."""

    def told(record: logging.LogRecord) -> bool:
        return "missing a c-shim implementation" not in record.msg

    logger = logging.getLogger("torch._inductor.ir")
    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)

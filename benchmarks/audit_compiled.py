"""Whether compiled meta-gradients are those of eager torch, operation by operation.

Each operation of `audit_derivatives.py` is the loss, inner and outer, of an unroll of one step: the
meta-gradient has its second derivative in it. What `compile_meta_step` compiles is compared with
what autograd gives in float64; the seconds are those of compiling. What eager torch gets wrong is
no matter here: there both are wrong alike.

    nox -s bench, or python benchmarks/audit_compiled.py [--json FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from audit_derivatives import OPERATIONS, Scalar
from diffopt_explicit import compile_meta_step, sgd, unroll
from torch import Tensor

TOLERANCE = 1e-9


def audit(operation: Scalar) -> dict[str, Any]:
    """The error of the compiled meta-gradient, or what was raised."""
    torch.manual_seed(0)
    x = torch.randn(64, dtype=torch.float64).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return operation(x).square().mean() + x.square().mean()

    def outer(x: Tensor) -> Tensor:
        return loss(unroll(loss, sgd(0.01), x, steps=1).params)

    try:
        (expected,) = torch.autograd.grad(outer(x), x)
    except Exception as error:
        return {"eager": _told(error)}
    torch._dynamo.reset()  # or what was compiled before counts against a limit
    step = compile_meta_step(outer)
    step(x)  # which counts steps
    start = time.perf_counter()
    try:
        _, found = step(x)
    except Exception as error:
        return {"compiled": _told(error)}
    seconds = time.perf_counter() - start
    return {"error": ((found - expected).norm() / expected.norm()).item(), "s": round(seconds, 1)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def main() -> None:
    """Audit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="operations; by default all")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for name in options.names or OPERATIONS:
            told = found[name] = audit(OPERATIONS[name])
            wrong = told.get("error", 0) > TOLERANCE
            print(f"{name:32} {told}{' WRONG' if wrong else ''}", flush=True)
    if options.json:
        document = {
            "torch": torch.__version__,
            "date": date.today().isoformat(),
            "operations": found,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Which rules `diffopt_kernels` has a native step for, if it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from diffopt_explicit._moments import ScaleByAdam, ScaleByAMSGrad, ScaleByNAdam
from diffopt_explicit._signs import ScaleByLion
from diffopt_explicit._squares import ScaleByAdagrad, ScaleByRMS


class Kernel(NamedTuple):
    """A function of `diffopt_kernels`, and what it can do."""

    step: Callable[..., Any]
    step_: Callable[..., Any] | None  # the same in place
    columns: tuple[str, ...]  # the lists that it updates, in the order in which it returns them
    numbers: tuple[str, ...]  # those fields of the rule that it takes
    decays: frozenset[str] = frozenset({"coupled"})
    counted: bool = True  # whether it takes the counts of steps


MOMENTUM = "momentum_buffers"  # the one column that is not the rule's own
PRODUCTS = "mu_products"  # the one column of numbers, which are never known before
KERNELS: dict[type, Kernel] = {}

# A broken installation of the kernels must not pass for none: only their absence is looked for.
if importlib.util.find_spec("diffopt_kernels"):
    import diffopt_kernels as native

    moments, numbers = ("exp_avgs", "exp_avg_sqs"), ("betas", "eps")
    both = frozenset({"coupled", "decoupled"})
    KERNELS = {
        type(None): Kernel(native.sgd_step, native.sgd_step_, (MOMENTUM,), ()),
        ScaleByAdam: Kernel(
            native.adam_step, native.adam_step_, moments, (*numbers, "eps_root"), both
        ),
        ScaleByAMSGrad: Kernel(
            native.amsgrad_step,
            native.amsgrad_step_,
            (*moments, "max_exp_avg_sqs"),
            numbers,
            both,
        ),
        ScaleByNAdam: Kernel(
            native.nadam_step,
            None,  # whose product of momenta could not be written over
            (*moments, PRODUCTS),
            (*numbers, "momentum_decay"),
            both,
        ),
        ScaleByAdagrad: Kernel(
            native.adagrad_step, native.adagrad_step_, ("state_sums",), ("lr_decay", "eps")
        ),
        ScaleByRMS: Kernel(
            native.rmsprop_step,
            native.rmsprop_step_,
            ("square_avgs", "grad_avgs", MOMENTUM),
            ("alpha", "eps", "centered"),
            counted=False,
        ),
        ScaleByLion: Kernel(
            native.lion_step,
            native.lion_step_,
            ("exp_avgs",),
            ("betas",),
            frozenset({"decoupled"}),
            counted=False,
        ),
    }

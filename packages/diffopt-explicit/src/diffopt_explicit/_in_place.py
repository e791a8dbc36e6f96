"""Which transforms have a fused step in place, and how it is called."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffopt_explicit._adam import FusedAdam
from diffopt_explicit._chain import Chain
from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._hyperparameter import at_step
from diffopt_explicit._moments import ScaleByAMSGrad
from diffopt_explicit._rows import Row
from diffopt_explicit._scale import Scale, ScaleByLearningRate, is_tree
from diffopt_explicit._signs import ScaleByLion
from diffopt_explicit._squares import ScaleByAdagrad, ScaleByRMS
from diffopt_explicit._trace import Trace
from diffopt_explicit._transform import Transform

# A broken installation of the kernels must not pass for none: only their absence is looked for.
_FOUND = importlib.util.find_spec("diffopt_kernels") is not None
kernels: Any = importlib.import_module("diffopt_kernels") if _FOUND else None


@dataclass(frozen=True)
class InPlace:
    """A fused step that writes over parameters and rows.

    Attributes:
        function: One of `diffopt_kernels`, whose name ends in ``_step_``.
        columns: The names in the rows of the state that it takes, `None` for one left out.
        hyperparameters: Its keyword arguments; schedules among them.
        counts: Whether it takes the numbers of the steps.
    """

    function: Callable[..., None]
    columns: tuple[str | None, ...]
    hyperparameters: dict[str, Any]
    counts: bool = True

    def __call__(
        self, params: list[Tensor], grads: list[Tensor], rows: list[Row], step: int
    ) -> None:
        """Take one step, the update number `step` (0, 1, ...) of all."""
        state = [name and [row[name] for row in rows] for name in self.columns]
        steps = [[row.get("step", 0) + 1 for row in rows]] if self.counts else []
        self.function(params, grads, *state, *steps, **_evaluated(self.hyperparameters, step))
        for row in rows:
            if "step" in row:
                row["step"] += 1


def in_place(tx: Transform) -> InPlace | None:
    """The fused step in place that does what the transform does, if there is one."""
    if kernels is None:
        return None
    if isinstance(tx, FusedAdam):
        step = kernels.adam_step_, ("exp_avg", "exp_avg_sq"), dict(vars(tx))
        return None if is_tree(tx.lr) else InPlace(*step)
    parts = tx.transforms if isinstance(tx, Chain) else ()
    if not parts or not isinstance(parts[-1], ScaleByLearningRate) or is_tree(parts[-1].lr):
        return None
    around: dict[str, Any] = {"lr": parts[-1].lr}
    parts = parts[:-1]
    if parts and parts[0] == Scale(-1.0):
        around["maximize"], parts = True, parts[1:]
    if parts and isinstance(parts[0], AddDecayedWeights):
        around["weight_decay"], parts = parts[0].weight_decay, parts[1:]
    elif parts and isinstance(parts[-1], AddDecayedWeights):
        around["weight_decay"], around["decoupled"] = parts[-1].weight_decay, True
        parts = parts[:-1]
    return _of_rule(parts, around)


def _of_rule(parts: tuple[Transform, ...], around: dict[str, Any]) -> InPlace | None:
    """The fused step of a rule, with what was found `around` it."""
    decoupled = "decoupled" in around
    match parts:
        case () if not decoupled:
            return InPlace(kernels.sgd_step_, (None,), around)
        case (Trace() as trace,) if not decoupled:
            return InPlace(kernels.sgd_step_, ("momentum_buffer",), {**around, **vars(trace)})
        case (ScaleByAMSGrad() as rule,):
            columns = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            return InPlace(kernels.amsgrad_step_, columns, {**around, **vars(rule)})
        case (ScaleByAdagrad() as rule,) if not decoupled:
            own = {"lr_decay": rule.lr_decay, "eps": rule.eps}
            return InPlace(kernels.adagrad_step_, ("sum",), {**around, **own})
        case (ScaleByRMS() as rule, *rest) if not decoupled:
            return _of_rms(rule, rest, around)
        case (ScaleByLion() as rule,) if decoupled or "weight_decay" not in around:
            around = {name: value for name, value in around.items() if name != "decoupled"}
            return InPlace(kernels.lion_step_, ("exp_avg",), {**around, **vars(rule)}, counts=False)
    return None


def _of_rms(rule: ScaleByRMS, rest: list[Transform], around: dict[str, Any]) -> InPlace | None:
    columns = "square_avg", "grad_avg" if rule.centered else None
    hyperparameters = {**around, **vars(rule)}
    match rest:
        case []:
            columns = *columns, None
        case [Trace(momentum, 0.0, False)]:
            columns = *columns, "momentum_buffer"
            hyperparameters["momentum"] = momentum
        case _:
            return None
    return InPlace(kernels.rmsprop_step_, columns, hyperparameters, counts=False)


def _evaluated(hyperparameters: dict[str, Any], step: int) -> dict[str, Any]:
    """The hyperparameters, with the values that schedules have in this step."""

    def value(hyperparameter: Any) -> Any:
        if isinstance(hyperparameter, tuple):
            return tuple(map(value, hyperparameter))
        return at_step(hyperparameter, step)

    return {name: value(hyperparameter) for name, hyperparameter in hyperparameters.items()}

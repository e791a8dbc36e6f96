"""Which optimizers treat every element by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffopt_explicit._averaged import ScaleByASGD
from diffopt_explicit._chain import Chain, NamedChain
from diffopt_explicit._clip import Clip
from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._finite import NanToNum
from diffopt_explicit._lookahead import Ema
from diffopt_explicit._moments import (
    ScaleByAdam,
    ScaleByAdamax,
    ScaleByAMSGrad,
    ScaleByNAdam,
    ScaleByRAdam,
)
from diffopt_explicit._override import anatomy
from diffopt_explicit._partition import Identity
from diffopt_explicit._scale import Scale, ScaleByLearningRate
from diffopt_explicit._signs import ScaleByLion, ScaleByRprop
from diffopt_explicit._squares import ScaleByAdadelta, ScaleByAdagrad, ScaleByRMS
from diffopt_explicit._trace import Trace
from diffopt_explicit._transform import Transform

# Of these it is known; of a transform of the caller's, or one that looks at norms, it is not.
ELEMENTWISE: set[type] = {
    *(Chain, NamedChain, Identity, Clip, NanToNum, Ema, Trace),
    *(AddDecayedWeights, Scale, ScaleByLearningRate),
    *(ScaleByAdam, ScaleByAdamax, ScaleByAMSGrad, ScaleByNAdam, ScaleByRAdam, ScaleByASGD),
    *(ScaleByLion, ScaleByRprop, ScaleByAdadelta, ScaleByAdagrad, ScaleByRMS),
}


def is_elementwise(tx: Transform) -> bool:
    """Whether an update of stacked parameters is the stack of the updates."""
    return all(kind in ELEMENTWISE for kind in _kinds(anatomy(tx)))


def _kinds(parts: tuple[Any, ...]) -> Iterator[type]:
    kind, *inside = parts
    yield kind
    for part in inside:
        yield from _kinds(part)

"""`Problem`: one level of a multilevel program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffopt_implicit._hypergradient_method import HypergradientMethod
from diffopt_implicit._linear_system import check_nonnegative, check_positive
from diffopt_implicit._multilevel._descent import Transform, is_transform
from diffopt_implicit._multilevel._unrolled_steps import UnrolledSteps
from diffopt_implicit._multilevel._variables import Values

Tree = Any


@dataclass(frozen=True, eq=False)
class Problem:
    """One level of a multilevel program: parameters that minimize a loss.

    The loss is called as ``loss(at, batch)``. ``at.NAME`` are the parameters of the problem
    itself and of each problem that it names: a tree of tensors, or a module to be called, with
    its parameters by name in ``at.NAME.params``. There are two ways to name another problem. One
    in `upper` is a constant while this problem is solved. One in `lower` is a solution that moves
    when this problem's parameters do, and its derivative is part of this problem's gradient.

    Attributes:
        name: An identifier, by which other problems refer to it.
        params: A module, whose parameters that require grad are trained in place, or a tree of
            real floating-point tensors, of which the problem keeps a copy.
        loss: ``(at, batch) ->`` scalar.
        optimizer: Makes an optimizer of torch for a list of tensors, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; or a transform with ``init`` and
            ``update``, such as ``diffopt_explicit.adam(1e-3)``.
        data: An iterable of batches, begun anew when it ends; None for ``batch=None``. Batches
            are trees, and moved to the device of the parameters.
        upper: Names of the problems whose parameters the loss takes as constants.
        lower: For each problem whose solution depends on this one, how to differentiate it: a
            method of `hypergradient`, such as ``CG(10)``, or `UnrolledSteps`. All that lie on a
            way from this problem's parameters to its loss must be there, also where the loss does
            not read them.
        unroll_steps: How many steps it takes for each step of a problem that names it in
            `lower`; positive.
        warmup_steps: How many times it lets its turn pass at first, so that problems below come
            near their solution before.
        roll_back: Whether parameters, buffers, optimizer and schedule go back to where they were
            before its last `unroll_steps` steps, once the problem above has used them.
        gradient_accumulation: Over how many batches the gradient of one step is the mean.
        autocast: `torch.bfloat16` or `torch.float16` for mixed precision in its own loss; with
            float16 the loss is scaled, and a step whose gradient overflows is left out and
            counted. Derivatives of solutions are taken in the parameters' own precision.
        scheduler: Makes a learning rate schedule for an optimizer of torch, stepped with it.

    Raises:
        TypeError: If a field is none of what it may be.
        ValueError: If a name is no identifier, or a number out of range.

    Example:
        >>> import functools, torch
        >>> sgd = functools.partial(torch.optim.SGD, lr=0.1)
        >>> fit = Problem("fit", torch.zeros(2), lambda at, _: (at.fit - 1).square().sum(), sgd)
        >>> fit.unroll_steps
        1

    Source:
        Choe, Neiswanger, Xie & Xing, *Betty: an automatic differentiation library for
        multilevel optimization*, ICLR 2023, section 4, for problems in a graph of dependencies.
    """

    name: str
    params: nn.Module | Tree
    loss: Callable[[Values, Any], Tensor]
    optimizer: Callable[[list[Any]], Optimizer] | Transform
    data: Iterable[Any] | None = None
    upper: Sequence[str] = ()
    lower: Mapping[str, HypergradientMethod | UnrolledSteps] = field(default_factory=dict)
    unroll_steps: int = 1
    warmup_steps: int = 0
    roll_back: bool = False
    gradient_accumulation: int = 1
    autocast: torch.dtype | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None

    def __post_init__(self) -> None:
        check_names(self)
        check_positive("unroll_steps", self.unroll_steps)
        check_nonnegative("warmup_steps", self.warmup_steps)
        check_positive("gradient_accumulation", self.gradient_accumulation)
        check_optimizer(self)
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"`autocast` of `{self.name}` must be None, torch.bfloat16 or torch.float16, got "
                f"{self.autocast}."
            )


def check_names(problem: Problem) -> None:
    """Refuse names and references that mean nothing."""
    name = problem.name
    if not (isinstance(name, str) and name.isidentifier()) or name.startswith("_"):
        raise ValueError(
            f"The name of a problem must be an identifier that does not begin with `_`, as its "
            f"loss reads `at.NAME`; got {name!r}."
        )
    if isinstance(problem.upper, str):
        raise TypeError(
            f"`upper` of `{name}` must be a sequence of names, got the string {problem.upper!r}. "
            f"Write `upper=[{problem.upper!r}]`."
        )
    if not isinstance(problem.lower, Mapping):
        raise TypeError(
            f"`lower` of `{name}` must be a mapping of names to methods, such as "
            f"{{'model': CG(10)}}, got {problem.lower!r}."
        )
    both = [other for other in problem.upper if other in problem.lower]
    if both:
        raise ValueError(
            f"`{name}` names `{both[0]}` in `upper` and in `lower`. Its parameters are either "
            "constants there or a solution that is differentiated: keep one."
        )


def check_optimizer(problem: Problem) -> None:
    """Refuse what cannot step."""
    optimizer, name = problem.optimizer, problem.name
    if isinstance(optimizer, Optimizer) or not (is_transform(optimizer) or callable(optimizer)):
        raise TypeError(
            f"`optimizer` of `{name}` must make an optimizer for a list of tensors, such as "
            "`functools.partial(torch.optim.SGD, lr=0.1)`, or be a transform with `init` and "
            f"`update`; got {type(optimizer).__name__}."
        )
    if is_transform(optimizer) and problem.scheduler is not None:
        raise TypeError(
            f"`scheduler` of `{name}` is for optimizers of torch, and its `optimizer` is a "
            "transform. Give the transform a schedule as its learning rate."
        )

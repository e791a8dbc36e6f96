"""Unrolls that fit in memory: steps are taken again, one by one, to be differentiated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffopt_explicit import _replay_func
from diffopt_explicit._course import Course
from diffopt_explicit._fitting import Fitting, at_once
from diffopt_explicit._outside import differentiable
from diffopt_explicit._placement import Binomial, Placement
from diffopt_explicit._reversible import Reversible
from diffopt_explicit._snapshots import Home, take_snapshot
from diffopt_explicit._store import Inputs, Step, Store, Unrolled, length, track_last
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_unflatten
from diffopt_explicit._uncompiled import ONE_GRAPH, never_traced
from diffopt_explicit._watch import Watch

MODEST = 2**23  # bytes of graphs that are kept in any case
FEW = 16  # states that are kept of a short unroll in any case: they take less than the graphs do


@dataclass(frozen=True, repr=False)
class Plan:
    """What a replayed unroll takes, besides the graph of one step; see `Replay.plan`."""

    steps: int
    advances: int  # steps taken without a graph, on the way there and back
    states: int  # the most that are kept at once
    state_bytes: int  # of parameters and optimizer state, without random numbers and buffers

    @property
    def bytes(self) -> int:
        """All that the states take."""
        return self.states * self.state_bytes

    def __repr__(self) -> str:
        return (
            f"Plan({self.steps} steps: {self.states} states of {self.state_bytes / 2**20:.1f} MiB, "
            f"{self.bytes / 2**20:.1f} MiB in all; {self.advances / max(1, self.steps):.2f} steps "
            "without a graph besides each with one)"
        )


@dataclass(frozen=True)
class Replay:
    """Differentiate an unroll by taking its steps again, in reverse order.

    On the way forward no graph is kept but the last steps', only the state (parameters,
    optimizer state, random numbers) before some of the others. On the way back the state before
    a step, or a few in a row, is computed again from the nearest of these, and they are taken
    once more, with a graph, to be differentiated alone. Exact: what `Store` gives, to rounding.
    The memory is that of the snapshots and of the steps in a row; the time that of `Store` and of
    at most ``advances(steps)`` steps without a graph. The snapshots stand where they save the
    most steps (binomial checkpointing), also where the number of steps is not known.

    All tensors that the loss and the optimizer use get their gradients, also those that they
    close over; but work before the unroll that leads to such a tensor (a network that computes
    features, say) is differentiated anew in each step, unless it is passed by `meta_params` or
    `batches`. To differentiate the gradient in turn, the unroll is done again by `Store`.

    Under `torch.func.grad`, `vmap` and `jacrev` too; what the steps close over there must be
    used by the first of them, and not in an `autograd.Function`. There is no forward mode. A
    function that `torch.compile` compiles is cut in two around the unroll.

    Attributes:
        snapshots: How many states to keep, at least 1; by default 16, or twice the square root of
            the number of steps where that is more, with which steps are taken less than twice
            besides, on average. Or where to keep them: `KAry(...)`, or any `Placement`.
        modules: Modules whose buffers the loss changes, such as running statistics. They are
            put back for each step that is taken again.
        offload: Where to keep the snapshots: a device such as ``"cpu"``, or a folder as a
            `pathlib.Path`.
        verify: Whether to compare a step with what it gave before, to find steps that are not
            functions: the ``"last"`` one that is taken again, ``"always"`` each, the ``"first"``
            of all, which is then taken twice at once, before a long run, or ``"never"``. What is
            compared is the norm of each tensor, of some thousand elements where it has more, to
            half the digits of the dtype.
        watch: Called with a `Progress` after each step, on the way there and back: a `Report`,
            or a progress bar.
        graphs: How many steps in a row to differentiate at once, at least 1. The more, the fewer
            are taken again: the last ones never, others once less. By default all, as `Store`
            does, where they take less than twice the memory of the states, as in short unrolls of
            small batches; or else as many as fit, with the states that are needed besides, into
            a quarter more than the states would take alone, or 8 MiB more. The graph of the
            first step is measured, and counts for more where a later one has more data. By
            default 1, however, where `snapshots` or `offload` is given, as memory is short
            then, or where the number of steps is not known.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Replay, sgd, unroll
        >>> lr = torch.tensor(0.5, requires_grad=True)
        >>> w = torch.tensor(1.0)
        >>> result = unroll(lambda w: w**2 / 2, sgd(lr), w, steps=3, adjoint=Replay())
        >>> result.params  # (1 - lr) ** 3
        tensor(0.1250, grad_fn=<...>)
        >>> torch.autograd.grad(result.params, lr)
        (tensor(-0.7500),)

    Source: Griewank & Walther, *Algorithm 799: revolve*, ACM TOMS 26, 2000; Engstrom et al.,
    *Optimizing ML training with metagradient descent*, 2025, for its use on training runs.
    """

    snapshots: int | Placement | None = None
    modules: tuple[nn.Module, ...] = ()
    offload: Home = None
    verify: Literal["never", "first", "last", "always"] = "last"
    watch: Watch | None = None
    graphs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.snapshots, int) and self.snapshots < 1:
            raise ValueError(f"`snapshots` must be at least 1, got {self.snapshots}.")
        if self.graphs is not None and self.graphs < 1:
            raise ValueError(f"`graphs` must be at least 1, got {self.graphs}.")
        if self.verify not in ("never", "first", "last", "always"):
            raise ValueError(
                f"`verify` must be 'never', 'first', 'last' or 'always', got {self.verify!r}."
            )

    def slots(self, steps: int) -> int:
        """How many snapshots an unroll keeps at once, that is so many steps long (so far)."""
        if not isinstance(self.snapshots, int | None):
            raise ValueError(
                f"`{self.snapshots}` needs to know the number of steps. Give `snapshots` as a "
                "number, or the batches as a list and no `until`."
            )
        wanted = self.snapshots or max(FEW, math.ceil(2 * math.sqrt(steps)))
        return max(1, min(wanted, steps - 1))

    def placement(self, steps: int) -> Placement:
        """Which states an unroll of so many steps keeps."""
        given = self.snapshots
        return Binomial(self.slots(steps)) if isinstance(given, int | None) else given

    @property
    def graphs_at_once(self) -> int | None:
        """How many steps' graphs to keep at once, or None where as many as fit."""
        thrifty = self.snapshots is not None or self.offload is not None
        return self.graphs or (1 if thrifty else None)

    def graphs_that_fit(self, steps: int, graph_bytes: int, state_bytes: int) -> int:
        """How many graphs of so many bytes each an unroll keeps at once.

        All, if they take less than twice the memory of the states that would be kept; or else what
        fits into the place of states that so many graphs make needless, and what is spare.
        """
        slots = self.slots(steps)
        alone = slots * state_bytes
        if steps * graph_bytes <= 2 * alone:
            return steps
        spare = max(alone // 4, MODEST)
        for states in range(min(slots, steps - 1) + 1):
            size = math.ceil(steps / (states + 1))
            if size * graph_bytes + states * state_bytes <= alone + spare:
                return size
        return max(1, spare // graph_bytes)

    def course(self, steps: int, size: int) -> Course:
        """The way through an unroll and back, so many steps at once."""
        return Course(self.placement(steps), steps, size)

    def advances(self, steps: int) -> int:
        """How many steps without a graph are taken, there and back; fewer if more `graphs` fit."""
        return self.course(steps, self.graphs_at_once or 1).cost().advances

    def plan(self, params: Tree, tx: Transform, steps: int) -> Plan:
        """What an unroll would take, without a step of it.

        Args:
            params: Initial parameters; only shapes and dtypes matter, so that they may be on the
                device ``"meta"``.
            tx: The inner optimizer.
            steps: How many steps.

        Example:
            >>> import torch
            >>> from diffopt_explicit import Replay, adam
            >>> Replay().plan(torch.empty(10**6, device="meta"), adam(), steps=1000)
            Plan(1000 steps: 65 states of 11.4 MiB, 743.9 MiB in all; 1.93 steps without a graph besides each with one)
        """  # noqa: E501
        leaves = tree_leaves((params, tx.init(params)))
        state_bytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        advances, states = self.course(steps, self.graphs_at_once or 1).cost()
        return Plan(steps, advances, states, state_bytes)

    def run(self, step: Step, start: Tree, inputs: Inputs, *, tracked_from: int) -> Unrolled:
        """Take one step for each of `inputs`; differentiable from step `tracked_from` on."""
        if torch.compiler.is_compiling():
            never_traced(Replay, "run")
            raise NotImplementedError(f"`Replay` is not traced: {ONE_GRAPH}.")
        if not torch.is_grad_enabled():
            return Store().run(step, start, inputs, tracked_from=0)
        if tracked_from <= 0:
            if torch._C._are_functorch_transforms_active():
                return _replay_func.run(self, step, start, inputs)
            return self._run(step, start, inputs)
        return track_last(self, step, start, inputs, tracked_from)

    def _run(self, step: Step, start: Tree, inputs: Inputs) -> Unrolled:
        if self.graphs_at_once is not None or length(inputs) is None:
            return self._replayed(step, start, inputs, self.graphs_at_once or 1)
        listed = list(inputs)
        if self.watch is not None:  # autograd alone tells nobody how far it is
            return self._replayed(step, start, listed, at_once(self, step, start, listed))
        found = self._stored(step, start, listed)
        return found if isinstance(found, Unrolled) else self._replayed(step, start, listed, found)

    def _stored(self, step: Step, start: Tree, inputs: list[tuple[Tree, ...]]) -> Unrolled | int:
        """What `Store` gives, or how many graphs fit if that is not all."""
        fitting, before = Fitting(self, step, start), take_snapshot(0, start, self.modules)
        done = Store().run(fitting.step, start, fitting.as_they_fit(inputs), tracked_from=0)
        if len(done.extras) == len(inputs):
            return done
        before.restore(self.modules)
        return fitting.size

    def _replayed(self, step: Step, start: Tree, inputs: Inputs, size: int) -> Unrolled:
        steps = Reversible(self, step, start, size)
        return _attach(steps, steps.take(inputs))


def _attach(steps: Reversible, done: Unrolled) -> Unrolled:
    """Make what the steps gave part of the graph of all that they depend on."""
    leaves, spec = tree_flatten(done)
    places = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]
    outputs = Replayed.apply(steps, len(places), *(leaves[i] for i in places), *steps.tensors)
    for i, output in zip(places, outputs, strict=True):
        leaves[i] = output
    return tree_unflatten(spec, leaves)


class Replayed(torch.autograd.Function):
    """What an unroll gives, as a function of all tensors that it depends on."""

    @staticmethod
    def forward(ctx: Any, steps: Reversible, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.steps, ctx.count = steps, count
        ctx.save_for_backward(*tensors[count:])  # to notice if they are changed in place
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        _ = ctx.saved_tensors
        pull = ctx.steps.pull_with_graph if torch.is_grad_enabled() else ctx.steps.pull
        return None, None, *[None] * ctx.count, *pull(cotangents)

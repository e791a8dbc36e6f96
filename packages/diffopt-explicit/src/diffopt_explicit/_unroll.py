"""Many inner steps in a row, differentiable as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from diffopt_explicit._compiled_step import compiled
from diffopt_explicit._gradient import Gradient, Recorded, check_gradient, preferred
from diffopt_explicit._inner_step import InnerStep
from diffopt_explicit._store import Adjoint, Inputs, Step, Store
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import detach


class UnrollResult(NamedTuple):
    """Where an inner loop arrived."""

    params: Tree  # like the initial parameters
    opt_state: Any  # the state of the transform, to go on from
    losses: Tensor  # (steps,), each taken before its step
    aux: list[Any] | None = None  # what the loss returned besides, a step an entry


def unroll(
    loss: Callable[..., Any],
    tx: Transform,
    params: Tree,
    *,
    steps: int | None = None,
    batches: Iterable[Tree] | None = None,
    meta_params: Tree | None = None,
    opt_state: Any = None,
    aux: bool = False,
    adjoint: Adjoint = Store(),
    gradient: Gradient = Recorded(),
    truncate: int | None = None,
    first_order: bool = False,
    detach_every: int | None = None,
    until: Callable[[Tree, Tensor], Any] | None = None,
) -> UnrollResult:
    """Minimize an inner loss for some steps, as a differentiable function.

    The result is part of the graph of the initial parameters, of `meta_params`, and of
    all tensors that `loss` and `tx` use: ``result.params`` can be differentiated with
    respect to any of them, exactly and to any order. Under ``torch.no_grad()`` the same
    steps are taken and no graph is kept.

    Args:
        loss: The inner loss, giving a 0-d tensor. Called with the arguments that there
            are of ``loss(params, meta_params, batch)``, in this order.
        tx: The inner optimizer.
        params: Initial parameters: a tree of floating-point tensors. It is not changed.
        steps: How many steps to take, if `loss` needs no batch.
        batches: What to pass to `loss` in each step, one step an item.
        meta_params: What the outer loop learns, passed on to `loss`.
        opt_state: State of `tx` to go on from; by default a new one.
        aux: Whether `loss` returns a pair of the loss and anything else to be kept.
        adjoint: How the unroll is differentiated: `Store()`, the fastest; `Replay()`, in the
            memory of a few states and one step; or `Forward()`, in that of one, by few numbers.
        gradient: How the inner gradients are differentiated: `Recorded()`, by the graph of each;
            `Recomputed()`, `Segmentwise()`, in less memory; `Compiled()`, in less memory too, by
            compiled steps.
        truncate: Differentiate only through the last `truncate` steps; what came before is taken
            as constant. What is left out shrinks like ``(1 - lr * m) ** truncate`` where the inner
            loss has curvature `m` around a minimum (Shaban et al. 2019), and is all there is of
            the derivative by the initial parameters.
        first_order: Take the inner gradients as constants (first-order MAML): the derivative of
            a step by the parameters is that of ``p - constant``. What is left out is of the order
            of ``lr`` times the curvature times the steps; it is the whole derivative by whatever
            acts through the inner gradients alone, such as weights of the data.
        detach_every: Take the parameters and the optimizer's state as constants before every so
            many steps, the first excepted: each of `losses` is differentiated through the steps
            since then (truncated back-propagation through time). With 1 through one step alone,
            which is what hypergradient descent does (Baydin et al. 2018). Biased towards what
            pays off soon (Wu et al. 2018).
        until: Called after each step as ``until(params, loss)``, with the new parameters and the
            loss before the step, both without a graph. Once it returns something true, no
            further step is taken, and no further batch asked for: `batches` may be endless. The
            number of steps counts as constant in the derivative.

    Returns:
        Final parameters and optimizer state, and the loss before each step.

    Raises:
        ValueError: Unless exactly one of `steps` and `batches` is given, or if a loss is not
            a 0-d tensor or does not depend on the parameters.

    Example:
        >>> import torch
        >>> from diffopt_explicit import sgd, unroll
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> result = unroll(lambda w: w**2 / 2, sgd(lr=0.5), start, steps=3)
        >>> result.params
        tensor(0.1250, grad_fn=<...>)
        >>> torch.autograd.grad(result.params, start)
        (tensor(0.1250),)

    Source: Franceschi et al., *Forward and reverse gradient-based hyperparameter
    optimization*, ICML 2017, algorithm 1; Finn et al., *Model-agnostic meta-learning*,
    ICML 2017, for `first_order`.
    """
    shared = () if meta_params is None else (meta_params,)
    inputs = ((*shared, *batch) for batch in batches_of(steps, batches))
    if truncate is not None and truncate < 0:
        raise ValueError(f"`truncate` must be a number of steps, got {truncate}.")
    if truncate is not None and until is not None:
        raise ValueError(
            "`truncate` counts steps from the last one, which `until` leaves open. Give one of "
            "them; or run with `until` under `torch.no_grad()`, and unroll `truncate` steps more."
        )
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"`adjoint` must be `Store()`, `Replay()` or `Forward()`, got {adjoint!r}.")
    check_gradient(gradient)
    step = compiled(InnerStep(loss, tx, preferred(gradient), aux=aux, first_order=first_order))
    if detach_every is not None:
        step, inputs = _cut(step, detach_every), enumerate(inputs)
    start = params, tx.init(params) if opt_state is None else opt_state
    if until is None:
        inputs = list(inputs)
        tracked_from = 0 if truncate is None else len(inputs) - truncate
        done = adjoint.run(step, start, inputs, tracked_from=tracked_from)
    else:
        watched = _Watched(step, until)
        done = adjoint.run(watched.step, start, watched.until_done(inputs), tracked_from=0)
    (params, opt_state), losses, extras = done
    return UnrollResult(params, opt_state, losses, extras if aux else None)


def _cut(step: Step, every: int) -> Step:
    """The step, from a state that is constant where so many steps are done; it gets its index."""
    if every < 1:
        raise ValueError(f"`detach_every` must be a number of steps, at least 1, got {every}.")

    def after_cut(carry: Tree, arguments: tuple[Any, ...], create_graph: bool) -> Any:
        index, rest = arguments
        carry = detach(carry) if index and index % every == 0 else carry
        return step(carry, rest, create_graph)

    return after_cut


class _Watched:
    """Steps that are taken until a condition holds of the last one."""

    def __init__(self, step: Step, until: Callable[[Tree, Tensor], Any]) -> None:
        self._step, self._until = step, until
        self._last: tuple[Tree, Tensor] | None = None

    def step(self, carry: Tree, arguments: tuple[Tree, ...], create_graph: bool) -> Any:
        """The step, whose results are noted."""
        (params, state), loss, extra = self._step(carry, arguments, create_graph)
        self._last = detach(params), loss.detach()
        return (params, state), loss, extra

    def until_done(self, inputs: Inputs) -> Iterator[tuple[Tree, ...]]:
        """What the steps get, as long as they shall be taken."""
        for arguments in inputs:
            yield arguments
            assert self._last is not None
            if self._until(*self._last):
                return


def batches_of(steps: int | None, batches: Iterable[Tree] | None) -> Inputs:
    """What each step gets besides the parameters."""
    if (steps is None) == (batches is None):
        raise ValueError("Give either `steps`, a number, or `batches`, one a step.")
    if batches is not None:
        return ((batch,) for batch in batches)
    assert steps is not None
    if steps < 0:
        raise ValueError(f"`steps` must not be negative, got {steps}.")
    return itertools.repeat((), steps)

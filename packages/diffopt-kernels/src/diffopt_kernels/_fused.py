"""The same step through the native loops: one call, one autograd node for a whole list."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _composed, _cpu
from diffopt_kernels._explain import DTYPES, has_obstacle
from diffopt_kernels._rule import Call, Rule, split

# NOTE [addresses and Dynamo]
# Traced code drops a tensor once its address is taken, and the kernel would then write into
# freed memory. A call that torch.compile traces takes the composed path, but Dynamo also enters
# frames below a graph break, such as that of a backward pass. Hence `untraced` around every
# function that takes an address; these functions hold the tensors until the kernel returns.


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as ``torch.compiler.disable`` would, importing Dynamo only if in use."""

    @functools.cache
    def disabled() -> Callable[..., Any]:
        return torch.compiler.disable(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if "torch._dynamo" in sys.modules:  # its import takes more than a second
            return disabled()(*args)
        return function(*args)

    return call


def step(call: Call, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the updates, then each column of new states."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        return list(_apply(call, *inputs))
    return _forward(call, inputs)


@untraced
def step_(call: Call, inputs: tuple[Any, ...], params: list[Tensor]) -> bool:
    """Write the new parameters and states over the old ones, if their layouts allow it."""
    _, (grads, *states) = split(call, inputs)
    columns, likes = _in_one_order([params, grads, *states[: call.depth]])
    p, g, *s = columns
    for old, new in zip([params, *states], [p, *s], strict=False):
        if any(a is not b for a, b in zip(old, new, strict=True)):
            return False
    _cpu.forward(*_request(call, inputs, likes, True, g, *s, p, p, *s))
    # Autograd must learn of writes that it did not see. (An inference tensor counts none.)
    written = [t for column in (p, *s) for t in column if not t.is_inference()]
    torch.autograd.graph.increment_version(written)
    return True


class _FusedStep(torch.autograd.Function):
    """The step, and its vector-Jacobian product.

    Keeps its inputs and nothing else. In an unrolled loop they are kept anyway: the states are
    outputs of the step before, the gradients belong to the graph. The backward pass computes the
    new states again, in registers.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *inputs: Any) -> tuple[Tensor, ...]:
        outputs = _forward(call, inputs)
        width = call.width
        ctx.call = call
        ctx.sizes = [x.numel() for x in inputs[width:]]
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs[:width]]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[x for x in inputs if isinstance(x, Tensor)])
        constant = _constant(call, ctx.needs_input_grad[1:])
        if constant:
            ctx.mark_non_differentiable(*[outputs[k] for k in constant])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        numbers = [next(saved) if x is None else x for x in ctx.numbers]
        tensors, needed = tuple(saved), ctx.needs_input_grad[1:]
        # Hooks on saved tensors and on gradients may have put anything in their places.
        if [x.numel() for x in tensors] != ctx.sizes:
            raise RuntimeError("A hook on saved tensors gave back a tensor of another size.")
        given = (*tensors, *(c for c in cotangents if c is not None))
        inputs = (*numbers, *tensors)
        if torch.is_grad_enabled() or has_obstacle(given, numbers):
            return (None, *_composed_vjp(ctx.call, inputs, cotangents, needed))
        return (None, *_vjp(ctx.call, inputs, cotangents, needed))


# torch.autograd.Function.apply without what it does for function transforms, of which none is
# active here: about 10 microseconds a step.
_apply: Any = super(torch.autograd.Function, _FusedStep).apply  # type: ignore[misc]


@untraced
def _forward(call: Call, inputs: tuple[Any, ...]) -> list[Tensor]:
    _, columns = split(call, inputs)
    columns, likes = _in_one_order(columns)
    # One allocation for all of them would not be faster, as making a view takes as long as
    # making a tensor, and would keep all alive, and in torch.save, for the sake of one.
    outputs = [list(map(torch.empty_like, likes)) for _ in range(1 + call.depth)]
    no_params = [] if call.decay else [[None] * len(likes)]
    _cpu.forward(*_request(call, inputs, likes, False, *columns, *no_params, *outputs))
    return [t for column in outputs for t in column]


@untraced
def _vjp(
    call: Call,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    count, width = len(call.steps), call.width
    of_inputs = split(call, inputs)[1]
    of_outputs = [cotangents[k : k + count] for k in range(0, len(cotangents), count)]
    rows = [i for i in range(count) if any(column[i] is not None for column in of_outputs)]
    columns, likes = _in_one_order(
        [[column[i] for i in rows] for column in (*of_inputs, *of_outputs)]
    )
    wanted = [[at + i for i in rows] for at in range(width, len(inputs), count)]
    outputs = [
        [torch.empty_like(t) if needed[at] else None for t, at in zip(likes, column, strict=True)]
        for column in wanted
    ]
    arrays: list[list[Any]] = [*columns, *outputs]
    if not call.decay:
        nothing = [None] * len(rows)
        arrays = [*columns[: len(of_inputs)], nothing, *columns[len(of_inputs) :]]
        arrays += [*outputs, nothing]
    want_hyper = any(needed[:width])
    call = call._replace(steps=tuple(call.steps[i] for i in rows))
    sums = _cpu.vjp(*_request(call, inputs, likes, want_hyper, *arrays))

    found: list[Tensor | None] = [None] * len(inputs)
    for k in range(width):
        if needed[k]:
            found[k] = torch.tensor(sums[k], dtype=inputs[k].dtype, device=inputs[k].device)
    for column, places in zip(outputs, wanted, strict=True):
        for tensor, at in zip(column, places, strict=True):
            found[at] = tensor
    return found


def _composed_vjp(
    call: Call,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, because one input may be computed from another (a moment from a gradient): asked
        # for the inputs themselves, autograd would follow that path too and count it twice.
        aliases = tuple(x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True))
        outputs = _composed.step(call, aliases)
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs)
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [alias for alias, need in zip(aliases, needed, strict=True) if need],
                [cotangent for _, cotangent in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needed]


def _constant(call: Call, needed: tuple[bool, ...]) -> list[int]:
    """Return the places of outputs that no input that requires grad enters."""
    width, count = call.width, len(call.steps)
    rows = zip(*(needed[k : k + count] for k in range(width, len(needed), count)), strict=True)
    constant = []
    for i, (row, step) in enumerate(zip(rows, call.steps, strict=True)):
        kind = (call.rule, call.variant, call.decay, step == 1, needed[:width], row)
        constant += [k * count + i for k in _constant_of_one(*kind)]
    return constant


@functools.cache
def _constant_of_one(
    rule: Rule,
    variant: int,
    decay: int,
    first: bool,
    numbers: tuple[bool, ...],
    row: tuple[bool, ...],
) -> list[int]:
    # The composed formula is asked: it is the only place that says what enters where.
    call = Call(rule, variant, (1 if first else 2,), decay, False)
    half = torch.full((), 0.5, dtype=torch.float64, device="cpu")
    inputs = tuple(half.clone().requires_grad_(need) for need in (*numbers, *row))
    # The user's hooks on saved tensors have no business here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        return [k for k, t in enumerate(_composed.step(call, inputs)) if not t.requires_grad]


def _in_one_order(columns: list[list[Any]]) -> tuple[list[list[Any]], list[Tensor]]:
    """Return these tensors such that those of a row lie alike in memory, dense.

    That is also how the outputs are to lie: like the second returned list, as the first column
    does wherever it is dense. A tensor that lies otherwise is copied.
    """
    if all(t is None or t.is_contiguous() for column in columns for t in column):
        return columns, columns[0]
    copied, likes = [list(column) for column in columns], []
    for i, first in enumerate(columns[0]):
        like = torch.empty_like(first)
        likes.append(like)
        for column in copied:
            t = column[i]
            if t is not None and t.stride() != like.stride():
                column[i] = torch.empty_like(like).copy_(t)
    return copied, likes


def _request(
    call: Call, inputs: tuple[Any, ...], likes: list[Tensor], flag: bool, *arrays: list[Any]
) -> tuple[Any, ...]:
    """Return the arguments of a native function; the caller holds the arrays' tensors."""
    width = call.width
    return (
        _cpu.rules[call.rule.name][0],
        call.variant,
        DTYPES[inputs[width].dtype],
        call.decay,
        call.maximize,
        flag,
        [float(x) for x in inputs[:width]],
        [t.numel() for t in likes],
        call.steps,
        [0 if t is None else t.data_ptr() for column in arrays for t in column],
        torch.get_num_threads(),
    )

"""The same step through the native loops: one call, one autograd node for a whole list."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _composed, _cpu
from diffopt_kernels._check import AdamCall
from diffopt_kernels._explain import DTYPES, has_obstacle

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


def adam(call: AdamCall, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the updates, then the first moments, then the second moments."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        return list(_apply(call, *inputs))
    return _forward(call, inputs)


@untraced
def adam_(call: AdamCall, inputs: tuple[Any, ...], params: list[Tensor]) -> bool:
    """Write the new parameters and moments over the old ones, if their layouts allow it."""
    count = len(params)
    grads, exp_avgs, exp_avg_sqs = (
        list(inputs[6 + k * count : 6 + (k + 1) * count]) for k in range(3)
    )
    columns, likes = _in_one_order([params, grads, exp_avgs, exp_avg_sqs])
    written = (params, exp_avgs, exp_avg_sqs)
    p, g, m, v = columns
    for old, new in zip(written, (p, m, v), strict=True):
        if any(a is not b for a, b in zip(old, new, strict=True)):
            return False
    _cpu.adam_forward(*_request(call, inputs, likes, True, g, m, v, p, p, m, v))
    # Autograd must learn of writes that it did not see. (An inference tensor counts none.)
    torch.autograd.graph.increment_version(
        [t for column in written for t in column if not t.is_inference()]
    )
    return True


class _AdamStep(torch.autograd.Function):
    """The step, and its vector-Jacobian product.

    Keeps its inputs and nothing else. In an unrolled loop they are kept anyway: the moments are
    outputs of the step before, the gradients belong to the graph. The backward pass computes the
    new moments again, in registers.
    """

    @staticmethod
    def forward(ctx: Any, call: AdamCall, *inputs: Any) -> tuple[Tensor, ...]:
        outputs = _forward(call, inputs)
        ctx.call = call
        ctx.sizes = [x.numel() for x in inputs[6:]]
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs[:6]]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[x for x in inputs if isinstance(x, Tensor)])
        constant = _constant(call, ctx.needs_input_grad[1:], outputs)
        if constant:
            ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        numbers = [next(saved) if x is None else x for x in ctx.numbers]
        inputs, needed = (*numbers, *saved), ctx.needs_input_grad[1:]
        # Hooks on saved tensors and on gradients may have put anything in their places.
        if [x.numel() for x in inputs[6:]] != ctx.sizes:
            raise RuntimeError("A hook on saved tensors gave back a tensor of another size.")
        given = (*inputs[6:], *(c for c in cotangents if c is not None))
        if torch.is_grad_enabled() or has_obstacle(given, numbers):
            return (None, *_composed_vjp(ctx.call, inputs, cotangents, needed))
        return (None, *_vjp(ctx.call, inputs, cotangents, needed))


# torch.autograd.Function.apply without what it does for function transforms, of which none is
# active here: about 10 microseconds a step.
_apply: Any = super(torch.autograd.Function, _AdamStep).apply  # type: ignore[misc]


@untraced
def _forward(call: AdamCall, inputs: tuple[Any, ...]) -> list[Tensor]:
    columns, likes = _in_one_order(_columns(call, inputs))
    # One allocation for all of them would not be faster, as making a view takes as long as
    # making a tensor, and would keep all alive, and in torch.save, for the sake of one.
    outputs = [[torch.empty_like(t) for t in likes] for _ in range(3)]
    _cpu.adam_forward(*_request(call, inputs, likes, False, *columns, *outputs))
    return [t for column in outputs for t in column]


@untraced
def _vjp(
    call: AdamCall,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    count, width = len(call.steps), 4 if call.has_params else 3
    of_inputs = _columns(call, inputs)
    of_outputs = [cotangents[k * count : (k + 1) * count] for k in range(3)]
    rows = [i for i in range(count) if any(column[i] is not None for column in of_outputs)]
    columns, likes = _in_one_order(
        [[column[i] for i in rows] for column in (*of_inputs, *of_outputs)]
    )
    wanted = [[6 + k * count + i for i in rows] for k in range(width)]
    outputs = [
        [torch.empty_like(t) if needed[at] else None for t, at in zip(likes, column, strict=True)]
        for column in wanted
    ]
    no_params = [] if call.has_params else [[None] * len(rows)]
    want_hyper = any(needed[:6])
    call = call._replace(steps=tuple(call.steps[i] for i in rows))
    arrays = (*columns, *outputs, *no_params)
    sums = _cpu.adam_vjp(*_request(call, inputs, likes, want_hyper, *arrays))

    found: list[Tensor | None] = [None] * len(inputs)
    for k in range(6):
        if needed[k]:
            found[k] = torch.tensor(sums[k], dtype=inputs[k].dtype, device=inputs[k].device)
    for column, places in zip(outputs, wanted, strict=True):
        for tensor, at in zip(column, places, strict=True):
            found[at] = tensor
    return found


def _composed_vjp(
    call: AdamCall,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, because one input may be computed from another (a moment from a gradient): asked
        # for the inputs themselves, autograd would follow that path too and count it twice.
        aliases = tuple(x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True))
        outputs = _composed.adam(call, aliases)
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


def _constant(call: AdamCall, needed: Sequence[bool], outputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs that no input that requires grad enters, as autograd would find."""
    count = len(call.steps)
    coupled = call.has_params and not call.decoupled
    lr, beta1, beta2, eps, eps_root, weight_decay = needed[:6]
    in_descent = coupled and weight_decay
    in_m, in_v = beta1 or in_descent, beta2 or in_descent
    in_u = in_m or in_v or lr or eps or eps_root or weight_decay
    constant = []
    for i in range(count):
        g, m, v, *p = needed[6 + i :: count]
        descent = g or (coupled and p[0])
        if not (m or descent or in_m):
            constant.append(outputs[count + i])
        if not (v or descent or in_v):
            constant.append(outputs[2 * count + i])
        if not (g or m or v or any(p) or in_u):
            constant.append(outputs[i])
    return constant


def _columns(call: AdamCall, inputs: tuple[Any, ...]) -> list[list[Any]]:
    """Return gradients, first moments, second moments and parameters, if any."""
    count = len(call.steps)
    columns = [list(inputs[6 + k * count : 6 + (k + 1) * count]) for k in range(3)]
    return [*columns, list(inputs[6 + 3 * count :]) if call.has_params else [None] * count]


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
    call: AdamCall, inputs: tuple[Any, ...], likes: list[Tensor], flag: bool, *arrays: list[Any]
) -> tuple[Any, ...]:
    """Return the arguments of a native function; the caller holds the arrays' tensors."""
    return (
        DTYPES[inputs[6].dtype],
        0 if not call.has_params else 2 if call.decoupled else 1,
        call.maximize,
        flag,
        [float(x) for x in inputs[:6]],
        [t.numel() for t in likes],
        call.steps,
        [0 if t is None else t.data_ptr() for column in arrays for t in column],
        torch.get_num_threads(),
    )

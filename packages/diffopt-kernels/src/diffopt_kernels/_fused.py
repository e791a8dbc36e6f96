"""The same step through the native loops: one call, one autograd node for a whole list."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _composed, _launch
from diffopt_kernels._explain import Found, look
from diffopt_kernels._launch import addresses_of, in_one_order
from diffopt_kernels._rule import Call, Rule

# NOTE [addresses and Dynamo]
# Traced code drops a tensor once its address is taken, and the kernel would then write into
# freed memory. A call that torch.compile traces takes the composed path, but Dynamo also enters
# frames below a graph break, such as that of a backward pass. Hence `untraced` around every
# function that takes an address; these functions hold the tensors until the kernel returns.


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as ``torch.compiler.disable`` would, importing Dynamo only if in use."""
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # its import takes more than a second
            return function(*args)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args)

    return call


def step(call: Call, inputs: tuple[Any, ...], found: Found) -> list[Tensor]:
    """Return the updates, then each column of new states, of inputs that lie as `found`."""
    tensors = inputs[call.width :] if call.plain else [x for x in inputs if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return list(_apply(call.rule)(call, found, *inputs))
    return _forward(call, inputs, found)


@untraced
def step_(call: Call, inputs: tuple[Any, ...], params: list[Tensor]) -> bool:
    """Write the new parameters and states over the old ones, if their layouts allow it."""
    count, width = len(params), call.width
    states = inputs[width + count : width + (1 + call.depth) * count]
    given = (*params, *inputs[width : width + count], *states)
    arrays, likes = in_one_order(given, count)
    p, g, s = arrays[:count], arrays[count : 2 * count], arrays[2 * count :]
    if any(a is not b for a, b in zip((*p, *s), (*params, *states), strict=True)):
        return False
    sizes = [t.numel() for t in likes]
    _launch.forward(call, inputs, sizes, True, addresses_of([*g, *s, *p, *p, *s]))
    # Autograd must learn of writes that it did not see. (An inference tensor counts none.)
    torch.autograd.graph.increment_version([t for t in (*p, *s) if not t.is_inference()])
    return True


class _FusedStep(torch.autograd.Function):
    """The step, and its vector-Jacobian product.

    Keeps its inputs and nothing else. In an unrolled loop they are kept anyway: the states are
    outputs of the step before, the gradients belong to the graph. The backward pass computes the
    new states again, in registers.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, found: Found, *inputs: Any) -> tuple[Tensor, ...]:
        width, count = call.width, len(call.steps)
        outputs = _forward(call, inputs, found)
        ctx.call = call
        ctx.sizes = found.sizes
        ctx.numbers = inputs[:width]
        tensors = inputs[width:]
        if not call.plain:
            ctx.numbers = [None if isinstance(x, Tensor) else x for x in ctx.numbers]
            tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        first = tuple(step == 1 for step in call.steps) if 1 in call.steps else (False,) * count
        constant = _constant(call.rule, call.variant, call.decay, first, ctx.needs_input_grad[2:])
        if constant:
            ctx.mark_non_differentiable(*[outputs[k] for k in constant])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *_backward(ctx, cotangents))


@functools.cache
def _apply(rule: Rule) -> Callable[..., Any]:
    """Return the application of a rule's own node, whose name tells whose step it is."""
    node = type(f"{rule.name.capitalize()}Step", (_FusedStep,), {})
    # torch.autograd.Function.apply without what it does for function transforms, of which none is
    # active here: about 10 microseconds a step.
    return super(torch.autograd.Function, node).apply  # type: ignore[misc]


@untraced
def _forward(call: Call, inputs: tuple[Any, ...], found: Found) -> list[Tensor]:
    width, count = call.width, len(call.steps)
    arrays, likes = inputs[width:], inputs[width : width + count]
    addresses = found.addresses[: len(arrays)]  # without parameters that are not used
    if not found.contiguous:
        arrays, likes = in_one_order(arrays, count)
        addresses = addresses_of(arrays)
    # One allocation for all of them would not be faster, as making a view takes as long as
    # making a tensor, and would keep all alive, and in torch.save, for the sake of one.
    outputs = list(map(torch.empty_like, likes * (1 + call.depth)))
    _launch.forward(call, inputs, found.sizes, False, addresses + addresses_of(outputs))
    return outputs


@untraced
def _backward(ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    call, needed = ctx.call, ctx.needs_input_grad[2:]
    numbers, tensors = ctx.numbers, ctx.saved_tensors
    learned: Sequence[Tensor] = ()
    if not call.plain:
        count = list(numbers).count(None)
        learned, tensors = tensors[:count], tensors[count:]
        rest = iter(learned)
        numbers = [next(rest) if x is None else x for x in numbers]
    inputs = (*numbers, *tensors)
    columns = [
        all_of[k : k + len(ctx.sizes)]
        for all_of in (tensors, cotangents)
        for k in range(0, len(all_of), len(ctx.sizes))
    ]
    complete = len(columns) - 1 - call.depth
    found = None if torch.is_grad_enabled() else look(tuple(columns), learned, complete)
    # Hooks on saved tensors and on gradients may have put anything in their places.
    sizes = found.sizes if found else [x.numel() for x in tensors]
    if sizes != ctx.sizes * (len(sizes) // len(ctx.sizes)):
        raise RuntimeError("A hook on saved tensors gave back a tensor of another size.")
    if found is None:
        return _composed_vjp(call, inputs, cotangents, needed)
    return _vjp(call, inputs, cotangents, needed, found)


def _vjp(
    call: Call,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
    found: Found,
) -> list[Tensor | None]:
    count, width = len(call.steps), call.width
    addresses, sizes = found.addresses, found.sizes
    likes: Sequence[Tensor] = inputs[width : width + count]
    if not found.contiguous:
        arrays, likes = in_one_order((*inputs[width:], *cotangents), count)
        addresses = addresses_of(arrays)
    wanted = needed[width:]
    if any(c is None for c in cotangents):
        present = [any(c is not None for c in cotangents[i::count]) for i in range(count)]
        sizes = [size if here else 0 for size, here in zip(sizes, present, strict=True)]
        wanted = [need and present[i % count] for i, need in enumerate(wanted)]
    columns = likes * (len(wanted) // count)
    outputs = [
        torch.empty_like(like) if want else None for like, want in zip(columns, wanted, strict=True)
    ]
    sums = None
    if any(needed[:width]):
        sums = torch.empty(width, count, dtype=torch.float64, device=likes[0].device)
    _launch.vjp(call, inputs, sizes, sums, addresses + addresses_of(outputs))

    of_numbers: list[Tensor | None] = [None] * width
    if sums is not None:
        for k, need in enumerate(needed[:width]):
            if need:
                number, by_tensor = inputs[k], sums[k]
                of_numbers[k] = (by_tensor if number.dim() else by_tensor.sum()).to(number)
    return [*of_numbers, *outputs]


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


@functools.lru_cache
def _constant(
    rule: Rule, variant: int, decay: int, first: tuple[bool, ...], needed: tuple[bool, ...]
) -> list[int]:
    """Return the places of outputs that no input that requires grad enters."""
    width, count = len(rule.numbers) + 1, len(first)
    columns = [needed[k : k + count] for k in range(width, len(needed), count)]
    constant = []
    for i, (is_first, *row) in enumerate(zip(first, *columns, strict=True)):
        kind = (rule, variant, decay, is_first, needed[:width], tuple(row))
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
    call = Call(rule, variant, (1 if first else 2,), decay, False, False)
    half = torch.full((), 0.5, dtype=torch.float64, device="cpu")
    inputs = tuple(half.clone().requires_grad_(need) for need in (*numbers, *row))
    # The user's hooks on saved tensors have no business here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        return [k for k, t in enumerate(_composed.step(call, inputs)) if not t.requires_grad]

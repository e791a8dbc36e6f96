"""The same step through the native loops: one call, one autograd node for a whole list."""

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _composed, _launch
from diffopt_kernels._explain import locate, look
from diffopt_kernels._launch import in_one_order
from diffopt_kernels._native import Found
from diffopt_kernels._rule import Call, Rule

_requires_grad = operator.attrgetter("requires_grad")

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
    width = call.width
    numbers, arrays = inputs[:width], inputs[width:]
    learned = () if call.plain else [x for x in numbers if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(map(_requires_grad, (*arrays, *learned))):
        known = numbers if call.plain else [None if isinstance(x, Tensor) else x for x in numbers]
        return list(_apply(call.rule)(call, found, known, *learned, *arrays))
    return _forward(call, numbers, arrays, found)


@untraced
def step_(call: Call, inputs: tuple[Any, ...], params: list[Tensor]) -> bool:
    """Write the new parameters and states over the old ones, if their layouts allow it."""
    count, width = len(params), call.width
    states = inputs[width + count : width + (1 + call.depth) * count]
    given = (*params, *inputs[width : width + count], *states)
    arrays, _ = in_one_order(given, count)
    p, g, s = arrays[:count], arrays[count : 2 * count], arrays[2 * count :]
    if any(a is not b for a, b in zip((*p, *s), (*params, *states), strict=True)):
        return False
    _launch.forward(call, inputs[:width], _located((*g, *s, *p), count), True, [*p, *s])
    # Autograd must learn of writes that it did not see. (An inference tensor counts none.)
    torch.autograd.graph.increment_version([t for t in (*p, *s) if not t.is_inference()])
    return True


class _FusedStep(torch.autograd.Function):
    """The step, and its vector-Jacobian product.

    Its inputs are the hyperparameters, with None for those that are tensors, these tensors, and the
    columns. It keeps them and nothing else. In an unrolled loop they are kept anyway: the states
    are outputs of the step before, the gradients belong to the graph. The backward pass computes
    the new states again, in registers.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, found: Found, known: Sequence[Any], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.known = known
        ctx.sizes = found.sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        numbers, arrays = _merged(known, tensors)
        outputs = _forward(call, numbers, arrays, found)
        of_numbers, of_arrays = _merged_needs(call, known, ctx.needs_input_grad[3:])
        first = tuple(step == 1 for step in call.steps)
        constant = _constant(call.rule, call.variant, call.decay, first, of_numbers, of_arrays)
        if constant:
            ctx.mark_non_differentiable(*[outputs[k] for k in constant])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return (None, None, None, *_backward(ctx, cotangents))


@functools.cache
def _apply(rule: Rule) -> Callable[..., Any]:
    """Return the application of a rule's own node, whose name tells whose step it is."""
    node = type(f"{rule.name.capitalize()}Step", (_FusedStep,), {})
    # torch.autograd.Function.apply without what it does for function transforms, of which none is
    # active here: about 10 microseconds a step.
    return super(torch.autograd.Function, node).apply  # type: ignore[misc]


@untraced
def _forward(
    call: Call, numbers: Sequence[Any], arrays: Sequence[Tensor], found: Found
) -> list[Tensor]:
    count = len(call.steps)
    likes = [*arrays[:count]]
    if not found.contiguous:
        arrays, likes = in_one_order(arrays, count)
        found = _located(arrays, count)
    # One allocation for all of them would not be faster, as making a view takes as long as
    # making a tensor, and would keep all alive, and in torch.save, for the sake of one.
    outputs = list(map(torch.empty_like, likes * (1 + call.depth)))
    _launch.forward(call, numbers, found, False, outputs)
    return outputs


@untraced
def _backward(ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    call, tensors = ctx.call, ctx.saved_tensors
    numbers, arrays = _merged(ctx.known, tensors)
    learned = tensors[: len(tensors) - len(arrays)]
    needed = ctx.needs_input_grad[3:]
    found = None
    if not torch.is_grad_enabled():
        columns = (*_columns(arrays, len(ctx.sizes)), *_columns(cotangents, len(ctx.sizes)))
        found = look(columns, learned, len(columns) - 1 - call.depth)
    # Hooks on saved tensors and on gradients may have put anything in their places.
    sizes = found.sizes if found else [x.numel() for x in arrays]
    if sizes != ctx.sizes * (len(sizes) // len(ctx.sizes)):
        raise RuntimeError("A hook on saved tensors gave back a tensor of another size.")
    if found is None:
        inputs = (*numbers, *arrays)
        of_numbers, of_arrays = _merged_needs(call, ctx.known, needed)
        results = _composed_vjp(call, inputs, cotangents, (*of_numbers, *of_arrays))
        return [r for r, x in zip(results, inputs, strict=True) if isinstance(x, Tensor)]
    return _vjp(call, numbers, arrays, cotangents, needed, found)


def _vjp(
    call: Call,
    numbers: Sequence[Any],
    arrays: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
    found: Found,
) -> list[Tensor | None]:
    count = len(call.steps)
    likes, wanted = [*arrays[:count]], needed[len(needed) - len(arrays) :]
    if not found.complete:
        present = [any(c is not None for c in cotangents[i::count]) for i in range(count)]
        wanted = [need and present[i % count] for i, need in enumerate(wanted)]
    if not found.contiguous:
        arranged, likes = in_one_order((*arrays, *cotangents), count)
        found = _located(arranged, count, len(arrays) // count)
    outputs = [
        torch.empty_like(like) if want else None
        for like, want in zip(likes * (len(arrays) // count), wanted, strict=True)
    ]
    if call.plain:
        _launch.vjp(call, numbers, found, None, outputs)
        return outputs

    learned = [k for k, x in enumerate(numbers) if isinstance(x, Tensor)]
    sums = None
    if any(needed[: len(learned)]):
        sums = torch.empty(call.width, count, dtype=torch.float64, device=likes[0].device)
    _launch.vjp(call, numbers, found, sums, outputs)
    of_learned: list[Tensor | None] = [None] * len(learned)
    if sums is not None:
        for i, k in enumerate(learned):
            if needed[i]:
                by_tensor = sums[k]
                of_learned[i] = (by_tensor if numbers[k].dim() else by_tensor.sum()).to(numbers[k])
    return [*of_learned, *outputs]


def _columns(flat: Sequence[Any], count: int) -> list[Sequence[Any]]:
    return [flat[k : k + count] for k in range(0, len(flat), count)]


def _located(flat: Sequence[Any], count: int, complete: int | None = None) -> Found:
    """Return where these columns lie, of tensors that have been found before."""
    columns = tuple(_columns(flat, count))
    found = locate(columns, len(columns) if complete is None else complete)
    assert found is not None
    return found


def _merged(known: Sequence[Any], flat: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what stands for each hyperparameter, from `flat` where it is None, and the rest."""
    missing = known.count(None)
    if not missing:
        return known, flat
    head = iter(flat)
    return [next(head) if x is None else x for x in known], flat[missing:]


def _merged_needs(call: Call, known: Sequence[Any], needed: Sequence[bool]) -> tuple[Any, Any]:
    """Return the same of whether a derivative is needed."""
    if call.plain:
        return (False,) * len(known), needed
    of_numbers, of_arrays = _merged([None if x is None else False for x in known], needed)
    return tuple(of_numbers), of_arrays


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
    rule: Rule,
    variant: int,
    decay: int,
    first: tuple[bool, ...],
    of_numbers: tuple[bool, ...],
    of_arrays: tuple[bool, ...],
) -> list[int]:
    """Return the places of outputs that no input that requires grad enters."""
    count = len(first)
    constant = []
    for i, (is_first, *row) in enumerate(zip(first, *_columns(of_arrays, count), strict=True)):
        kind = (rule, variant, decay, is_first, of_numbers, tuple(row))
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

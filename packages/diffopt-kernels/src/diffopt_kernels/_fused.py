"""The same step through the native loops: one call, one autograd node for a whole list."""

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels import _composed, _launch, _native
from diffopt_kernels._explain import ambient_obstacle, locate, look
from diffopt_kernels._inputs import constant_outputs, in_columns, merged, merged_needs
from diffopt_kernels._launch import in_one_order
from diffopt_kernels._native import Found
from diffopt_kernels._rule import Call, Rule, depth

passes = _native.Passes(locate, torch.empty_like)
_requires_grad = operator.attrgetter("requires_grad")

# NOTE [addresses and Dynamo]
# Traced code drops a tensor once its address is taken, and the kernel would then write into
# freed memory. A call that torch.compile traces takes the composed path, but Dynamo also enters
# frames below a graph break, such as that of a backward pass. Hence `untraced` around every
# function that takes an address; these functions hold the tensors until the kernel returns. (From
# `passes` no address comes out.)


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


def step_at_once(
    rule: Rule,
    variant: int,
    columns: tuple[Any, ...],
    steps: int | Sequence[int],
    numbers: tuple[Any, ...],
    decoupled: bool,
    maximize: bool,
    applied: bool,
    known: tuple[Tensor, ...] | None,
) -> Sequence[Tensor] | None:
    """Return the updates, or the new parameters, then each column of new states.

    Or nothing, unless one native call can do all, which itself tells whether the arguments are
    right, and the tensors on the CPU, those of a row alike in memory.
    """
    if ambient_obstacle():
        return None
    made = passes.forward(
        rule.code, variant, decoupled, maximize, applied, numbers, rule.bounds, columns,
        steps, known, torch.get_num_threads(),
    )  # fmt: skip
    if made is None:
        return None
    decay, plain, steps, sizes, arrays, outputs = made
    call = Call(rule, variant, steps, decay, maximize, applied, plain)
    return _recorded(call, sizes, numbers, arrays, outputs)


def step(
    call: Call, inputs: tuple[Any, ...], found: Found, known: tuple[Tensor, ...] | None
) -> Sequence[Tensor]:
    """Return the same of any inputs that lie as `found`."""
    numbers, arrays = inputs[: call.rule.width], inputs[call.rule.width :]
    outputs = _forward(call, numbers, arrays, found) if known is None else known
    return _recorded(call, tuple(found.sizes), numbers, arrays, outputs)


def _recorded(
    call: Call,
    sizes: tuple[int, ...],
    numbers: tuple[Any, ...],
    arrays: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> Sequence[Tensor]:
    """Return the outputs, by a node that gives their derivatives if there are any."""
    learned = () if call.plain else tuple(x for x in numbers if isinstance(x, Tensor))
    tensors = (*learned, *arrays)
    if not (torch.is_grad_enabled() and any(map(_requires_grad, tensors))):
        return outputs
    known = tuple(None if isinstance(x, Tensor) else x for x in numbers) if learned else numbers
    return _apply(call.rule)((call, sizes, known), outputs, *tensors)


@untraced
def step_(call: Call, inputs: tuple[Any, ...], params: list[Tensor]) -> bool:
    """Write the new parameters and states over the old ones, if their layouts allow it."""
    count, width = len(params), call.rule.width
    states = inputs[width + count : width + (1 + depth(call)) * count]
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
    columns. It keeps them and nothing else; and not the parameters where they are only added to, so
    that these may be written over. In an unrolled loop they are kept anyway: the states are outputs
    of the step before, the gradients belong to the graph. The backward pass computes the new states
    again, in registers.
    """

    @staticmethod
    def forward(
        ctx: Any, told: tuple[Any, ...], outputs: tuple[Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        # Computed before, without this frame and what torch does around it.
        ctx.told = told
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_read(told[0], tensors))
        needed = ctx.needs_input_grad[2:]
        if not all(needed) and (constant := constant_outputs(told[0], told[2], needed)):
            ctx.mark_non_differentiable(*[outputs[k] for k in constant])
        return outputs

    @staticmethod
    @untraced
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        call, sizes, known = ctx.told
        tensors = _completed(call, known, ctx.saved_tensors)
        if not torch.is_grad_enabled() and not ambient_obstacle():
            results = passes.vjp(
                call.rule.code, call.variant, call.decay, call.maximize, call.applied, known,
                call.steps, sizes, tensors, cotangents, ctx.needs_input_grad,
                torch.get_num_threads(),
            )  # fmt: skip
            if results is not None:
                return results
        needed = ctx.needs_input_grad[2:]
        return (None, None, *_backward(call, sizes, known, tensors, cotangents, needed))


def _read(call: Call, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return those of a node's inputs that its derivative reads."""
    return tensors[: -len(call.steps)] if call.applied and not call.decay else tensors


def _completed(call: Call, known: Sequence[Any], kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return as many tensors as there were inputs.

    Others like the gradients stand for the parameters that are not read. They require grad where
    the formula is composed again, by whose graph the parameters' cotangents are found.
    """
    if call.decay or not call.applied:
        return kept
    first = known.count(None)
    grads = kept[first : first + len(call.steps)]
    if torch.is_grad_enabled():
        grads = (g.detach().requires_grad_() for g in grads)
    return (*kept, *grads)


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
) -> tuple[Tensor, ...]:
    count = len(call.steps)
    likes = [*arrays[:count]]
    if not found.contiguous:
        arrays, likes = in_one_order(arrays, count)
        found = _located(arrays, count)
    # One allocation for all of them would not be faster, as making a view takes as long as
    # making a tensor, and would keep all alive, and in torch.save, for the sake of one.
    outputs = tuple(map(torch.empty_like, likes * (1 + depth(call))))
    _launch.forward(call, numbers, found, False, outputs)
    return outputs


def _backward(
    call: Call,
    sizes: tuple[int, ...],
    known: Sequence[Any],
    tensors: tuple[Tensor, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    numbers, arrays = merged(known, tensors)
    learned = tensors[: len(tensors) - len(arrays)]
    found = None
    if not torch.is_grad_enabled():
        columns = (*in_columns(arrays, len(sizes)), *in_columns(cotangents, len(sizes)))
        found = look(columns, learned, len(columns) - 1 - depth(call))
    # Hooks on saved tensors and on gradients may have put anything in their places.
    given = tuple(found.sizes if found else [x.numel() for x in arrays])
    if given != sizes * (len(given) // len(sizes)):
        raise RuntimeError("A hook on saved tensors gave back a tensor of another size.")
    if found is None:
        inputs = (*numbers, *arrays)
        of_numbers, of_arrays = merged_needs(call, known, needed)
        results = _composed.vjp(call, inputs, cotangents, (*of_numbers, *of_arrays))
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
        sums = torch.empty(call.rule.width, count, dtype=torch.float64, device=likes[0].device)
    _launch.vjp(call, numbers, found, sums, outputs)
    of_learned: list[Tensor | None] = [None] * len(learned)
    if sums is not None:
        for i, k in enumerate(learned):
            if needed[i]:
                by_tensor = sums[k]
                of_learned[i] = (by_tensor if numbers[k].dim() else by_tensor.sum()).to(numbers[k])
    return [*of_learned, *outputs]


def _located(flat: Sequence[Any], count: int, complete: int | None = None) -> Found:
    """Return where these columns lie, of tensors that have been found before."""
    columns = tuple(in_columns(flat, count))
    found = locate(columns, len(columns) if complete is None else complete)
    assert found is not None
    return found

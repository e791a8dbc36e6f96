"""Losses of modules whose parameters cannot be replaced, only written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytree_core import tree_flatten, tree_unflatten
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from diffopt_implicit._closure import closure_message, is_tracked, reachable
from diffopt_implicit._torch import Tensors, is_transforming, outside_graphs


def by_backward(
    module: nn.Module, loss: Callable[..., Tensor], *, group: ProcessGroup | None = None
) -> Callable[..., Tensor]:
    """Make a loss of a module a function of its parameters, differentiated by ``backward()``.

    `hypergradient` evaluates losses at other parameters than the module's own. Where
    `torch.func.functional_call` cannot put them in their places, as in a module that
    `torch.distributed.fsdp.fully_shard` shards or `DistributedDataParallel` wraps, the function
    made here writes them into the module, evaluates the loss, lets its ``backward()`` run at once,
    with all that the wrapper does in it, and puts back what was there: parameters, buffers and
    what was in `.grad`. So it has first derivatives alone, for `F2SA`, `BOME`, `SAMA` and
    `FiniteDifference`.

    Between processes the derivatives by the parameters are what the wrapper makes of them: those
    of the mean of all their losses. All processes must call it alike. It holds one more copy of
    the parameters, or of this process's shards of them.

    Args:
        module: It is called by `loss`. Parameters that are not given later stay as they are.
        loss: ``(*hparams) -> scalar``, of trees of tensors and anything else.
        group: The processes that share the hyperparameters, such as
            ``torch.distributed.group.WORLD``: derivatives by these are averaged between them.
            Without it they are those of this process's own loss.

    Returns:
        ``(params, *hparams) -> scalar``, where `params` is a dict like
        ``dict(module.named_parameters())``.

    Raises:
        ValueError: By that function, for a parameter that the module does not have or that does
            not require grad, unless `loss` returns a scalar, and if it closes over another tensor
            that requires grad.
        NotImplementedError: By that function, under a transform of `torch.func`.
        RuntimeError: If its gradient is differentiated in turn.

    Example:
        >>> import torch
        >>> from diffopt_implicit import F2SA, by_backward, hypergradient
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(0.5)  # the minimum for the target 1
        >>> x = torch.full((1,), 2.0)
        >>> inner = by_backward(net, lambda target: (net(x) - target).sum() ** 2)
        >>> outer = by_backward(net, lambda _: net(torch.ones(1)).sum())
        >>> params = dict(net.named_parameters())
        >>> hypergradient(inner, outer, params, torch.tensor(1.0), F2SA(50, step_size=0.2))
        tensor(0.5000)
    """

    @outside_graphs
    def of_parameters(params: Mapping[str, Tensor], *hparams: Any) -> Tensor:
        if is_transforming():
            raise NotImplementedError(
                "`by_backward` writes parameters in place, which `torch.func` cannot transform. "
                "Take its derivatives by `torch.autograd.grad`, or by `hypergradient`."
            )
        own = _owned(module, params)
        leaves, spec = tree_flatten(hparams)
        places = [i for i, leaf in enumerate(leaves) if _requires_grad(leaf)]

        def value(tensors: Tensors) -> Tensor:
            given = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            return _checked(loss(*tree_unflatten(spec, given)))

        learned = [leaves[place] for place in places]
        _check_closure(module, loss, learned)
        return _AtOnce.apply(module, own, value, group, *params.values(), *learned)  # type: ignore[return-value]

    return of_parameters


class _AtOnce(torch.autograd.Function):
    """A loss, whose gradient is taken together with it."""

    @staticmethod
    def forward(
        ctx: Any,
        module: nn.Module,
        own: list[nn.Parameter],
        value: Callable[[Tensors], Tensor],
        group: ProcessGroup | None,
        *tensors: Tensor,
    ) -> Tensor:
        needed = ctx.needs_input_grad[4:]
        with _written(module, own, tensors[: len(own)]), torch.enable_grad():
            learned = [tensor.detach().requires_grad_() for tensor in tensors[len(own) :]]
            found = value(tuple(learned))
            if any(needed) and found.requires_grad:
                found.backward()
            grads = [leaf.grad for leaf in (*own, *learned)]
            if group is not None and any(needed):
                grads[len(own) :] = [_averaged(leaf, group) for leaf in learned]
        ctx.save_for_backward(*tensors)
        ctx.grads = [g if need else None for g, need in zip(grads, needed, strict=True)]
        return found.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (cotangent,) = cotangents
        grads = [None if g is None else (cotangent.detach() * g).to(g.dtype) for g in ctx.grads]
        if torch.is_grad_enabled():
            others = cotangent, *ctx.saved_tensors
            grads = [None if g is None else _FirstAlone.apply(g, *others) for g in grads]
        return None, None, None, None, *grads


class _FirstAlone(torch.autograd.Function):
    """A derivative that is not to be differentiated, by any of these tensors."""

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, *tensors: Tensor) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise RuntimeError(
            "A loss by `by_backward` has first derivatives alone, and its gradient is now to be "
            "differentiated. Use a method that takes no second ones: `F2SA`, `BOME`, `SAMA` or "
            "`FiniteDifference`; or `torch.func.functional_call`, where the module allows it."
        )


def _averaged(leaf: Tensor, group: ProcessGroup) -> Tensor:
    """Return the mean of a leaf's gradients in these processes."""
    total = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
    distributed.all_reduce(total, group=group)
    return total / distributed.get_world_size(group)


@contextmanager
def _written(module: nn.Module, own: list[nn.Parameter], values: Tensors) -> Iterator[None]:
    """Let a module have these values and no gradients for a while."""
    every, buffers = list(module.parameters()), list(module.buffers())
    before = [param.detach().clone() for param in own]
    kept, grads = [buffer.clone() for buffer in buffers], [param.grad for param in every]
    try:
        with torch.no_grad():
            for param, tensor in zip(own, values, strict=True):
                param.copy_(tensor)
        for param in every:
            param.grad = None
        yield
    finally:
        with torch.no_grad():
            for tensor, saved in zip((*own, *buffers), (*before, *kept), strict=True):
                tensor.copy_(saved)
        for param, grad in zip(every, grads, strict=True):
            param.grad = grad


def _owned(module: nn.Module, params: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Return the module's parameters of these names."""
    named = dict(module.named_parameters())
    for name, tensor in params.items():
        if name not in named:
            raise ValueError(
                f"`params` has {name!r}, which is no parameter of {type(module).__name__}: it has "
                f"{', '.join(named)}. Give a dict like `dict(module.named_parameters())`."
            )
        own = named[name]
        if not own.requires_grad:
            raise ValueError(
                f"The parameter {name!r} does not require grad, so `backward()` would give it "
                "none. Leave it out of `params`, or let it require grad."
            )
        if own.shape != tensor.shape:
            raise ValueError(
                f"`params[{name!r}]` must be shaped like the module's parameter: got "
                f"{tuple(tensor.shape)}, expected {tuple(own.shape)}."
            )
    return [named[name] for name in params]


def _check_closure(module: nn.Module, loss: Callable[..., Any], given: list[Tensor]) -> None:
    known = {id(tensor) for tensor in (*module.parameters(), *given)}
    lost = [
        f"`{name}` of shape {tuple(tensor.shape)}"
        for name, tensor in reachable("", loss, set(), 0)
        if is_tracked(tensor) and id(tensor) not in known
    ]
    if lost:
        raise ValueError(closure_message("The loss", lost))


def _checked(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"The loss must be a scalar tensor, got {got}. Take its mean.")
    return value


def _requires_grad(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad

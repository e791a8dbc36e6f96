"""One step of any rule: checked, and by the path that it can take."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffopt_kernels import _composed, _fused
from diffopt_kernels._check import Number, check, check_tensors
from diffopt_kernels._explain import look
from diffopt_kernels._fused import step_at_once
from diffopt_kernels._rule import Rule

Columns = Sequence[Any]  # of lists of tensors, which `check` makes sure of
Known = Sequence[Sequence[Tensor]] | None


def step(
    rule: Rule,
    variant: int,
    grads: Sequence[Tensor],
    states: Columns,
    steps: int | Sequence[int],
    numbers: Sequence[Number],
    weight_decay: Number,
    params: Sequence[Tensor] | None,
    decoupled: bool,
    maximize: bool,
    applied: bool,
    known: Known,
) -> list[list[Tensor]]:
    """Return the updates, or the new parameters, and each column of new states."""
    columns = (grads, *states) if params is None else (grads, *states, params)
    hyper = (*numbers, weight_decay)
    given = None if known is None else _apart(known)
    outputs = step_at_once(
        rule, variant, columns, steps, hyper, decoupled, maximize, applied, given
    )
    if outputs is None:
        call, inputs, found = check(
            rule, variant, grads, states, steps, numbers, weight_decay, params, decoupled, maximize,
            applied, look,
        )  # fmt: skip
        if not grads:
            return [[] for _ in range(1 + len(states))]
        if known is not None:
            _check_known(known, grads, 1 + len(states))
        outputs = _fused.step(call, inputs, found, given) if found else _composed.step(call, inputs)
    count = len(grads)
    return [list(outputs[k : k + count]) for k in range(0, len(outputs), count)]


def step_(
    rule: Rule,
    variant: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Columns,
    steps: int | Sequence[int],
    numbers: Sequence[Number],
    weight_decay: Number,
    decoupled: bool,
    maximize: bool,
) -> None:
    """Write the new parameters and states over the old ones."""
    names = ("params", "grads", *rule.states[variant])
    columns = dict(zip(names, (params, grads, *states), strict=True))
    call, inputs, found = check(
        rule, variant, grads, states, steps, numbers, weight_decay, params, decoupled, maximize,
        False, look,
    )  # fmt: skip
    _refuse_graph(columns)
    refuse_learned(**dict(zip(rule.names, inputs[: rule.width], strict=True)))
    _refuse_overlap({name: t for name, t in columns.items() if name != "grads"})
    if not params:
        return
    if not (found and _fused.step_(call, inputs, list(params))):
        _composed.step_(call, inputs, list(params))


def pair(name: str, value: Any) -> tuple[Any, Any]:
    """Return both of a pair of hyperparameters."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"`{name}` must be a pair, got {value!r}.")
    return value[0], value[1]


def refuse_learned(**numbers: Any) -> None:
    """Raise if a hyperparameter requires grad."""
    for name, number in numbers.items():
        each = number if isinstance(number, (list, tuple)) else (number,)
        if any(isinstance(x, Tensor) and x.requires_grad for x in each):
            raise ValueError(
                f"`{name}` requires grad, which a step in place cannot give. "
                "Use the step without the underscore, or detach it."
            )


def _apart(known: Any) -> tuple[Any, ...]:
    """Return tensors of their own, as a node makes its outputs part of the graph."""
    if not isinstance(known, (list, tuple)):
        raise TypeError(f"`known` must be lists of tensors, got {type(known).__name__}.")
    columns = [column for column in known if isinstance(column, (list, tuple))]
    return tuple([t.detach() if isinstance(t, Tensor) else t for c in columns for t in c])


def _check_known(known: Columns, grads: Sequence[Tensor], count: int) -> None:
    if len(known) != count:
        raise ValueError(
            f"`known` must be the {count} lists that the step gives anew, got {len(known)}."
        )
    check_tensors({"grads": grads, **{f"known[{k}]": column for k, column in enumerate(known)}})


def _refuse_graph(columns: dict[str, Sequence[Tensor]]) -> None:
    for name, column in columns.items():
        for i, t in enumerate(column):
            if t.grad_fn is not None or (t.requires_grad and name != "params"):
                raise ValueError(
                    f"`{name}[{i}]` is part of a graph, which a step in place would cut. "
                    "Use the step without the underscore, or detach it."
                )


def _refuse_overlap(columns: dict[str, Sequence[Tensor]]) -> None:
    places: dict[int, str] = {}
    for name, column in columns.items():
        for i, t in enumerate(column):
            here = f"{name}[{i}]"
            if id(t) in places:
                raise ValueError(f"`{here}` is `{places[id(t)]}`: it cannot be written twice.")
            places[id(t)] = here
            steps = zip(t.shape, t.stride(), strict=True)
            if t.numel() > 0 and any(size > 1 and stride == 0 for size, stride in steps):
                raise ValueError(
                    f"`{here}` is expanded: its elements share memory, "
                    "and cannot be written one by one. Clone it."
                )

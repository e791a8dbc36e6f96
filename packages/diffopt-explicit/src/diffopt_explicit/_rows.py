"""The state of a transform as a table with a row for each parameter, as `torch.optim` has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pytree_core import TreeSpec, tree_flatten_with_path, tree_unflatten
from torch import Tensor

from diffopt_explicit._adafactor import ScaleByAdafactor
from diffopt_explicit._averaged import ScaleByASGD
from diffopt_explicit._chain import Chain
from diffopt_explicit._clip import AdaptiveClip, Clip, ClipByGlobalNorm
from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._moments import (
    ScaleByAdam,
    ScaleByAdamax,
    ScaleByAMSGrad,
    ScaleByNAdam,
    ScaleByRAdam,
)
from diffopt_explicit._muon import ScaleByMuon
from diffopt_explicit._scale import Scale, ScaleByLearningRate
from diffopt_explicit._signs import ScaleByLion, ScaleByRprop
from diffopt_explicit._squares import ScaleByAdadelta, ScaleByAdagrad, ScaleByRMS
from diffopt_explicit._trace import Trace
from diffopt_explicit._transform import Transform
from diffopt_explicit._trust import ScaleByLARS, ScaleByTrustRatio

Row: TypeAlias = dict[str, Any]
Params: TypeAlias = list[Tensor] | dict[str, Tensor | None]

_SLOTS: dict[type, tuple[str, ...]] = {
    ScaleByAdam: ("exp_avg", "exp_avg_sq"),
    ScaleByAMSGrad: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    ScaleByAdamax: ("exp_avg", "exp_inf"),
    ScaleByNAdam: ("exp_avg", "exp_avg_sq", "mu_product"),
    ScaleByRAdam: ("exp_avg", "exp_avg_sq"),
    ScaleByRMS: ("square_avg", "grad_avg"),
    ScaleByAdagrad: ("sum",),
    ScaleByAdadelta: ("square_avg", "acc_delta"),
    ScaleByLion: ("exp_avg",),
    ScaleByRprop: ("prev", "step_size"),
    ScaleByASGD: ("ax",),
    ScaleByAdafactor: ("row_var", "col_var"),
    ScaleByMuon: ("momentum_buffer",),
    ScaleByTrustRatio: (),
    ScaleByLARS: (),
}
# What torch.optim keeps although it follows from the rest, and what it calls otherwise: Adafactor's
# moments of vectors, beside which ours are nothing.
_REDUNDANT, _ALIASES, _NOTHING = {"eta", "mu"}, {"variance": "row_var"}, {"col_var"}
_FIELDS = {"counts": "step", "trace": "momentum_buffer"}
# None of these drops an update, so in a chain of them all counts are the same.
_KNOWN = {
    *_SLOTS,
    *(Trace, Scale, ScaleByLearningRate, AddDecayedWeights, Clip, ClipByGlobalNorm, AdaptiveClip),
}


@dataclass(frozen=True)
class Layout:
    """How the state of a transform is put together from rows.

    What torch.optim remembers too goes by torch.optim's names, so that either can go on from
    the other's state. All else goes by its path in the state.

    Attributes:
        spec: The state's structure, where what is like the parameters counts as a leaf.
        names: Of each such leaf, its name in the rows, or among what is shared.
        columns: Whether it is in the rows.
    """

    spec: TreeSpec
    names: tuple[str, ...]
    columns: tuple[bool, ...]

    def rows(self, state: Any, like: Any) -> tuple[list[Row], Row]:
        """Take a state apart: a row for each parameter, and what is not of one parameter."""
        rows, shared = [{} for _ in like], {}
        leaves = self.spec.flatten_up_to(state)
        for leaf, name, column in zip(leaves, self.names, self.columns, strict=True):
            if not column:
                shared[name] = leaf
                continue
            values = leaf.values() if isinstance(leaf, Mapping) else leaf
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return rows, shared

    def state(self, rows: list[Row], shared: Row, like: Any) -> Any:
        """Put a state together."""

        def leaf(name: str, column: bool) -> Any:
            if not column:
                return shared[name]
            values = [row[name] for row in rows]
            return dict(zip(like, values, strict=True)) if isinstance(like, Mapping) else values

        return tree_unflatten(self.spec, list(map(leaf, self.names, self.columns)))


def start(tx: Transform, params: Params) -> tuple[Layout, list[Row], Row]:
    """Return how the state of a transform is made up, and what is in it before the first step.

    Args:
        tx: Any transform.
        params: List of the parameters, or dict of them by name.
    """

    def is_column(node: Any) -> bool:
        if type(node) is not type(params) or len(node) != len(params):
            return False
        return not isinstance(params, Mapping) or list(node) == list(params)

    with torch.no_grad():
        state = tx.init(params)
    paths, leaves, spec = tree_flatten_with_path(state, is_leaf=is_column)
    columns = tuple(map(is_column, leaves))
    names = [".".join(map(str, path)) for path in paths]
    known = [_torch_name(tx, path) for path in paths] if _is_known(tx) else names
    slots = [name for name in known if name != "step"]
    form = Layout(spec, tuple(known if len({*slots}) == len(slots) else names), columns)
    return form, *form.rows(state, params)


def resumed(fresh: list[Row], shared: Row, rows: Sequence[Row]) -> tuple[list[Row], Row]:
    """What is in a state before the first step, replaced by what is known in `rows`.

    What is new is copied, because a transform may begin with one tensor in several places.
    """

    def pick(new: Row, old: Row) -> Row:
        return {name: old[name] if name in old else _own(new[name]) for name in new}

    steps = [row["step"] for row in rows if "step" in row]
    known = {"step": max(steps)} if steps and "step" in shared else {}
    return list(map(pick, fresh, rows)), {**shared, **known}


def loaded(row: Mapping[str, Any], fresh: Row, where: str) -> Row:
    """A copy of a row from elsewhere, in the form of a new one; empty if there is nothing in it.

    Raises:
        ValueError: If it is not of the same kind of optimizer, or of another shape.
    """
    own = {
        _ALIASES.get(name, name): value
        for name, value in row.items()
        if value is not None and name not in _REDUNDANT
    }
    if not own:
        return {}
    own = {**{name: fresh[name] for name in _NOTHING & fresh.keys()}, **own}
    expected = {name for name, value in fresh.items() if value is not None} - {"step"}
    if not expected <= own.keys() <= fresh.keys() | {"step"}:
        raise ValueError(
            f"The state of {where} has {sorted(own)}, but the optimizer remembers {sorted(fresh)}. "
            "Give what an optimizer of the same kind and with the same flags remembers."
        )
    step = own.pop("step", 1)  # SGD does not count, and has no momentum before its first step
    values = {
        name: _copied(value, fresh[name], f"`{name}` of {where}") for name, value in own.items()
    }
    return {"step": int(step), **values} if "step" in fresh else values


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copied(value: Any, fresh: Any, what: str) -> Any:
    if not isinstance(fresh, Tensor):
        return _own(value)
    if not isinstance(value, Tensor) or value.shape != fresh.shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{what} must have shape {tuple(fresh.shape)}, got {found}. Give the state of these "
            "very parameters."
        )
    return value.detach().to(device=fresh.device, dtype=fresh.dtype, copy=True)


def _is_known(tx: Transform) -> bool:
    return all(type(part) in _KNOWN for part in _flat(tx))


def _flat(tx: Transform) -> Iterator[Transform]:
    for part in tx.transforms if isinstance(tx, Chain) else ():
        yield from _flat(part)
    if not isinstance(tx, Chain):
        yield tx


def _torch_name(tx: Transform, path: tuple[Any, ...]) -> str:
    while isinstance(tx, Chain):
        tx, path = tx.transforms[path[0]], path[1:]
    return _SLOTS[type(tx)][path[1]] if path[0] == "slots" else _FIELDS.get(path[0], str(path[0]))

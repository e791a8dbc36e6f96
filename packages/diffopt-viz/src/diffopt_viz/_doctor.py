"""Which parameters get no gradient, and where the way from them to the outputs stops."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffopt_viz._names import named_tensors
from diffopt_viz._walk import Function, hold, reach, slot_of, users, walk
from diffopt_viz._watch import Call, Place, Value, watch

ADVICE = {
    "no requires_grad": "it does not require grad; call `.requires_grad_()` before it is used",
    "detach": "`detach` cut the graph; leave it out where the gradient should pass",
    "data": "`.data` gives the values without their history; use the tensor itself",
    "no_grad": "the operation ran under `torch.no_grad()`; move it out of the block",
    "inference_mode": "the operation ran under `torch.inference_mode()`; move it out of the block",
    "first order": "`torch.autograd.grad` was called without `create_graph=True`, so the "
    "gradients it gave are constants (a first-order approximation)",
    "backward": "`.grad` was filled by `backward()` without `create_graph=True`, so it is a "
    "constant; use `torch.autograd.grad(..., create_graph=True)`",
    "integer cast": "the result is of an integer or boolean type, through which no gradient "
    "passes; keep it floating-point, or use a relaxation or a straight-through estimator",
    "in-place rewrite": "the result was written into a tensor whose history autograd does not "
    "follow (a leaf, a buffer, `.data`); make a new tensor instead, and pass it on",
    "fresh leaf": "the values were copied into a new leaf (deepcopy, `nn.Parameter`, "
    "`torch.tensor`); use `.clone()`, and functional calls for modules",
    "not differentiable": "the operation has no derivative; replace it by one that has",
    "item": "numbers were taken out of torch (`.item()`, `.tolist()`, `.numpy()`, `float()`), "
    "and what is computed from them has no history; compute on tensors throughout",
    "other process": "the graph goes on in another process (torch.distributed.rpc), where "
    "`torch.autograd` does not follow; use `torch.distributed.autograd`, or "
    "`diffopt_dist.parallelize`",
    "unused": "the outputs were not computed from it",
    "wrong parameter": "the outputs were computed from another tensor of the same shape and "
    "type instead: was the module copied, or its parameter replaced? Name the tensor in use",
    "unknown": "there is no path in the graph; run the forward pass under `with watch() as "
    "seen:` and give `seen` to learn the line",
}


COPIES = {"tensor", "as_tensor", "__deepcopy__"}


@dataclass(frozen=True)
class Broken:
    """A parameter that gets no gradient.

    Attributes:
        name: The parameter.
        reason: One of ``"no requires_grad"``, ``"detach"``, ``"data"``, ``"no_grad"``,
            ``"inference_mode"``, ``"first order"``, ``"backward"``, ``"integer cast"``,
            ``"in-place rewrite"``, ``"fresh leaf"``, ``"not differentiable"``, ``"item"``,
            ``"other process"``, ``"unused"``, ``"wrong parameter"``, ``"unknown"``.
        operation: The operation at which the way stops, if one was seen.
        place: The line of the program that ran it, if one was seen.
        others: Further lines at which other ways stop.
    """

    name: str
    reason: str
    operation: str | None = None
    place: Place | None = None
    others: tuple[Place, ...] = ()

    def __str__(self) -> str:
        where = f"\n    stops at `{self.operation}`" if self.operation else ""
        where += f", {self.place}" if self.place else ""
        also = "".join(f"\n    and at {place}" for place in self.others)
        return f"{self.name} gets no gradient: {ADVICE[self.reason]}.{where}{also}"


def find_broken(outputs: Any, params: Any, seen: watch | None = None) -> list[Broken]:
    """Name each parameter that gets no gradient from the outputs, and say where it is lost.

    Args:
        outputs: A tensor, or modules, mappings and sequences of tensors: the meta-loss, say.
        params: The tensors that should get gradients, in the same forms as `build_graph`
            takes; leaves or not.
        seen: The record of the computation of `outputs`. Without it the answer is which
            parameters, and only those causes that the graph itself shows.

    Returns:
        One entry a broken parameter, in the order of `params`; printed, an entry is a sentence
        with file, line and advice. A parameter whose gradient exists and is zero is not
        broken; `build_graph(..., gradients=True)` marks it.

    Raises:
        ValueError: If there is no tensor among the outputs, or among the parameters.

    Example:
        >>> import torch
        >>> from diffopt_viz import find_broken, watch
        >>> w = torch.ones(2, requires_grad=True)
        >>> with watch() as seen:
        ...     loss = torch.tensor(w.sum().item(), requires_grad=True)
        >>> find_broken(loss, {"w": w}, seen)[0].reason
        'item'
    """
    targets = [tensor for _, tensor in named_tensors(outputs)]
    wanted = list(named_tensors(params))
    for what, found in (("outputs", targets), ("params", wanted)):
        if not found:
            raise ValueError(
                f"`{what}` hold no tensor. Give a tensor, a module, or a tree of them."
            )
    inputs = walk(slot_of(tensor)[0] for tensor in targets if tensor.requires_grad)
    broken = []
    for name, param in wanted:
        if not param.requires_grad:
            broken.append(Broken(name, "no requires_grad"))
        elif slot_of(param)[0] not in inputs:
            broken.append(_explain(name, param, targets, wanted, inputs, seen))
    hold(list(inputs))
    return broken


def _explain(
    name: str,
    param: Tensor,
    targets: list[Tensor],
    wanted: list[tuple[str, Tensor]],
    inputs: dict[Function, list[Function]],
    seen: watch | None,
) -> Broken:
    cuts = [] if seen is None else _Trail(seen, param, targets).cuts()
    if cuts:
        (reason, call), *rest = cuts
        places = dict.fromkeys(c.place for _, c in rest if c.place and c.place != call.place)
        return Broken(name, reason, call.name, call.place, tuple(places))
    if any("RpcBackward" in function.name() for function in inputs):
        return Broken(name, "other process", "rpc")
    strangers = _strangers(wanted, inputs)
    alike = [f for f in strangers if _kind_of(f.variable) == _kind_of(param)]
    if strangers and _rpc_is_in_use():  # what a remote call returns is a leaf
        return Broken(name, "other process", *_first_use(strangers, seen))
    if alike:
        return Broken(name, "wrong parameter", *_first_use(alike, seen))
    return Broken(name, "unknown" if seen is None else "unused")


def _strangers(
    wanted: Sequence[tuple[str, Tensor]], inputs: dict[Function, list[Function]]
) -> list[Function]:
    """The leaves that the outputs do reach and that are not among the parameters."""
    given = {id(tensor) for _, tensor in wanted}
    leaves = [function for function in inputs if hasattr(function, "variable")]
    return [leaf for leaf in leaves if id(leaf.variable) not in given]


def _kind_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _rpc_is_in_use() -> bool:
    rpc = sys.modules.get("torch.distributed.rpc")
    return rpc is not None and rpc.is_available() and rpc._is_current_rpc_agent_set()


def _first_use(leaves: list[Function], seen: watch | None) -> tuple[str | None, Place | None]:
    """The first call that took one of the leaves."""
    values = [] if seen is None else seen.values
    theirs = {i for i, v in enumerate(values) if v.slot is not None and v.slot[0] in leaves}
    for call in [] if seen is None else seen.calls:
        if not theirs.isdisjoint(call.inputs):
            return call.name, call.place
    return None, None


class _Trail:
    """The values that depend on a parameter, and those of them that autograd knows to."""

    def __init__(self, seen: watch, param: Tensor, targets: list[Tensor]) -> None:
        self.seen, values = seen, seen.values
        self.follow: dict[int, list[int]] = {}
        for index, value in enumerate(values):
            for source in value.sources:
                self.follow.setdefault(source, []).append(index)
        graph = users(walk((v.slot[0] for v in values if v.slot is not None), seen.custom))
        known = reach([slot_of(param)[0]], graph)
        self.carries = {
            i for i, v in enumerate(values) if v.slot is not None and v.slot[0] in known
        }
        self.after = reach(sorted(self.carries), self.follow)
        self.ends = [seen.value_of(tensor) for tensor in targets]
        self.sources = {index: list(value.sources) for index, value in enumerate(values)}

    def cuts(self) -> list[tuple[str, Call]]:
        """Calls at which the gradient's way to the outputs ends, or numbers left torch."""
        found = self._cuts_before(self.ends)
        if not found:
            leaks = {i: call for i, call in enumerate(self.seen.calls) if self._leaks(call)}
            read = [index for call in leaks.values() for index in call.inputs]
            # What was read may have lost the gradient on a line before, as `lr.detach()` has.
            found = self._cuts_before([index for index in read if index in self.after])
            lines = {self.seen.calls[i].place for i in found}
            leaks = {i: "item" for i, call in leaks.items() if not found or call.place in lines}
            found = leaks or found
        return [(found[index], self.seen.calls[index]) for index in sorted(found)]

    def _cuts_before(self, ends: list[int]) -> dict[int, str]:
        """The calls at which the gradient's way to some values ends, and why."""
        found: dict[int, str] = {}
        between = self.after.keys() & reach(ends, self.sources).keys()
        goes_on: set[int] = set()  # some value made of it, or itself, has the gradient
        for index in sorted(between, reverse=True):
            later = between.intersection(self.follow.get(index, ()))
            if index in self.carries or not goes_on.isdisjoint(later):
                goes_on.add(index)
            elif not self.carries.isdisjoint(self.seen.values[index].sources):
                found.update(self._cut_at(index))
        return found

    def _leaks(self, call: Call) -> bool:
        return call.leak and not self.after.keys().isdisjoint(call.inputs)

    def _cut_at(self, index: int) -> dict[int, str]:
        """The call that made a value without the gradient of its sources, and why."""
        value = self.seen.values[index]
        if value.call is not None:
            return {value.call: _reason(value, self.seen.calls[value.call])}
        # Made on known memory by what cannot be watched; its use is the first that was seen.
        why = "data" if value.slot is None else "fresh leaf"
        uses = [i for i, call in enumerate(self.seen.calls) if index in call.inputs]
        return dict.fromkeys(uses[:1], why)


def _reason(value: Value, call: Call) -> str:
    named = {"detach": "detach", "detach_": "detach", "grad": "first order", ".grad": "backward"}
    if call.name in named:
        return named[call.name]
    if call.in_place:
        return "in-place rewrite"
    if call.name == ".data":
        return "data"
    if not value.floating:
        return "integer cast"
    if call.name in COPIES or (value.leaf and value.slot is not None):
        return "fresh leaf"
    return "not differentiable" if call.mode == "grad" else call.mode

"""Where in a module its parameters and buffers stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from torch import Tensor, nn

Kind: TypeAlias = Literal["_parameters", "_buffers"]


@dataclass(frozen=True)
class Place:
    """One attribute of one submodule that holds a tensor.

    Attributes:
        name: The full name, as `named_parameters` and `functional_call` spell it.
        owner: The submodule.
        attribute: The name within the submodule.
    """

    name: str
    owner: nn.Module
    attribute: str

    def read(self, kind: Kind) -> Tensor:
        """The tensor that stands there now."""
        return getattr(self.owner, kind)[self.attribute]

    def write(self, kind: Kind, tensor: Tensor) -> None:
        """Let another tensor stand there, also one that is no `nn.Parameter`."""
        getattr(self.owner, kind)[self.attribute] = tensor
        # Recurrent layers list their weights a second time, for cuDNN.
        if isinstance(self.owner, nn.RNNBase) and self.attribute in self.owner._flat_weights_names:
            index = self.owner._flat_weights_names.index(self.attribute)
            self.owner._flat_weights[index] = cast(nn.Parameter, tensor)


def places(module: nn.Module, kind: Kind) -> list[tuple[Tensor, list[Place]]]:
    """Each tensor of a module with all the places where it stands, which are tied.

    A submodule that occurs under several names counts once: through
    `torch.func.functional_call` it would be written twice and not be restored.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` must be an `nn.Module`, got a {type(module).__name__}: not its parameters, "
            "but the module itself."
        )
    found: dict[int, tuple[Tensor, list[Place]]] = {}
    for prefix, owner in module.named_modules():
        for attribute, tensor in getattr(owner, kind).items():
            if tensor is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                _, at = found.setdefault(id(tensor), (tensor, []))
                at.append(Place(name, owner, attribute))
    return list(found.values())


def tensors(
    module: nn.Module, kind: Kind, replicate: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """The tensors of a module by their first names."""
    return {at[0].name: replicate(tensor) for tensor, at in places(module, kind)}


def put(module: nn.Module, kind: Kind, tensors: Mapping[str, Tensor]) -> None:
    """Replace the tensors of a module, everywhere they stand, by those of their first names."""
    for _, at in places(module, kind):
        for here in at:
            here.write(kind, tensors[at[0].name])

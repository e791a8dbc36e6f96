"""Meta-learning in a few lines: MAML, first-order MAML, ANIL, Meta-SGD and Reptile.

A meta-learner is a module with a `clone` for each task. The clone adapts to the task's losses and
is called as the module. What it returns is part of the graph of the meta-learner's parameters,
which any optimizer learns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diffopt_explicit._functional_module import FunctionalModule
from diffopt_explicit._gradient import require_grad
from diffopt_explicit._inner_loop import InnerOptimizer, inner_loop
from diffopt_explicit._places import tensors
from diffopt_explicit._recipes import sgd
from diffopt_explicit._transform import Transform, check_transform
from diffopt_explicit._trees import detach


def adapt(
    module: nn.Module,
    tx: Transform | torch.optim.Optimizer,
    loss: Callable[[FunctionalModule], Tensor],
    steps: int,
    *,
    first_order: bool = False,
    track: bool = True,
) -> FunctionalModule:
    """Return a module's function with the weights that it has after some steps on a loss.

    Args:
        module: Where the weights start. It is not changed.
        tx: The inner optimizer, as in `inner_loop`.
        loss: Given the module with its present weights, returns a 0-d tensor.
        steps: How many steps to take.
        first_order: Take the inner gradients as constants.
        track: Record the graph.

    Example:
        >>> import torch
        >>> from diffopt_explicit import maml, sgd
        >>> module, x, y = torch.nn.Linear(2, 1), torch.ones(4, 2), torch.zeros(4, 1)
        >>> adapted = maml.adapt(module, sgd(0.1), lambda f: (f(x) - y).square().mean(), steps=3)
        >>> adapted(x).square().mean().backward()
        >>> module.weight.grad.shape
        torch.Size([1, 2])

    Source: Finn et al., *Model-agnostic meta-learning*, ICML 2017, algorithm 1, lines 5-6.
    """
    with inner_loop(module, tx, track=track) as (fmodule, opt):
        for _ in range(steps):
            opt.step(loss(fmodule), first_order=first_order)
    return fmodule


class Clone:
    """A meta-learner's module with weights of its own, which adapt to one task."""

    def __init__(
        self, fmodule: FunctionalModule, optimizer: InnerOptimizer, first_order: bool
    ) -> None:
        self._fmodule = fmodule
        self._optimizer = optimizer
        self._first_order = first_order

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass with the present weights."""
        return self._fmodule(*args, **kwargs)

    def adapt(self, loss: Tensor) -> None:
        """Take an inner step.

        Args:
            loss: 0-d tensor, computed by calling the clone.

        Raises:
            ValueError: If the loss is not a 0-d tensor or depends on no weight that adapts.
        """
        self._optimizer.step(loss, first_order=self._first_order)

    @property
    def params(self) -> dict[str, Tensor]:
        """The weights that adapt, by name."""
        return self._fmodule.params

    def parameters(self) -> Iterator[Tensor]:
        """The weights that adapt."""
        return self._fmodule.parameters()


class MetaLearner(nn.Module):
    """What all meta-learners have in common: a module, and clones of it.

    Attributes:
        module: The module. What the tasks have in common is learned in its parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, not adapted."""
        return self.module(*args, **kwargs)

    @abstractmethod
    def clone(self) -> Clone:
        """Return what adapts to one task, starting at the present parameters."""

    def _adapting(self) -> dict[str, Tensor]:
        params = tensors(self.module, "_parameters")
        return {name: param for name, param in params.items() if param.requires_grad}


def _clone(
    module: nn.Module,
    start: dict[str, Tensor],
    tx: Transform,
    *,
    first_order: bool = False,
    track: bool = True,
) -> Clone:
    if not start:
        raise ValueError("There is no parameter that requires grad, so nothing can adapt.")
    fmodule = FunctionalModule(module, require_grad(start), track=track)
    return Clone(fmodule, InnerOptimizer(fmodule, tx, track=track), first_order)


class ByTransform(MetaLearner):
    """A meta-learner whose clones adapt by a given transform.

    Attributes:
        tx: The transform.
    """

    def __init__(self, module: nn.Module, tx: Transform) -> None:
        super().__init__(module)
        self.tx = check_transform(tx)


class MAML(ByTransform):
    """Learn where to start, by differentiating through the adaptation.

    Args:
        module: The module to start with.
        tx: The inner optimizer.

    Example:
        >>> import torch
        >>> from diffopt_explicit import maml, sgd
        >>> learner = maml.MAML(torch.nn.Linear(2, 1), sgd(0.1))
        >>> optimizer = torch.optim.Adam(learner.parameters())
        >>> clone, x, y = learner.clone(), torch.ones(4, 2), torch.zeros(4, 1)
        >>> for _ in range(3):
        ...     clone.adapt((clone(x) - y).square().mean())
        >>> (clone(x) - y).square().mean().backward()
        >>> optimizer.step()

    Source: Finn et al., *Model-agnostic meta-learning*, ICML 2017, algorithm 1.
    """

    def clone(self) -> Clone:
        """Return a clone whose steps are differentiated through."""
        return _clone(self.module, self._adapting(), self.tx)


class FOMAML(ByTransform):
    """Learn where to start, with the inner gradients taken as constants.

    Args:
        module: The module to start with.
        tx: The inner optimizer.

    Example:
        >>> import torch
        >>> from diffopt_explicit import maml, sgd
        >>> clone = maml.FOMAML(torch.nn.Linear(2, 1), sgd(0.1)).clone()
        >>> clone.adapt(clone(torch.ones(4, 2)).square().mean())

    Source: Finn et al., *Model-agnostic meta-learning*, ICML 2017, section 5.2.
    """

    def clone(self) -> Clone:
        """Return a clone whose steps are differentiated through to first order."""
        return _clone(self.module, self._adapting(), self.tx, first_order=True)


class ANIL(ByTransform):
    """Adapt the head only, and learn the body and the head's start.

    Args:
        module: The module to start with.
        tx: The inner optimizer.
        head: The submodule that adapts, or its name.

    Raises:
        ValueError: If there is no such submodule.

    Example:
        >>> import torch
        >>> from diffopt_explicit import maml, sgd
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1))
        >>> list(maml.ANIL(module, sgd(0.1), head="1").clone().params)
        ['1.weight', '1.bias']

    Source: Raghu et al., *Rapid learning or feature reuse?*, ICLR 2020, section 4.
    """

    def __init__(self, module: nn.Module, tx: Transform, head: nn.Module | str) -> None:
        super().__init__(module, tx)
        names = [
            name
            for name, part in module.named_modules()
            if part is head or (isinstance(head, str) and name == head)
        ]
        if not names:
            raise ValueError(
                f"`head` must be a submodule of the module, or the name of one, got {head!r}; "
                f"there are {[name for name, _ in module.named_modules() if name]}."
            )
        self.head = names[0]

    def clone(self) -> Clone:
        """Return a clone whose head adapts."""
        of_head = {id(param) for param in self.module.get_submodule(self.head).parameters()}
        start = {name: p for name, p in self._adapting().items() if id(p) in of_head}
        return _clone(self.module, start, self.tx)


class MetaSGD(MetaLearner):
    """Learn where to start and, for every weight, the learning rate to adapt with.

    Args:
        module: The module to start with.
        lr: The learning rates to start with.

    Attributes:
        rates: The learning rates of the module's trainable parameters, in their order.

    Example:
        >>> import torch
        >>> from diffopt_explicit import maml
        >>> learner = maml.MetaSGD(torch.nn.Linear(2, 1), lr=0.1)
        >>> [tuple(param.shape) for param in learner.parameters()]
        [(1, 2), (1,), (1, 2), (1,)]

    Source: Li et al., *Meta-SGD: learning to learn quickly for few-shot learning*, 2017,
    algorithm 1.
    """

    def __init__(self, module: nn.Module, lr: float = 1e-2) -> None:
        super().__init__(module)
        self.rates = nn.ParameterList(
            torch.full_like(param, lr, requires_grad=False) for param in self._adapting().values()
        )

    def clone(self) -> Clone:
        """Return a clone that adapts with the present learning rates."""
        start = self._adapting()
        return _clone(self.module, start, sgd(dict(zip(start, self.rates, strict=True))))


class Reptile(ByTransform):
    """Learn where to start by moving towards where adaptation ends, without any graph.

    Args:
        module: The module to start with.
        tx: The inner optimizer.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adam, maml
        >>> learner = maml.Reptile(torch.nn.Linear(2, 1), adam(0.01))
        >>> optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)  # the step towards the ends
        >>> tasks = torch.randn(4, 3, 2)
        >>> for x in tasks:
        ...     clone = learner.clone()
        ...     for _ in range(5):
        ...         clone.adapt(clone(x).square().mean())
        ...     learner.accumulate(clone, 1 / len(tasks))
        >>> optimizer.step()

    Source: Nichol, Achiam & Schulman, *On first-order meta-learning algorithms*, 2018,
    algorithm 2.
    """

    def clone(self) -> Clone:
        """Return a clone whose steps leave no graph."""
        return _clone(self.module, detach(self._adapting()), self.tx, track=False)

    def accumulate(self, clone: Clone, weight: float = 1.0) -> None:
        """Add the way back from an adapted clone to the gradients of the module's parameters.

        Args:
            clone: One of `clone`.
            weight: The share of its task, such as one over the number of tasks.
        """
        for name, param in self._adapting().items():
            way = weight * (param.detach() - clone.params[name].detach())
            param.grad = way if param.grad is None else param.grad + way

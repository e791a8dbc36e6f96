"""Tasks to learn from: few-shot classification out of any data set, and families of functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Task(NamedTuple):
    """What to adapt to, and what to be judged by."""

    support_x: Tensor  # (support, ...)
    support_y: Tensor  # (support, ...)
    query_x: Tensor  # (query, ...)
    query_y: Tensor  # (query, ...)


class Tasks(ABC):
    """Tasks that can be drawn without end."""

    @abstractmethod
    def sample(self) -> Task:
        """Draw a task."""

    def sample_many(self, count: int) -> Task:
        """Draw several tasks, stacked along a new first dimension."""
        return stacked([self.sample() for _ in range(count)])

    def __iter__(self) -> Iterator[Task]:
        """Draw tasks without end."""
        while True:
            yield self.sample()


class NWayKShot(Tasks):
    """Few-shot classification tasks out of any map-style data set.

    Each task has `ways` classes in random order, labelled 0, 1, ..., with `shots` examples of
    each to learn from and as many as `queries` others to be judged by, drawn without repetition.

    Args:
        dataset: Anything with a length and items ``(input, label)``, of inputs that are tensors,
            arrays or numbers of one shape.
        ways: Classes of a task.
        shots: Examples of each class to learn from.
        queries: Examples of each class to be judged by.
        labels: The labels of all items, if they are known. Otherwise they are taken from the data
            set's ``targets`` or ``labels``, or else by looking at every item once.
        generator: Where the randomness comes from; by default, torch's own.

    Raises:
        TypeError: At `sample`, for an input that cannot be made a tensor.
        ValueError: If a number is too small, or fewer than `ways` classes have enough examples.

    Example:
        >>> import torch
        >>> from diffopt_explicit.tasks import NWayKShot
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 6)
        >>> tasks = NWayKShot(dataset, ways=3, shots=2, queries=1)
        >>> task = tasks.sample()
        >>> task.support_x.shape, task.support_y
        (torch.Size([6, 4]), tensor([0, 0, 1, 1, 2, 2]))

    Source: Vinyals et al., *Matching networks for one shot learning*, NeurIPS 2016, section 4.1.
    """

    def __init__(
        self,
        dataset: Any,
        ways: int,
        shots: int,
        queries: int = 15,
        *,
        labels: Sequence[Any] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, number in (("ways", ways), ("shots", shots), ("queries", queries)):
            least = 0 if name == "queries" else 1
            if number < least:
                raise ValueError(f"`{name}` must be at least {least}, got {number}.")
        self.dataset, self.generator = dataset, generator
        self.ways, self.shots, self.queries = ways, shots, queries
        found = _labels(dataset) if labels is None else labels
        if len(found) != len(dataset):
            raise ValueError(f"There are {len(found)} labels for {len(dataset)} items.")
        self.classes = _large_enough(found, shots + queries)
        if len(self.classes) < ways:
            raise ValueError(
                f"A task of {ways} ways needs as many classes of {shots + queries} examples or "
                f"more, but there are {len(self.classes)}. Ask for fewer ways, shots or queries."
            )

    def sample(self) -> Task:
        """Draw a task."""
        chosen = self._shuffled(len(self.classes))[: self.ways]
        support: list[int] = []
        query: list[int] = []
        for which in chosen:
            members = self.classes[which]
            order = [members[i] for i in self._shuffled(len(members))[: self.shots + self.queries]]
            support += order[: self.shots]
            query += order[self.shots :]
        return Task(
            *(self._inputs(support), torch.arange(self.ways).repeat_interleave(self.shots)),
            *(self._inputs(query), torch.arange(self.ways).repeat_interleave(self.queries)),
        )

    def _shuffled(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self.generator).tolist()

    def _inputs(self, indices: list[int]) -> Tensor:
        if not indices:
            return self._input(0)[None][:0]
        return torch.stack([self._input(index) for index in indices])

    def _input(self, index: int) -> Tensor:
        value = self.dataset[index][0]
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"Inputs must be tensors, arrays or numbers, but item {index} of the data set has "
                f"a {type(value).__name__}. Let the data set transform it, as by `ToTensor`."
            ) from error


@dataclass(frozen=True)
class Sinusoid(Tasks):
    """Regression tasks: sine waves of random amplitude and phase.

    ``y = a sin(x - b)``, with ``a`` uniform in [0.1, 5], ``b`` in [0, pi] and ``x`` in [-5, 5].

    Attributes:
        shots: Points to learn from.
        queries: Points to be judged by.
        noise: Standard deviation of the noise in the points to learn from.
        generator: Where the randomness comes from; by default, torch's own.

    Example:
        >>> from diffopt_explicit.tasks import Sinusoid
        >>> task = Sinusoid(shots=10).sample()
        >>> task.support_x.shape, task.query_y.shape
        (torch.Size([10, 1]), torch.Size([100, 1]))

    Source: Finn et al., *Model-agnostic meta-learning*, ICML 2017, section 5.1.
    """

    shots: int = 10
    queries: int = 100
    noise: float = 0.0
    generator: torch.Generator | None = field(default=None, compare=False)

    def sample(self) -> Task:
        """Draw a task."""
        count, draw = self.shots + self.queries, self.generator
        a, b = _uniform(draw, 0.1, 5.0), _uniform(draw, 0.0, math.pi)
        x = _uniform(draw, -5.0, 5.0, count, 1)
        return _split(x, a * torch.sin(x - b), self.shots, self.noise, self.generator)


@dataclass(frozen=True)
class Harmonic(Tasks):
    """Regression tasks: sums of two sine waves, seen through a window at a random place.

    ``y = a1 sin(w x + b1) + a2 sin(2 w x + b2)``, with ``a1``, ``a2`` standard normal, ``b1``,
    ``b2`` uniform in [0, 2 pi], ``w`` in [5, 7], and ``x`` normal around ``m`` in [-4, 4].

    Attributes:
        shots: Points to learn from.
        queries: Points to be judged by.
        noise: Standard deviation of the noise in the points to learn from.
        generator: Where the randomness comes from; by default, torch's own.

    Example:
        >>> from diffopt_explicit.tasks import Harmonic
        >>> Harmonic(shots=5, queries=20).sample_many(8).query_x.shape
        torch.Size([8, 20, 1])

    Source: Lacoste et al., *Uncertainty in multitask transfer learning*, 2018.
    """

    shots: int = 10
    queries: int = 100
    noise: float = 0.0
    generator: torch.Generator | None = field(default=None, compare=False)

    def sample(self) -> Task:
        """Draw a task."""
        count, draw = self.shots + self.queries, self.generator
        a1, a2 = torch.randn(2, generator=draw)
        b1, b2 = _uniform(draw, 0.0, 2 * math.pi, 2)
        w, m = _uniform(draw, 5.0, 7.0), _uniform(draw, -4.0, 4.0)
        x = m + torch.randn(count, 1, generator=draw)
        y = a1 * torch.sin(w * x + b1) + a2 * torch.sin(2 * w * x + b2)
        return _split(x, y, self.shots, self.noise, self.generator)


def stacked(tasks: Sequence[Task]) -> Task:
    """Stack tasks of equal shapes along a new first dimension, for `torch.func.vmap`.

    Example:
        >>> from diffopt_explicit.tasks import Sinusoid, stacked
        >>> stacked([Sinusoid(shots=3).sample() for _ in range(2)]).support_x.shape
        torch.Size([2, 3, 1])
    """
    return Task(*(torch.stack(parts) for parts in zip(*tasks, strict=True)))


def _uniform(generator: torch.Generator | None, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _split(
    x: Tensor, y: Tensor, shots: int, noise: float, generator: torch.Generator | None
) -> Task:
    seen = y[:shots] + noise * torch.randn(y[:shots].shape, generator=generator)
    return Task(x[:shots], seen, x[shots:], y[shots:])


def _labels(dataset: Any) -> Sequence[Any]:
    for name in ("targets", "labels"):
        known = getattr(dataset, name, None)
        if known is not None and not callable(known):
            return known
    return [dataset[index][1] for index in range(len(dataset))]


def _large_enough(labels: Sequence[Any] | Tensor, least: int) -> list[list[int]]:
    """The items of each class with at least so many of them."""
    members: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label.item() if hasattr(label, "item") else label, []).append(index)
    return [indices for indices in members.values() if len(indices) >= least]

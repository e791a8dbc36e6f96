"""Few-shot tasks of handwritten digits, and a network for them: what several examples share.

From tasks made of the digits 0-4 a meta-learner learns where to begin, so that one image a class
suffices to tell apart the digits 5-9, which it has never seen. Each image lies at a random place
of a larger canvas, so that pixels cannot be compared one by one; turned and mirrored, the five
digits to learn from make forty classes. Data: scikit-learn's digits, 1,797 images of 8x8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from diffopt_explicit import maml
from diffopt_explicit.tasks import NWayKShot, Task
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

WAYS, SHOTS, QUERIES, TASKS_PER_STEP = 5, 1, 10, 3
INNER_STEPS = 5
CANVAS = 12  # pixels; the images have 8

Function = Callable[[Tensor], Tensor]
Adapt = Callable[[Task], Function]
"""From a task to what the network is after it has adapted to it."""
Curve = list[tuple[int, float]]


def digit_tasks(digits: range, symmetries: int, seed: int) -> NWayKShot:
    """Tasks of some digits, at random places; turned and mirrored ones are other classes."""
    pixels, targets = load_digits(return_X_y=True)
    labels = torch.tensor(targets)
    chosen = (labels >= digits.start) & (labels < digits.stop)
    own = torch.tensor(pixels, dtype=torch.float32)[chosen].view(-1, 8, 8) / 16
    turned = [torch.rot90(own, turn, (1, 2)) for turn in range(4)]
    images = torch.cat([*turned, *(images.flip(2) for images in turned)][:symmetries])
    classes = torch.cat([labels[chosen] + 10 * symmetry for symmetry in range(symmetries)])
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(len(images), 1, CANVAS, CANVAS)
    places = torch.randint(CANVAS - 7, (len(images), 2), generator=generator)
    rows, columns = (places[:, axis, None] + torch.arange(8) for axis in range(2))
    canvas[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None]] = images
    data = TensorDataset(canvas, classes)
    return NWayKShot(data, WAYS, SHOTS, QUERIES, labels=classes, generator=generator)


def network() -> nn.Module:
    """Two convolutions and a linear layer, the same at first for all."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, WAYS)),
    )


def adapted(learner: maml.MetaLearner, task: Task) -> Function:
    """The network after some steps on a task, as a function of what is learned."""
    clone = learner.clone()
    for _ in range(INNER_STEPS):
        clone.adapt(cross_entropy(clone(task.support_x), task.support_y))
    return clone


def accuracy(adapt: Adapt, tasks: list[Task]) -> float:
    """The share of images read right, after adaptation."""
    hits = []
    for task in tasks:
        guesses = adapt(task)(task.query_x).argmax(1)
        hits.append((guesses == task.query_y).float().mean().item())
    return sum(hits) / len(hits)


def meta_learn(
    adapt: Adapt, optimizer: torch.optim.Optimizer, name: str, steps: int, judged: list[Task]
) -> Curve:
    """Learn what the optimizer holds on the digits 0-4; return the accuracy on other tasks."""
    tasks = digit_tasks(range(5), symmetries=8, seed=0)
    curve = [(0, accuracy(adapt, judged))]
    with tqdm(range(1, steps + 1), desc=name) as bar:
        for step in bar:
            optimizer.zero_grad()
            for _ in range(TASKS_PER_STEP):
                task = tasks.sample()
                loss = cross_entropy(adapt(task)(task.query_x), task.query_y)
                (loss / TASKS_PER_STEP).backward()
            optimizer.step()
            if step % max(steps // 6, 1) == 0:
                curve.append((step, accuracy(adapt, judged)))
                bar.set_postfix_str(f"accuracy {curve[-1][1]:.1%}")
    return curve


def draw(curves: dict[str, Curve], path: Path, across: dict[str, float] | None = None) -> None:
    """Draw the accuracy of each way while it learned, and those that stay as lines across."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"{name}: {curve[-1][1]:.0%}")
    for style, (name, value) in zip(("--", ":"), (across or {}).items(), strict=False):
        axes.axhline(value, color="gray", linestyle=style, label=f"{name}: {value:.0%}")
    axes.axhline(1 / WAYS, color="lightgray", label="chance")
    axes.set(xlabel="meta-step", ylabel="accuracy", ylim=(0, 1))
    axes.set_title(f"{WAYS} unseen digits, {SHOTS} image each")
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

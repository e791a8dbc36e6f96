"""Which training labels are wrong, found by the gradient through a thousand steps of training.

A linear classifier is trained on 500 handwritten digits, of which half of the labels are wrong, by
1,000 steps of gradient descent with momentum. Each training image has a weight, and all weights
follow the gradient of the final loss on 100 images whose labels are right, through all 1,000
steps, by the replay adjoint. Beside it the same with the gradient through the last 20 steps alone.

Shows: `unroll` with `Replay`, weights as `meta_params`, truncation and its bias.

Expected, in a minute: with weights learned through all steps 85 % of the test images are read
right, with those learned through the last steps 87 %; trained on all images alike it is 65 %, and
on the 100 alone 85 %. The exact gradient makes the loss on the 100 images smaller, 0.10 where
truncation gets to 0.12. But 500 weights are fitted to them too well, from which truncation keeps
them, and with 500 clean images it is no different. In `learned_schedule.py` the exact one wins.

Source: Franceschi, Donini, Frasconi & Pontil, *Forward and reverse gradient-based hyperparameter
optimization*, ICML 2017, section 5.1; Shaban, Cheng, Hatch & Boots, *Truncated back-propagation for
bilevel optimization*, AISTATS 2019. Data: scikit-learn's digits, 1,797 images of 8x8 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffopt_explicit import Replay, sgd, unroll
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZES = {"train": 500, "clean": 100, "test": 1_197}
WRONG, STEPS = 0.5, 1_000
RATE, MOMENTUM, OUTER_RATE = 0.1, 0.9, 1.0
WAYS: dict[str, dict[str, Any]] = {
    "all 1,000 steps": {"adjoint": Replay()},
    "the last 20 steps": {"truncate": 20},
}

Params = list[Tensor]
Images = tuple[Tensor, Tensor]
Course = list[tuple[float, float]]  # the loss on clean images, the accuracy on test images


def digits() -> tuple[dict[str, Images], Tensor]:
    """The images in three parts, and which training labels are wrong."""
    pixels, targets = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pixels), generator=generator)
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]
    sizes = list(SIZES.values())
    parts = dict(zip(SIZES, zip(x.split(sizes), y.split(sizes), strict=True), strict=True))
    wrong = torch.rand(SIZES["train"], generator=generator) < WRONG
    shift = torch.randint(1, 10, wrong.shape, generator=generator)
    images, labels = parts["train"]
    parts["train"] = images, (labels + wrong * shift) % 10
    return parts, wrong


def logits(params: Params, images: Tensor) -> Tensor:
    """A linear classifier: (images, 10)."""
    return torch.addmm(params[1], images, params[0])


def losses(params: Params, images: Images) -> Tensor:
    """The loss of each image."""
    return cross_entropy(logits(params, images[0]), images[1], reduction="none")


def train(images: Images, weights: Tensor, **options: Any) -> Params:
    """The network after a thousand steps, as a function of the weights of its training images."""
    loss = lambda params, weights: (weights * losses(params, images)).mean()  # noqa: E731
    optimizer = sgd(RATE, momentum=MOMENTUM)
    start = [torch.zeros(64, 10), torch.zeros(10)]
    return unroll(loss, optimizer, start, steps=STEPS, meta_params=weights, **options).params


def accuracy(params: Params, images: Images) -> float:
    """The share of images read right."""
    return (logits(params, images[0]).argmax(1) == images[1]).float().mean().item()


def clean(parts: dict[str, Images], outer_steps: int, way: str) -> tuple[Course, Tensor]:
    """Move the weights by the gradient of the loss after training; return what became of them."""
    raw = torch.zeros(SIZES["train"], requires_grad=True)
    adam, course = torch.optim.Adam([raw], lr=OUTER_RATE), []
    for step in tqdm(range(outer_steps + 1), desc=f"through {way}"):
        params = train(parts["train"], raw.sigmoid(), **WAYS[way])
        loss = losses(params, parts["clean"]).mean()
        course.append((loss.item(), accuracy(params, parts["test"])))
        if step < outer_steps:
            adam.zero_grad()
            loss.backward()
            adam.step()
    return course, raw.sigmoid().detach()


def draw(results: dict[str, Any], rest: dict[str, float], wrong: Tensor, path: Path) -> None:
    """Draw the accuracy, and the weights of right and wrong labels."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for (way, (course, weights)), histogram in zip(results.items(), axes[1:], strict=True):
        accuracies = [accuracy for _, accuracy in course]
        axes[0].plot(accuracies, label=f"through {way}: {accuracies[-1]:.1%}")
        kept = [weights[~wrong].tolist(), weights[wrong].tolist()]
        histogram.hist(kept, bins=20, range=(0, 1), label=["right labels", "wrong labels"])
        histogram.set(xlabel="weight", ylabel="images", title=f"learned through {way}")
        histogram.legend()
    for style, (name, value) in zip((":", "--"), rest.items(), strict=True):
        axes[0].axhline(value, color="gray", linestyle=style, label=f"{name}: {value:.0%}")
    axes[0].set(xlabel="outer step", ylabel="accuracy", title="test images read right", ylim=(0, 1))
    axes[0].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Clean both ways, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 outer step: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small to share
    parts, wrong = digits()
    with torch.no_grad():
        sets = {"all alike": parts["train"], "the 100 clean ones": parts["clean"]}
        trained = {name: train(images, torch.ones(len(images[1]))) for name, images in sets.items()}
    rest = {name: accuracy(params, parts["test"]) for name, params in trained.items()}
    outer_steps = 1 if options.quick else 8
    results = {way: clean(parts, outer_steps, way) for way in WAYS}
    for name, value in rest.items():
        print(f"trained on {name}: test accuracy {value:.1%}")
    for way, (course, weights) in results.items():
        found = ((weights < 0.5) == wrong).float().mean()
        print(
            f"through {way}: clean loss {course[-1][0]:.3f}, test accuracy {course[-1][1]:.1%}",
            end="",
        )
        print(f", {found:.1%} of the labels told right from wrong")
    draw(results, rest, wrong, options.results / "hyper_cleaning.png")


if __name__ == "__main__":
    main()

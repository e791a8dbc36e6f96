"""A population whose members learn their learning rates, each at its own pace.

Members train a classifier of handwritten digits in worker processes, some steps at a time. The
worker returns the loss on held-out images as a function of the member's learning rate, whose
gradient runs back through the steps there. Whoever is done goes on at once, without waiting for the
others: it takes an outer step, or, if it is far behind the best, that one's place.

Shows: `remote_async_call` to a role, `as_completed`, trees as results, hypergradients of
asynchronous tasks.

Expected, in half a minute: rates that differ by a factor of 300 at first come together, within a
factor of 3, and all members read 95 % of the test images right.

Source: Jaderberg et al., *Population based training of neural networks*, 2017, section 3; the outer
steps are gradients instead of random perturbations. Data: scikit-learn's digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffopt_dist import Future, as_completed, get_role, launch, remote_async_call
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

FIRST_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
INNER_STEPS, BATCH, TURNS, OUTER_RATE, BEHIND = 10, 64, 20, 0.3, 0.3

Images = tuple[Tensor, Tensor]
Member = dict[str, Any]


def digits(generator: torch.Generator) -> list[Images]:
    """Images to train on, to learn the rates on, and to test on."""
    pixels, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=generator)
    images, labels = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(targets)
    return list(
        zip(images.split([800, 400, 597]), labels[order].split([800, 400, 597]), strict=True)
    )


def logits(params: list[Tensor], images: Tensor) -> Tensor:
    """A hidden layer of 32 units."""
    return torch.tanh(images @ params[0]) @ params[1]


def train(
    params: list[Tensor], log_rate: Tensor, train: Images, held_out: Images
) -> tuple[Tensor, list[Tensor]]:
    """Take inner steps; return the loss on held-out images, differentiable, and the weights."""
    params = [param.clone().requires_grad_() for param in params]
    for _ in range(INNER_STEPS):
        batch = torch.randint(len(train[1]), (BATCH,))
        loss = cross_entropy(logits(params, train[0][batch]), train[1][batch])
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        params = [p - log_rate.exp() * g for p, g in zip(params, gradients, strict=True)]
    loss = cross_entropy(logits(params, held_out[0]), held_out[1])
    return loss, [param.detach() for param in params]


def evolve(turns: int) -> list[Member]:
    """Let every member take its turns; return them with what they went through."""
    torch.manual_seed(0)
    train_on, learn_on, test_on = digits(torch.default_generator)
    start = [torch.randn(64, 32) / 8, torch.randn(32, 10) / 6]
    members: list[Member] = [
        {"params": start, "log_rate": torch.tensor(r).log(), "loss": 9.0, "rates": [], "turns": 0}
        for r in FIRST_RATES
    ]
    running: dict[Future, Member] = {}

    def begin(member: Member) -> None:
        member["log_rate"] = member["log_rate"].detach().requires_grad_()
        arguments = member["params"], member["log_rate"], train_on, learn_on
        running[remote_async_call(train, arguments, to="trainer", retries=1)] = member

    for member in members:
        begin(member)
    with tqdm(total=turns * len(members)) as bar:
        while running:
            future = next(as_completed(running))
            member = running.pop(future)
            loss, member["params"] = future.wait()
            (g,) = torch.autograd.grad(loss, member["log_rate"])
            member["loss"], member["turns"] = loss.item(), member["turns"] + 1
            member["rates"].append(member["log_rate"].exp().item())
            best = min(members, key=lambda other: other["loss"])
            if member["loss"] > best["loss"] + BEHIND and best["turns"] > 2:
                member.update(params=best["params"], log_rate=best["log_rate"])
            else:
                member["log_rate"] = member["log_rate"].detach() - OUTER_RATE * g.sign()
            bar.update()
            if member["turns"] < turns:
                begin(member)
    for member in members:
        guesses = logits(member["params"], test_on[0]).argmax(1)
        member["accuracy"] = (guesses == test_on[1]).float().mean().item()
    return members


def main() -> None:
    """Let a population learn, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 turns: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    turns = 5 if options.quick else TURNS

    def control() -> list[Member] | None:
        return evolve(turns) if get_role() is None else None  # a trainer answers calls

    members = launch(control, 3, roles={"trainer": [1, 2]})[0]
    figure, axes = plt.subplots()
    for first, member in zip(FIRST_RATES, members, strict=True):
        accuracy, last = member["accuracy"], member["rates"][-1]
        print(f"rate {first} -> {last:.2f}: test accuracy {accuracy:.1%}")
        axes.semilogy(member["rates"], label=f"{first}: {accuracy:.1%}")
    axes.set(xlabel="turn", ylabel="learning rate")
    axes.legend(title="first rate: test accuracy")
    options.results.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.results / "population_distributed.png", dpi=120)


if __name__ == "__main__":
    main()

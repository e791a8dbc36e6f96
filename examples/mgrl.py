"""A discount learned by meta-gradients, where the best one is known.

An agent walks along a corridor. At its left end is a prize of 1, at its right end one of 3, and the
game may stop before: after each round, with a chance of one in ten. What the agent maximizes knows
nothing of this chance; it has a discount instead. With too small a discount it runs for the prize
that is near, with too large a one for that which is large, from where it is seldom reached. It
should go right from all cells but the four that are nearest to the left end, and will if its
discount is between (1/3)^(1/10) = 0.896 and (1/3)^(1/12) = 0.913.

The agent trains by policy gradient for 60 steps. The discount follows the gradient, through all of
these steps, of what the agent then wins in games that may stop.

Shows: `unroll` of policy-gradient steps, whose objective has a parameter that is learned.

Expected, in half a minute: from 0.6 and from 0.97 the discount goes to 0.915, a little above what
is best for an agent that has trained to the end. With it the agent wins 1.430 on average, where the
best policy wins 1.435, and the discounts at first lead to 1.337 and 1.362.

Source: Xu, van Hasselt & Silver, *Meta-gradient reinforcement learning*, NeurIPS 2018, section 2;
here with exact returns, and through more than one step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from diffopt_explicit import sgd, unroll
from torch import Tensor
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

CELLS = 19  # between the ends
LEFT, RIGHT = 1.0, 3.0
GOES_ON = 0.9  # the chance, in each round
STEPS, RATE, OUTER_RATE = 60, 60.0, 0.15
FIRST = (0.6, 0.97)
BAND = (LEFT / RIGHT) ** (1 / 10), (LEFT / RIGHT) ** (1 / 12)


def mean_return(logits: Tensor, discount: Tensor | float) -> Tensor:
    """The discounted prize on average over cells to start in, by the logits of going right."""
    right = logits.sigmoid()
    step = torch.diag(right[:-1], 1) + torch.diag(1 - right[1:], -1)
    prize = torch.cat([LEFT * (1 - right[:1]), torch.zeros(CELLS - 2), RIGHT * right[-1:]])
    return torch.linalg.solve(torch.eye(CELLS) - discount * step, prize).mean()


def trained(discount: Tensor | float) -> Tensor:
    """The policy of an agent that maximizes the return with a discount."""
    tx, start = sgd(RATE, maximize=True), torch.zeros(CELLS)
    return unroll(lambda p: mean_return(p, discount), tx, start, steps=STEPS).params


def learn(first: float, meta_steps: int) -> tuple[list[float], list[float]]:
    """Learn the discount; return it and what the agents won, after each meta-step."""
    logit = torch.tensor(first).logit().requires_grad_()
    adam = torch.optim.Adam([logit], lr=OUTER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, meta_steps)
    discounts, won = [], []
    with tqdm(range(meta_steps), desc=f"from a discount of {first}") as bar:
        for _ in bar:
            judged = mean_return(trained(logit.sigmoid()), GOES_ON)
            discounts.append(logit.sigmoid().item())
            won.append(judged.item())
            bar.set_postfix_str(f"{discounts[-1]:.3f}")
            adam.zero_grad()
            (-judged).backward()
            adam.step()
            schedule.step()
    return discounts, won


def draw(courses: dict[float, tuple[list[float], list[float]]], path: Path) -> None:
    """Draw the discounts while learned, and what agents win with any of them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    discounts = torch.linspace(0.55, 0.99, 12).tolist()
    with torch.no_grad():
        won = [mean_return(trained(discount), GOES_ON).item() for discount in discounts]
    right.plot(discounts, won, color="gray", label="fixed")
    for first, (course, won) in courses.items():
        left.plot(course, label=f"from {first}: {course[-1]:.3f}")
        right.plot(course[-1:], won[-1:], "o", label=f"learned from {first}: {won[-1]:.3f}")
    left.axhspan(*BAND, color="gold", alpha=0.4, label="in theory best")
    right.axvspan(*BAND, color="gold", alpha=0.4)
    left.set(xlabel="meta-step", ylabel="discount", title="while it is learned")
    right.set(xlabel="discount", ylabel="prize", title="what a trained agent wins")
    left.legend()
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Learn from two sides, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    courses = {first: learn(first, 8 if options.quick else 60) for first in FIRST}
    for discounts, won in courses.values():
        print(f"discount {discounts[0]:.3f} -> {discounts[-1]:.3f}", end=", ")
        print(f"prize {won[0]:.3f} -> {won[-1]:.3f}")
    draw(courses, options.results / "mgrl.png")


if __name__ == "__main__":
    main()

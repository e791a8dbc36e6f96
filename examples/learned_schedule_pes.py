"""A learning-rate schedule learned by persistent evolution strategies, where truncation misleads.

A hundred steps of gradient descent minimize a function of two variables that is steep along one
and has bumps on the way along the other. The learning rate goes geometrically from a first to a
last value, both of which are learned, so that the sum of the hundred losses is small. Two ways to
do so look at ten steps at a time. The gradient through these ten steps knows nothing of what they
mean for those that follow. Persistent evolution strategies remember what all perturbations so far
have done, and follow the whole. With two numbers to learn, the whole can be drawn.

Shows: `PersistentES`, vectorized; `unroll` cut after each ten steps; `sgd` with a learned schedule.

Expected, in half a minute: from a sum of 1,659, with a constant rate of e, the truncated gradients
lead to 1,975, by rates of about 2, and persistent evolution strategies to 410, by a rate that falls
from 35 to 0.1. Two things help them: they are not biased by truncation, and they see the loss
smoothed, over bumps in which any gradient points up or down by chance.

Source: Vicol, Metz & Sohl-Dickstein, *Unbiased gradient estimation in unrolled computation graphs
with persistent evolution strategies*, ICML 2021, section 5.1 (the 2D toy regression).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffopt_explicit import sgd, unroll
from diffopt_zeroorder import PersistentES
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

TRUNCATION, HORIZON = 10, 10  # steps, and truncations of an episode
PAIRS, SIGMA, OUTER_RATE = 100, 0.3, 0.03
FIRST = torch.tensor([1.0, 1.0])  # logarithms of the rates
START = torch.tensor([1.0, 1.0])


def loss(x: Tensor) -> Tensor:
    """What the inner loop minimizes: least at (0, 100)."""
    steep, bumps = x.unbind(-1)
    bowl = (steep.square() + 5).sqrt() - 5**0.5
    return bowl + bumps.sin().square() * (-5 * steep.square()).exp() + 0.25 * (bumps - 100).abs()


def steps(log_rates: Tensor, x: Tensor, truncation: Any) -> tuple[Tensor, Tensor]:
    """Take ten steps, and return where they lead and the sum of their losses."""
    places = (truncation * TRUNCATION + torch.arange(TRUNCATION)) / (TRUNCATION * HORIZON)
    rates = (log_rates[0] * (1 - places) + log_rates[1] * places).exp()
    done = unroll(loss, sgd(lambda step: rates[step]), x, steps=TRUNCATION)
    return done.params, done.losses.sum()


def whole_loss(log_rates: Tensor) -> Tensor:
    """The sum of all losses."""
    x, total = START, torch.zeros(())
    for truncation in range(HORIZON):
        x, now = steps(log_rates, x, truncation)
        total = total + now
    return total


def by_persistent_es(count: int) -> list[Tensor]:
    """Follow the estimates of persistent evolution strategies; return the way."""
    es = PersistentES(
        unroll=steps,
        start=lambda generator: START,
        horizon=HORIZON,
        num_pairs=PAIRS,
        sigma=SIGMA,
        vectorized=True,
    )
    log_rates, way = FIRST.clone(), []
    adam = torch.optim.Adam([log_rates], lr=OUTER_RATE)
    state = es.init(log_rates, torch.Generator().manual_seed(0))
    for _ in tqdm(range(count), desc="persistent evolution strategies"):
        way.append(log_rates.clone())
        log_rates.grad, state, _ = es.estimate(log_rates, state)
        adam.step()
    return way


def by_truncated_gradients(count: int) -> list[Tensor]:
    """Follow the gradients through ten steps each; return the way."""
    log_rates, way, x = FIRST.clone().requires_grad_(), [], START
    adam = torch.optim.Adam([log_rates], lr=OUTER_RATE)
    for step in tqdm(range(count), desc="truncated gradients"):
        way.append(log_rates.detach().clone())
        x = START if step % HORIZON == 0 else x.detach()
        x, total = steps(log_rates, x, step % HORIZON)
        adam.zero_grad()
        total.backward()
        adam.step()
    return way


def draw(ways: dict[str, list[Tensor]], path: Path) -> None:
    """Draw the ways on the map of the whole loss, and the loss along them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    axis = torch.linspace(-3, 5, 60)
    rates = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    with torch.no_grad():
        losses = vmap(whole_loss)(rates.view(-1, 2)).view(60, 60)
        shown = left.contourf(axis, axis, losses, levels=30, cmap="viridis_r")
        for color, (name, way) in zip(("C1", "C3"), ways.items(), strict=True):
            left.plot(*torch.stack(way).T, color=color, label=name)
            left.plot(*way[-1], "o", color=color)
            every = max(len(way) // 50, 1)
            course = vmap(whole_loss)(torch.stack(way[::every]))
            right.plot(range(0, len(way), every), course, color=color, label=name)
    figure.colorbar(shown, ax=left, label="sum of the hundred losses")
    left.set(xlabel="logarithm of the first rate", ylabel="of the last rate")
    right.set(xlabel="outer step", ylabel="sum of the hundred losses", ylim=(0, None))
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Learn both ways, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    count = 100 if options.quick else 600
    ways = {
        "persistent evolution strategies": by_persistent_es(count),
        "truncated gradients": by_truncated_gradients(count),
    }
    print(f"at first: sum of losses {whole_loss(FIRST):.0f}")
    for name, way in ways.items():
        first, last = way[-1].exp().tolist()
        print(f"{name}: sum of losses {whole_loss(way[-1]):.0f}, rates {first:.2f} to {last:.2f}")
    draw(ways, options.results / "learned_schedule_pes.png")


if __name__ == "__main__":
    main()

"""Meta-learning without any derivative: ES-MAML, where the adaptation is a search.

An agent starts in the middle of a walled square, and is paid for each round that it spends within a
circle around one of the four corners; it is not told which. It adapts by trying eight random
changes of its policy, one after the other, and keeping those that pay. Neither the pay, which is a
count, nor the search has a derivative. What the search wins on average from where it begins is a
function of that beginning all the same, and evolution strategies climb it.

Shows: `zero_order`, vectorized, with antithetic directions and common random numbers.

Expected, in a quarter of a minute: eight tries lead from the learned beginning to 10.8 rounds that
are paid, of the 13 that there are for who goes straight to the right corner. From standing still
they lead to 4.6, and it takes eighty to do better, 13.0.

Source: Song, Gao, Yang, Choromanski, Pacchiano & Tang, *ES-MAML: simple Hessian-free meta
learning*, ICLR 2020, algorithm 3, section 3.3 for adaptation by hill climbing, section 4.1
for the four corners.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from diffopt_zeroorder import zero_order
from torch import Tensor
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Circle

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
RADIUS, ROUNDS, SPEED = 0.5, 16, 0.2
TRIES, CHANGE = 8, 0.3
MOST = 13  # what is paid to who goes straight to the right corner
PAIRS, SIGMA, OUTER_RATE, SEARCHES = 40, 0.1, 0.05, 4
PARAMETERS = 6


def walk(params: Tensor) -> Tensor:
    """Where policies (..., 6) go, which say the velocity at each place: (rounds, ..., 2)."""
    slope, drift = params[..., :4].unflatten(-1, (2, 2)), params[..., 4:]
    place, places = torch.zeros_like(drift), []
    for _ in range(ROUNDS):
        velocity = torch.tanh((slope * place[..., None, :]).sum(-1) + drift)
        place = (place + SPEED * velocity).clamp(-1, 1)
        places.append(place)
    return torch.stack(places)


def pay(params: Tensor) -> Tensor:
    """The rounds that are paid, for policies (..., 4, parameters): one of each task."""
    distances = (walk(params) - CORNERS).norm(dim=-1)
    return (distances < RADIUS).sum(0).float()


def adapt(params: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Keep those changes (tries, ..., 4, parameters) that pay; return policies and pay."""
    best = pay(params)
    for change in changes:
        tried = params + change
        now = pay(tried)
        params = torch.where((now > best)[..., None], tried, params)
        best = torch.maximum(best, now)
    return params, best


def search(start: Tensor, tries: int = TRIES) -> tuple[Tensor, Tensor]:
    """Adapt policies (points, parameters) to each corner: (SEARCHES, points, 4, ...) and pay."""
    changes = CHANGE * torch.randn(tries, SEARCHES, 1, 4, PARAMETERS)  # the same for all points
    return adapt(start[:, None].expand(SEARCHES, -1, 4, -1), changes)


@zero_order(num_samples=PAIRS, sigma=SIGMA, vectorized=True, common_random_numbers=True)
def pay_after_search(start: Tensor) -> Tensor:
    """Mean pay after adaptation for each of many policies to begin with."""
    return search(start)[1].mean((0, 2))


def learn(steps: int) -> tuple[Tensor, list[float]]:
    """Learn where to begin; return it, and the pay after adaptation meanwhile."""
    start = (0.3 * torch.randn(PARAMETERS)).requires_grad_()
    adam, course = torch.optim.Adam([start], lr=OUTER_RATE), []
    with tqdm(range(steps), desc="ES-MAML") as bar:
        for _ in bar:
            mean = pay_after_search(start)
            course.append(mean.item())
            bar.set_postfix_str(f"{course[-1]:.1f} rounds paid")
            adam.zero_grad()
            (-mean).backward()
            adam.step()
    return start.detach(), course


def judge(start: Tensor, tries: int) -> float:
    """Mean pay after some tries, of many searches."""
    torch.manual_seed(1)
    return torch.stack([search(start[None], tries)[1].mean() for _ in range(20)]).mean().item()


def draw(course: list[float], rest: dict[str, float], start: Tensor, path: Path) -> None:
    """Draw the pay while learning, and the ways that are tried from the learned beginning."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(course, label=f"after {TRIES} tries, learned beginning")
    for style, (name, value) in zip((":", "--"), rest.items(), strict=True):
        left.axhline(value, color="gray", linestyle=style, label=name)
    left.axhline(MOST, color="black", linewidth=0.5, label="straight to the right corner")
    left.set(xlabel="step", ylabel="rounds paid", title="mean of four corners")
    left.legend(loc="lower right", fontsize="small")
    for corner, policies in enumerate(search(start[None])[0].unbind(2)):
        way = torch.cat([torch.zeros(1, 2), walk(policies[0, 0])])
        right.plot(*way.T, marker=".", color=f"C{corner}")
        x, y = CORNERS[corner].tolist()
        right.add_patch(Circle((x, y), RADIUS, color=f"C{corner}", alpha=0.2))
    right.plot(*torch.cat([torch.zeros(1, 2), walk(start)]).T, color="black", label="before")
    right.set(title=f"where it goes after {TRIES} tries", aspect="equal")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Learn, adapt, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the policies are small
    torch.manual_seed(0)
    start, course = learn(25 if options.quick else 200)
    nowhere = torch.zeros(PARAMETERS)
    rest = {
        f"after {TRIES} tries, from standing still": judge(nowhere, TRIES),
        f"after {10 * TRIES} tries, from standing still": judge(nowhere, 10 * TRIES),
    }
    print(f"rounds paid, of at most {MOST}: learned beginning {judge(start, 0):.2f}", end=", ")
    print(f"after {TRIES} tries {judge(start, TRIES):.2f}")
    for name, value in rest.items():
        print(f"{name}: {value:.2f}")
    draw(course, rest, start, options.results / "es_maml.png")


if __name__ == "__main__":
    main()

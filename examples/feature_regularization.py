"""A penalty for each feature of a logistic regression, learned by implicit hypergradients.

Ten of a hundred features tell something about the label, the others are noise. A ridge penalty that
all features share has to choose between shrinking what counts and fitting what does not. Here each
feature has a penalty of its own, and all hundred follow the gradient of the loss on held-out
examples, through the minimum of the training loss: one linear system for each hypergradient.

A hundred penalties can be fitted to the held-out examples, as coefficients to training examples:
where most features are useful and few examples can be held out, one shared penalty is hard to beat.
The first run has 2,000 held-out examples, the second as few as there are to train on, 200.

Shows: `hypergradient` by `CG`, and `LBFGS` for the minimum, begun at the last one.

Expected, in half a minute: with 2,000 held-out examples the loss on test examples is 0.496 with the
best of seventeen shared penalties and 0.336 with those learned, 0.001 for the median informative
feature and 1.3 for the others. With 200 it is 0.517 and 0.407, and has begun to rise again.

Source: Pedregosa, *Hyperparameter optimization with approximate gradient*, ICML 2016; Bertrand et
al., *Implicit differentiation of Lasso-type models for hyperparameter optimization*, ICML 2020,
for the data: few features of many count.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from diffopt_implicit import CG, LBFGS, hypergradient
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

FEATURES, INFORMATIVE, TRAIN, TEST = 100, 10, 200, 10_000
HELD_OUT = (2_000, 200)
SHARED = torch.logspace(-4, 0, 17, dtype=torch.float64)  # among which the best is sought
OUTER_RATE = 0.2

Examples = tuple[Tensor, Tensor]


class Outcome(NamedTuple):
    """What became of one run."""

    shared: float  # test loss with the best penalty for all
    learned: list[float]  # test loss after each outer step
    log_penalties: Tensor


def data(sizes: list[int]) -> list[Examples]:
    """Draw coefficients, and examples in several parts."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(FEATURES, dtype=torch.float64)
    truth[:INFORMATIVE] = torch.randn(INFORMATIVE, generator=generator).double()
    x = torch.randn(sum(sizes), FEATURES, generator=generator).double()
    chances = torch.rand(len(x), generator=generator)
    y = (chances < torch.sigmoid(x @ truth)).double()
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def loss(w: Tensor, examples: Examples) -> Tensor:
    """The mean loss of some examples."""
    return binary_cross_entropy_with_logits(examples[0] @ w, examples[1])


def run(held_out: int, steps: int) -> Outcome:
    """Search for the best shared penalty, and go on from there with one for each feature."""
    train, judge, test = data([TRAIN, held_out, TEST])

    def training(w: Tensor, log_penalties: Tensor) -> Tensor:
        return loss(w, train) + (log_penalties.exp() * w.square()).sum() / 2

    solver = LBFGS(training, tol=1e-8, maxiter=500)
    start = torch.zeros(FEATURES, dtype=torch.float64)
    fits = [solver.run(start, penalty.log().expand(FEATURES)).params for penalty in SHARED]
    best = min(range(len(fits)), key=lambda i: loss(fits[i], judge).item())
    w, log_penalties = fits[best], SHARED[best].log().repeat(FEATURES)
    adam = torch.optim.Adam([log_penalties], lr=OUTER_RATE)
    course = [loss(w, test).item()]
    for _ in tqdm(range(steps), desc=f"{held_out} held-out examples"):
        log_penalties.grad = hypergradient(
            training, lambda w, _: loss(w, judge), w, log_penalties, CG()
        )
        adam.step()
        w = solver.run(w, log_penalties).params
        course.append(loss(w, test).item())
    return Outcome(course[0], course, log_penalties)


def draw(outcomes: dict[int, Outcome], path: Path) -> None:
    """Draw the test loss, and the penalties of the features."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for held_out, outcome in outcomes.items():
        (line,) = left.plot(outcome.learned, label=f"{held_out:,} held-out examples")
        left.axhline(outcome.shared, color=line.get_color(), linestyle=":", label="best shared")
    left.set(xlabel="outer step", ylabel="loss on test examples", title="a penalty a feature")
    penalties = outcomes[HELD_OUT[0]].log_penalties.exp()
    right.semilogy(penalties[:INFORMATIVE], "o", label="informative")
    right.semilogy(range(INFORMATIVE, FEATURES), penalties[INFORMATIVE:], ".", label="noise")
    right.set(xlabel="feature", ylabel="penalty", title=f"learned with {HELD_OUT[0]:,}")
    left.legend()
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Learn with many and with few held-out examples, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the problem is too small to share
    steps = 10 if options.quick else 60
    outcomes = {held_out: run(held_out, steps) for held_out in HELD_OUT}
    for held_out, outcome in outcomes.items():
        print(f"{held_out} held-out examples: test loss {outcome.shared:.4f} with", end=" ")
        print(f"the best shared penalty, {outcome.learned[-1]:.4f} with learned ones", end="; ")
        informative, noise = outcome.log_penalties.split([INFORMATIVE, FEATURES - INFORMATIVE])
        print(f"penalties {informative.median().exp():.4f} and {noise.median().exp():.4f} of noise")
    draw(outcomes, options.results / "feature_regularization.png")


if __name__ == "__main__":
    main()

"""Few-shot learning of handwritten digits by implicit MAML, beside MAML, on real images.

From tasks made of the digits 0-4 a small convolutional network learns where to begin, so that one
image a class suffices to tell apart the digits 5-9, which it has never seen. MAML differentiates
through the steps of its inner loop. Implicit MAML holds the network near where it began by a
penalty, trains to the minimum of that by whatever means, and differentiates the minimum; no step
on the way is kept. The means here are ten iterations of L-BFGS. They come near the minimum and not
to it, which often is at a kink of the rectified units, and five iterations of conjugate gradients
come near its derivative: the gradient is approximate, on purpose.

Shows: `ImplicitModule`, conjugate gradients of few iterations, `MAML`, `NWayKShot`.

Expected, in about two minutes: after 150 meta-steps 48 % of the unseen digits are told apart by
implicit MAML, from 32 %, and 40 % by MAML with five steps, from 29 %; chance is 20 %. (With more
meta-steps and a learned rate for each weight, `maml_digits.py` gets to 52 %.)

Source: Rajeswaran, Finn, Kakade & Levine, *Meta-learning with implicit gradients*, NeurIPS 2019,
algorithms 1 and 2. Data: scikit-learn's digits, 1,797 images of 8x8 pixels.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from diffopt_explicit import maml, sgd
from diffopt_explicit.tasks import Task
from diffopt_implicit import ImplicitModule, solve_cg
from few_shot_digits import Function, digit_tasks, draw, meta_learn, network
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

OUTER_RATE, STRENGTH, SOLVER_STEPS = 3e-3, 0.3, 10
INNER_STEPS, INNER_RATE = 5, 0.5


class ImplicitMAML(ImplicitModule):
    """A network that is trained near an anchor, which is what is learned."""

    inner, meta = ("net",), ("anchor",)
    linear_solve = partial(solve_cg, maxiter=5, on_failure="ignore")  # few on purpose
    on_inexact_root = "ignore"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.anchor = net, copy.deepcopy(net)

    def objective(self, task: Task) -> Tensor:
        """Tell how well the network does on the few images, and how far it went."""
        pairs = zip(self.net.parameters(), self.anchor.parameters(), strict=True)
        distance = sum((p - q).square().sum() for p, q in pairs)
        return cross_entropy(self.net(task.support_x), task.support_y) + STRENGTH / 2 * distance

    def solve(self, task: Task) -> None:
        """Go from the anchor to the minimum."""
        self.net.load_state_dict(self.anchor.state_dict())
        optimizer = torch.optim.LBFGS(self.inner_parameters(), lr=0.5, max_iter=SOLVER_STEPS)

        def evaluate() -> float:
            optimizer.zero_grad()
            loss = self.objective(task)
            loss.backward()
            return loss.item()

        optimizer.step(evaluate)

    def adapted(self, task: Task) -> Function:
        """The network at the minimum, as a function of the anchor."""
        solution = {name.removeprefix("net."): p for name, p in self.solution(task).items()}
        return lambda x: functional_call(self.net, solution, (x,))


def adapted(learner: maml.MAML, task: Task) -> Function:
    """The network of `MAML` after some steps, as a function of where it began."""
    clone = learner.clone()
    for _ in range(INNER_STEPS):
        clone.adapt(cross_entropy(clone(task.support_x), task.support_y))
    return clone


def main() -> None:
    """Learn both ways, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small to share
    steps = 4 if options.quick else 150
    unseen = digit_tasks(range(5, 10), symmetries=1, seed=1)
    judged = [unseen.sample() for _ in range(5 if options.quick else 40)]
    implicit, explicit = ImplicitMAML(network()), maml.MAML(network(), sgd(INNER_RATE))
    ways = {
        "implicit MAML": (implicit.adapted, list(implicit.meta_parameters())),
        "MAML": (lambda task: adapted(explicit, task), list(explicit.parameters())),
    }
    curves = {}
    for name, (adapt, learned) in ways.items():
        curves[name] = meta_learn(adapt, torch.optim.Adam(learned, OUTER_RATE), name, steps, judged)
        print(f"{name}: accuracy {curves[name][0][1]:.1%} -> {curves[name][-1][1]:.1%}")
    draw(curves, options.results / "imaml_digits.png")


if __name__ == "__main__":
    main()

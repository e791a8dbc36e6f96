"""Four gradient graphs drawn: MAML, implicit MAML, an equilibrium layer, a thousand steps.

What a meta-gradient passes through depends on how it is taken. Unrolled, it passes through every
inner step, and each is a box here; by the implicit function theorem it passes through the
solution only, one operation however long the solver took; and a thousand steps that are alike
are drawn as one.

Shows: `build_graph`, `collapsed`, `group_modules`, `to_svg`, `to_html`.

Expected, in some seconds: 4 inner steps with Adam are 4 of 17 boxes; neither the 40 steps of
implicit MAML nor the iterations of the layer are in their pictures; 1,000 steps are 3 of 10 boxes.
`find_broken` has nothing to say of any of them.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from diffopt_explicit import adam, sgd, unroll
from diffopt_implicit import DEQ, ImplicitModule
from diffopt_viz import Graph, build_graph, find_broken, group_modules
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm


def maml() -> tuple[Tensor, dict[str, Tensor]]:
    """The loss after four steps of Adam, whose rate is to be learned with the first weights."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    support, query = torch.randn(2, 16, 4)
    params = {"log_lr": torch.tensor(-2.0, requires_grad=True), **dict(net.named_parameters())}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return (functional_call(net, weights, (x,)) - x.sum(1, keepdim=True)).square().mean()

    with group_modules(net):
        inner = lambda weights: loss(weights, support)  # noqa: E731
        rule = adam(params["log_lr"].exp())
        return loss(
            unroll(inner, rule, dict(net.named_parameters()), steps=4).params, query
        ), params


class Learner(ImplicitModule):
    """Weights that solve a task without going far from an anchor, which is to be learned."""

    inner, meta = ("net",), ("anchor",)

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.anchor = net, copy.deepcopy(net)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The error on a task, and the distance from the anchor."""
        pairs = zip(self.net.parameters(), self.anchor.parameters(), strict=True)
        return (self.net(x) - y).square().mean() + sum((p - q).square().sum() for p, q in pairs)

    def solve(self, x: Tensor, y: Tensor) -> None:
        """Forty steps, none of which is in the graph."""
        optimizer = torch.optim.SGD(self.inner_parameters(), lr=0.1)
        for _ in range(40):
            optimizer.zero_grad()
            self.objective(x, y).backward()
            optimizer.step()

    def forward(self, x: Tensor) -> Tensor:
        """The adapted network."""
        return self.net(x)


def imaml() -> tuple[Tensor, nn.Module]:
    """The loss of weights that solve a task near an anchor."""
    learner, x = Learner(nn.Linear(4, 1)), torch.randn(16, 4)
    adapted = learner.solution(x, x.sum(1, keepdim=True))
    with group_modules(learner):
        return (functional_call(learner, adapted, (x,)) - 1).square().mean(), learner.anchor


class Cell(nn.Module):
    """The layer whose fixed point is sought."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.input = nn.Linear(8, 8, bias=False), nn.Linear(4, 8)
        nn.init.orthogonal_(self.recurrent.weight, 0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """One application."""
        return torch.tanh(self.recurrent(z) + self.input(x))


def equilibrium() -> tuple[Tensor, nn.Module]:
    """The loss of a network with an equilibrium layer."""
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4), "deq": DEQ(Cell()), "head": nn.Linear(8, 1)})
    with group_modules(net):
        z = net["deq"](net["encoder"](torch.randn(16, 4)), torch.zeros(16, 8))
        return net["head"](z).square().mean(), net


def thousand_steps() -> tuple[Tensor, dict[str, Tensor]]:
    """The loss after a thousand steps whose rate is to be learned."""
    params = {"log_lr": torch.tensor(-4.0, requires_grad=True)}
    start = {"w": torch.ones(3, requires_grad=True)}
    inner = lambda weights: (weights["w"].cos() + 1).sum()  # noqa: E731
    result = unroll(inner, sgd(params["log_lr"].exp()), start, steps=1000)
    return inner(result.params), {**params, **start}


def describe(name: str, full: Graph, small: Graph) -> str:
    """One line for each picture."""
    return f"{name}: {len(full.nodes)} nodes in {len(small.nodes)} boxes"


def main() -> None:
    """Draw all, as SVG to look at and as HTML to walk through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    lines = []
    for build in tqdm((maml, imaml, equilibrium, thousand_steps)):
        torch.manual_seed(0)
        loss, params = build()
        for broken in find_broken(loss, params):
            print(broken)
        full = build_graph(loss, params, gradients=True, memory=True)
        small = full.collapsed()
        (options.results / f"{build.__name__}.svg").write_text(small.to_svg())
        (options.results / f"{build.__name__}.html").write_text(full.to_html())
        lines.append(describe(build.__name__, full, small))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

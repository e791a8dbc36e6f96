"""Compiled steps equal eager ones, in one graph that serves for all later steps."""

import pytest
import torch
from diffopt_explicit import (
    accumulate,
    adam,
    add_noise,
    apply_if_finite,
    apply_updates,
    chain,
    clip_by_global_norm,
    ema,
    inject,
    kronecker,
    learned,
    lookahead,
    named_chain,
    nan_to_num,
    partition,
    register_hook,
    sgd,
    unroll,
    warmup_cosine,
)
from every_optimizer import EVERY, F64
from pytree_core import tree_leaves
from torch._dynamo.utils import counters

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's look

START = {"matrix": torch.tensor([[-0.7, 1.1], [1.2, 0.7]], dtype=F64)}
BOTH = {**START, "vector": torch.tensor([0.4, -1.2], dtype=F64)}
LABELS = {"matrix": "x", "vector": "y"}
CASES = {
    **{name: (entry.make(**entry.values), START) for name, entry in EVERY.items()},
    "clipped": (chain(clip_by_global_norm(1.0), adam(0.1)), BOTH),
    "labelled": (partition({"x": adam(), "y": sgd(0.1, 0.9)}, LABELS), BOTH),
    "accumulated": (accumulate(adam(0.1), 2), START),
    "averaged": (chain(ema(0.9), sgd(0.1)), START),
    "behind": (lookahead(sgd(0.1), 2), START),
    "injected": (inject(adam(), lr=torch.tensor(0.1, dtype=F64)), START),
    "learned": (learned(lambda g, m: (-0.1 * m, m + g), torch.zeros_like), START),
    "named": (named_chain(("bounds", nan_to_num()), ("rule", adam(0.1))), START),
    "products": (chain(kronecker({"matrix": (torch.eye(2, dtype=F64),) * 2}), sgd(0.1)), START),
    "scheduled": (sgd(warmup_cosine(0.0, 1.0, 2, 20)), START),
}
# Counts are compiled as numbers first, and as variables once they change. After that, only
# another phase makes another graph: of a schedule, of radam's variance, of a period.
GRAPHS = {"scheduled": 3, "behind": 3, "accumulated": 4, "learned": 1}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(tx, grads, state, params):
    updates, state = tx.update(grads, state, params)
    return apply_updates(params, updates), state


@pytest.mark.parametrize("name", CASES)
def test_compiled_steps_equal_eager_ones_and_one_graph_serves_all_later_steps(name):
    tx, start = CASES[name]
    compiled = torch.compile(
        lambda *arguments: step(tx, *arguments), fullgraph=True, backend="eager"
    )
    ours = expected = (start, tx.init(start))
    graphs = []
    for t in range(8):
        grads = {key: torch.full_like(w, 0.5 - t % 3) for key, w in start.items()}
        counters.clear()
        ours = compiled(grads, ours[1], ours[0])
        graphs.append(counters["stats"]["unique_graphs"])
        expected = step(tx, grads, expected[1], expected[0])

        torch.testing.assert_close(tree_leaves(ours), tree_leaves(expected))

    assert sum(graphs[:-2]) == GRAPHS.get(name, 2), graphs
    assert graphs[-2:] == [0, 0]


def test_a_parameter_without_gradient_is_compiled_too():
    tx = adam(0.1)
    compiled = torch.compile(lambda *a: step(tx, *a), fullgraph=True, backend="eager")
    grads = {**BOTH, "vector": None}
    moved, state = compiled(grads, tx.init(BOTH), BOTH)

    assert torch.equal(moved["vector"], BOTH["vector"])
    assert state[0].counts == {"matrix": 1, "vector": 0}


@pytest.mark.parametrize("name", EVERY)
def test_compiled_unrolled_steps_have_the_derivatives_of_eager_ones(name):
    entry = EVERY[name]
    start = START["matrix"].clone().requires_grad_()
    numbers = [torch.tensor(x, dtype=F64, requires_grad=True) for x in entry.values.values()]

    def outer(start, *numbers):
        tx = entry.make(**dict(zip(entry.values, numbers, strict=True)))
        return unroll(lambda w: (w**4).sum(), tx, start, steps=2).params.square().sum()

    compiled = torch.compile(outer, fullgraph=True, backend="eager")
    actual, expected = (
        torch.autograd.grad(f(start, *numbers), [start, *numbers], materialize_grads=True)
        for f in (compiled, outer)
    )

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_whole_meta_step_is_one_graph_also_for_autograds_own_compiler():
    def outer(start, lr):
        return unroll(lambda w: (w**4).sum(), adam(lr), start, steps=3).params.square().sum()

    inputs = START["matrix"], torch.tensor(0.05, dtype=F64)
    gradient = torch.func.grad(outer, argnums=(0, 1))
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(*inputs), gradient(*inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")  # torch 2.12
@pytest.mark.parametrize(
    "tx",
    [
        chain(add_noise(0.1, torch.Generator().manual_seed(0)), sgd(0.1)),
        chain(sgd(0.1), register_hook(lambda g: 2 * g)),
        apply_if_finite(adam(0.1)),
    ],
    ids=["noise", "hook", "finite"],
)
def test_what_breaks_the_graph_is_right_nevertheless(tx):
    state, results = tx.init(START), []
    for update in (tx.update, torch.compile(tx.update, backend="eager")):
        w = START["matrix"].clone().requires_grad_()
        moved = update({"matrix": w}, state, START)[0]["matrix"]
        results.append((moved.detach(), torch.autograd.grad(moved.sum(), w)[0]))

    torch.testing.assert_close(*results)

"""Graphs of unrolls come with their steps and updates as groups, with nothing said."""

import diffopt_kernels
import pytest
import torch
from diffopt_explicit import FuncOptimizer, MetaOptimizer, adam, inner_loop, sgd, unroll
from diffopt_viz import build_graph, group
from torch import nn

X, Y = torch.ones(4, 2), torch.zeros(4, 1)


def groups(*outputs):
    return {node.group for node in build_graph(*outputs).nodes if node.group}


def unrolled(tx, steps=3):
    start = torch.tensor([1.0, 2.0], requires_grad=True)
    return unroll(lambda w: (X @ w).square().mean(), tx, start, steps=steps).params.sum()


@pytest.mark.parametrize("tx", [sgd(lr=0.1), adam(lr=0.1)], ids=["composed", "fused if possible"])
def test_steps_and_updates_of_an_unroll_are_groups(tx):
    expected = {(f"inner step {k}",) for k in range(3)}
    assert groups(unrolled(tx)) == expected | {(f"inner step {k}", "update") for k in range(3)}


def test_a_fused_update_is_one_node_in_a_group_of_its_step():
    assert diffopt_kernels
    graph = build_graph(unrolled(adam(lr=0.1), steps=1))
    assert "update" in {node.label for node in graph.collapsed().nodes} | {
        name for node in graph.nodes for name in node.group
    }


def test_steps_stand_inside_the_groups_of_the_user_and_around_those_of_the_loss():
    start = torch.tensor([1.0, 2.0], requires_grad=True)

    def loss(w):
        with group("model"):
            y = X @ w
        return y.square().mean()

    with group("adaptation"):
        end = unroll(loss, sgd(lr=0.1), start, steps=2).params
    found = groups(end.sum())
    for k in range(2):
        assert ("adaptation", f"inner step {k}") in found
        assert ("adaptation", f"inner step {k}", "model") in found
        assert ("adaptation", f"inner step {k}", "update") in found


def test_a_long_unroll_is_folded():
    labels = [node.label for node in build_graph(unrolled(sgd(lr=0.1), 50)).collapsed().nodes]
    assert len(labels) < 10
    assert any("…" in label for label in labels)


def test_inner_loops_and_meta_optimizers_name_their_steps_too():
    expected = {(f"inner step {k}",) for k in range(2)}
    module = nn.Linear(2, 1)
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        for _ in range(2):
            opt.step((fmodule(X) - Y).square().mean())
        assert expected < groups((fmodule(X) - Y).square().mean())
    with MetaOptimizer(module, sgd(lr=0.1)) as optimizer:
        for _ in range(2):
            optimizer.step((module(X) - Y).square().mean())
        assert expected < groups((module(X) - Y).square().mean())
    functional, params = FuncOptimizer(sgd(lr=0.1)), torch.ones(2, requires_grad=True)
    for _ in range(2):
        params = functional.step((X @ params).square().mean(), params)
    assert expected < groups(params.sum())

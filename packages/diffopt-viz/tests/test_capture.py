from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from diffopt_viz import Kind, build_graph
from torch import nn


def labels(graph, kind=None):
    return [node.label for node in graph.nodes if kind in (None, node.kind)]


def edges(graph):
    return {(graph.nodes[a].label, graph.nodes[b].label) for a, b in graph.edges}


def test_the_graph_of_an_expression_is_its_operations_and_their_order():
    w = torch.tensor([2.0, 1.0], requires_grad=True)
    b = torch.tensor(1.0, requires_grad=True)
    graph = build_graph(((w * b).sin() + b).sum(), {"w": w, "b": b})

    assert edges(graph) == {
        ("w", "mul"),
        ("b", "mul"),
        ("mul", "sin"),
        ("sin", "add"),
        ("b", "add"),
        ("add", "sum"),
        ("sum", "output"),
    }
    assert labels(graph).count("b") == 1
    assert {node.label: node.shape for node in graph.nodes if node.kind is Kind.PARAMETER} == {
        "w": (2,),
        "b": (),
    }


def test_a_module_gives_its_parameters_their_names_and_tied_ones_all_of_them():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    graph = build_graph(module(torch.ones(1, 2)), module)

    assert set(labels(graph, Kind.PARAMETER)) == {"0.weight, 1.weight", "0.bias", "1.bias"}


def test_names_come_from_any_nesting():
    point = namedtuple("point", "x y")
    leaves = [torch.ones(1, requires_grad=True) for _ in range(4)]
    names = {"a": [leaves[0], point(leaves[1], None)], 3: leaves[2]}
    graph = build_graph(sum(leaves), [names, ("named", leaves[3])])

    assert set(labels(graph, Kind.PARAMETER)) == {"0.a.0", "0.a.1.x", "0.3", "named"}


def test_states_of_optimizers_are_named_by_their_fields():
    @dataclass
    class State:
        momentum: torch.Tensor
        count: int = 0

    w = torch.tensor([1.0, 2.0], requires_grad=True)
    state = State(w * 0.9)
    graph = build_graph((w - state.momentum).sum(), {"params": w, "sgd": state})
    assert ("mul", "sgd.momentum") in edges(graph)

    optimizer = torch.optim.Adam([w], lr=torch.tensor(0.1, requires_grad=True))
    w.sum().backward()
    optimizer.step()
    moment = optimizer.state[w]["exp_avg"].requires_grad_()
    lr = optimizer.param_groups[0]["lr"]
    graph = build_graph((moment * lr).sum(), optimizer)
    assert {"state.0.exp_avg", "param_groups.0.lr"} <= set(labels(graph, Kind.PARAMETER))


def test_a_named_tensor_inside_the_graph_stands_between_its_operations():
    w = torch.ones(1, requires_grad=True)
    inner = w * 2
    graph = build_graph(inner.sin(), {"w": w, "after one step": inner})

    assert ("mul", "after one step") in edges(graph)
    assert ("after one step", "sin") in edges(graph)
    assert ("mul", "sin") not in edges(graph)


def test_one_of_several_results_of_an_operation_is_named_alone():
    first, second = torch.ones(2, requires_grad=True).unbind()
    graph = build_graph(first + second, {"second": second})

    assert edges(graph) >= {("unbind", "second"), ("second", "add"), ("unbind", "add")}


def test_a_gradient_of_a_gradient_is_part_of_the_graph():
    w = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(w**3, w, create_graph=True)
    graph = build_graph({"gradient": gradient}, {"w": w})

    assert labels(graph, Kind.OUTPUT) == ["gradient"]
    assert labels(graph).count("w") == 1
    assert sum(label == "pow" for label in labels(graph)) == 1


def test_a_leaf_may_be_an_output():
    w = torch.ones(2, requires_grad=True)

    assert edges(build_graph(w, {"w": w})) == {("w", "output")}


def test_twenty_thousand_operations_in_a_row_need_no_recursion():
    y = torch.ones((), requires_grad=True)
    for _ in range(10_000):
        y = (y * 1.0).sin()
    graph = build_graph(y)

    assert len(graph.nodes) == 20_002
    assert len(graph.edges) == 20_001


def test_the_same_program_gives_the_same_graph():
    def once():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        loss = module(torch.ones(2, 3)).sum()
        torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        return build_graph(loss, module)

    assert once() == once()


def test_attributes_and_saved_tensors_are_shown_when_asked_for():
    w = torch.ones(3, requires_grad=True)
    x = torch.ones(3)
    y = (w * x).sum(dim=0, keepdim=True)
    plain, full = build_graph(y), build_graph(y, {"data": x}, attributes=True, saved=True)
    numbers = {name: text for node in full.nodes for name, text in node.attributes.items()}

    assert labels(plain, Kind.SAVED) == []
    assert labels(full, Kind.SAVED) == ["data"]
    assert numbers["keepdim"] == "True"
    assert not any(node.attributes for node in plain.nodes)


@pytest.mark.parametrize(
    ("operation", "label"),
    [
        (
            lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0],
            "max_pool2d_with_indices",
        ),
        (lambda x: nn.functional.log_softmax(x, 0), "log_softmax"),
        (lambda x: x.mean(), "mean"),
    ],
)
def test_operations_are_called_as_in_torch(operation, label):
    assert labels(build_graph(operation(torch.ones(2, 2, 2).requires_grad_())))[1] == label


def test_long_attributes_are_cut():
    y = torch.ones(2, 3, requires_grad=True).sum()
    graph = build_graph(y, attributes=True, max_attr_chars=3)

    assert "(2,…" in [text for node in graph.nodes for text in node.attributes.values()]


def test_a_graph_whose_saved_tensors_are_freed_can_still_be_read():
    w = torch.ones(3, requires_grad=True)
    y = w.exp().sum()
    y.backward()

    assert labels(build_graph(y, attributes=True, saved=True), Kind.SAVED) == []


@pytest.mark.parametrize(
    ("outputs", "message"), [(torch.ones(1), "requires grad"), ([], "is a tensor"), ({}, "tensor")]
)
def test_outputs_without_a_graph_are_refused(outputs, message):
    with pytest.raises(ValueError, match=message):
        build_graph(outputs)


def test_the_repr_counts_what_there_is():
    graph = build_graph(torch.ones(1, requires_grad=True) * 2)

    assert repr(graph) == "Graph(1 outputs, 1 operations, 1 parameters, 2 edges)"

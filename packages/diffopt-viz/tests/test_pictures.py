"""What is written: DOT text and SVG."""

from xml.etree import ElementTree

import pytest
import torch
from diffopt_viz import build_graph, make_dot
from torch import nn

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def loss():
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    return module(torch.ones(3, 2)).square().mean(), module


def test_dot_names_parameters_and_has_an_arrow_for_each_edge(loss):
    dot = make_dot(*loss)
    graph = build_graph(*loss)

    assert "weight\n(1, 2)" in dot.source
    assert dot.source.count("->") == len(graph.edges)
    assert graph.to_dot().source == dot.source


def test_dot_shows_attributes_and_saved_tensors_when_asked_for(loss):
    assert "exponent: 2" in make_dot(*loss, show_attrs=True).source
    assert "exponent" not in make_dot(*loss).source
    assert "mat1" in make_dot(*loss, show_saved=True).source


def test_svg_is_well_formed_and_has_a_box_for_each_node(loss):
    graph = build_graph(*loss)
    root = ElementTree.fromstring(graph.to_svg())
    groups = root.findall(f"{SVG}g")
    lines = root.findall(f"{SVG}path")

    assert [group.get("id") for group in groups] == [f"node{n.id}" for n in graph.nodes]
    assert len(lines) == len(graph.edges)
    assert "weight" in "".join(root.itertext())
    assert graph._repr_svg_() == graph.to_svg()


def test_names_that_are_markup_or_unprintable_are_harmless():
    w = torch.ones(1, requires_grad=True)
    name = '<script>alert("&")</script>\x00\\N'
    graph = build_graph(w * 2, {name: w})
    root = ElementTree.fromstring(graph.to_svg())

    assert root.find(f".//{SVG}script") is None
    assert '<script>alert("&")</script>\ufffd\\N' in "".join(root.itertext())
    assert '<script>alert(\\"&\\")</script>' in graph.to_dot().source
    assert "\\\\N" in graph.to_dot().source

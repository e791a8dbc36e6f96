"""Functions of trees inside functions that torch compiles or transforms."""

import collections

import pytest
import pytree_core as pt
from pytree_core import _reference as reference
from pytree_strategies import EVERY_KIND, Box, Layer, Point

torch = pytest.importorskip("torch")
tt = pytest.importorskip("pytree_core.integrations.torch")

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)
TREES = {
    "tensor": ONE,
    "dict": {"b": ONE, "a": [TWO]},
    "tuple": (ONE, (TWO, None)),
    "namedtuple": Point(ONE, TWO),
    "ordereddict": collections.OrderedDict(b=ONE, a=TWO),
    "deque": collections.deque([ONE, TWO]),
    "dataclass": Layer(ONE, [TWO], "name"),
    "registered": Box([ONE, TWO], "label"),
}
FUNCTIONS = {
    "map": lambda tree: pt.tree_map(lambda x, y: x + y, tree, tree),
    "flatten": lambda tree: pt.tree_unflatten(
        pt.tree_structure(tree), [x * 2 for x in pt.tree_leaves(tree)]
    ),
    "paths": lambda tree: pt.tree_map_with_path(lambda path, x: x * len(path), tree),
    "reduce": lambda tree: pt.tree_sum(pt.tree_map(torch.sum, tree)),
    "iterate": lambda tree: [x + 1 for x in pt.tree_iter(tree)],
}


@pytest.fixture(autouse=True)
def dynamo():
    tt.register_with_dynamo()
    torch._dynamo.reset()  # which would give up after some recompilations
    yield
    torch._dynamo.reset()


def check(call, tree):
    expected, treespec = pt.tree_flatten(call(tree))
    found, same = pt.tree_flatten(torch.compile(call, fullgraph=True, backend="eager")(tree))

    assert same == treespec
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_functions_of_trees_have_one_graph(function):
    check(FUNCTIONS[function], [TREES["dict"], TREES["namedtuple"], TREES["registered"]])


@pytest.mark.parametrize("kind", TREES)
def test_trees_of_every_kind_pass_through_compiled_functions(kind):
    check(FUNCTIONS["map"], TREES[kind])


def test_errors_of_structure_are_raised_by_compiled_functions():
    call = torch.compile(lambda a, b: pt.tree_map(torch.add, a, b), backend="eager")
    with pytest.raises(ValueError, match=r"at \['a'\]: expected a list of 1"):
        call({"a": [ONE]}, {"a": []})


def test_torch_understands_registered_types():
    tt.register_with_torch()
    tt.register_with_torch()
    tree = {"layer": Layer(ONE, [TWO], "name"), "box": Box([ONE], "label")}
    gradient = torch.func.grad(lambda t: sum((x * x).sum() for x in pt.tree_leaves(t)))(tree)

    assert gradient["layer"].name == "name"
    torch.testing.assert_close(pt.tree_leaves(gradient), [2 * x for x in pt.tree_leaves(tree)])
    paths = [
        torch.utils._pytree.keystr(p) for p, _ in torch.utils._pytree.tree_leaves_with_path(tree)
    ]
    assert paths == ["['layer'].weight", "['layer'].bias[0]", "['box'][0]"]
    with pytest.raises(ValueError, match="not registered in the namespace"):
        tt.register_with_torch(int)
    with pytest.raises(ValueError, match="already registered"):
        tt.register_with_torch(Layer)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_runs_inside_a_graph_agrees_with_the_core(kind):
    tree = [EVERY_KIND[kind]]
    for ours, theirs in (
        (pt.tree_flatten_with_path, reference.tree_flatten_with_path),
        (pt._core.flatten_one_level, reference.flatten_one_level),
    ):
        *expected, theirs_spec = theirs(tree)
        *found, spec = ours(tree)
        assert found == expected
        assert repr(spec) == repr(theirs_spec)
    pairs = lambda *row: row
    mapped = [f(pairs, tree, tree) for f in (pt.tree_map_with_path, reference.tree_map_with_path)]
    assert pt.tree_leaves(mapped[0]) == pt.tree_leaves(mapped[1])

import dataclasses

import pytest
import pytree_core as pt
from pytree_strategies import Layer


def test_static_fields_are_structure():
    leaves, spec = pt.tree_flatten(Layer(1, [2], "first"))

    assert leaves == [1, 2]
    assert spec.paths() == [("weight",), ("bias", 0)]
    assert spec != pt.tree_structure(Layer(1, [2], "second"))
    assert spec.unflatten([3, 4]) == Layer(3, [4], "first")


def test_options_reach_the_standard_dataclass():
    @pt.dataclasses.dataclass(frozen=True, slots=True, namespace="options")
    class Frozen:
        x: int
        y: int = pt.dataclasses.field(default=7, metadata={"unit": "m"})

    tree = pt.tree_map(lambda v: v + 1, Frozen(1), namespace="options")

    assert tree == Frozen(2, 8)
    assert dataclasses.fields(Frozen)[1].metadata["unit"] == "m"
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.x = 3


def test_a_node_is_rebuilt_without_its_constructor():
    @pt.dataclasses.dataclass(namespace="constructor")
    class Checked:
        x: float
        start: dataclasses.InitVar[int] = 0
        double: float = dataclasses.field(init=False)

        def __post_init__(self, start):
            if not isinstance(self.x, float):
                raise TypeError("x must be a float")
            self.double = 2 * self.x

    tree = pt.tree_map(lambda v: [v], Checked(1.5), namespace="constructor")

    assert (tree.x, tree.double) == ([1.5], [3.0])


def test_only_dataclasses_are_registered_as_such():
    for thing in (int, Layer(1, 2), None):
        with pytest.raises(TypeError, match="`cls` must be a dataclass"):
            pt.dataclasses.register_node(thing, namespace="test")

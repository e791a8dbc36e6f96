import pytest
import pytree_core as pt

attrs = pytest.importorskip("attrs")
integration = pytest.importorskip("pytree_core.integrations.attrs")


@integration.define(namespace="attrs")
class Layer:
    weight: object
    bias: object
    name: str = integration.field(default="", pytree_node=False, metadata={"unit": "none"})


@integration.define(frozen=True, namespace="attrs")
class Frozen:
    x: float = attrs.field(converter=float)


def test_fields_are_subtrees_or_structure():
    leaves, spec = pt.tree_flatten(Layer(1, [2], "first"), namespace="attrs")

    assert leaves == [1, 2]
    assert spec.paths() == [("weight",), ("bias", 0)]
    assert spec.unflatten([3, 4]) == Layer(3, [4], "first")
    assert spec != pt.tree_structure(Layer(1, [2], "second"), namespace="attrs")
    assert attrs.fields(Layer).name.metadata["unit"] == "none"


def test_a_frozen_class_is_rebuilt_without_its_converter():
    tree = pt.tree_map(lambda x: [x], Frozen(1), namespace="attrs")

    assert tree.x == [1.0]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        tree.x = 2.0


def test_classes_without_slots_and_existing_ones_are_nodes_too():
    @attrs.define(slots=False)
    class Plain:
        x: int
        y: int = 2

    assert integration.register_node(Plain, namespace="attrs") is Plain
    assert pt.tree_map(lambda v: -v, Plain(1), namespace="attrs") == Plain(-1, -2)
    with pytest.raises(ValueError, match="registered already"):
        integration.register_node(Plain, namespace="attrs")


def test_only_attrs_classes_are_registered_as_such():
    for thing in (int, Layer(1, 2), None):
        with pytest.raises(TypeError, match="`cls` must be an attrs class"):
            integration.register_node(thing, namespace="attrs")

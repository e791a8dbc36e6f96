import numpy as np
import pytest
import pytree_core.integrations.numpy as tn
from pytree_core import tree_leaves, tree_structure


@pytest.fixture
def tree():
    random = np.random.default_rng(0)
    return {"b": [random.normal(size=(2, 3)), None], "a": (random.normal(size=()), np.ones((0, 2)))}


def test_unravel_gives_the_tree_back(tree):
    vector, unravel = tn.tree_ravel(tree)
    rebuilt = unravel(vector)

    assert vector.shape == (7,)
    assert tree_structure(rebuilt) == tree_structure(tree)
    assert all(map(np.array_equal, tree_leaves(rebuilt), tree_leaves(tree)))


def test_mixed_dtypes_are_promoted_and_restored():
    tree = [np.array([1, 2], np.int8), np.float32(0.5), np.array([True]), np.array([1j])]
    vector, unravel = tn.tree_ravel(tree)

    assert vector.dtype == np.complex128
    assert [leaf.dtype for leaf in unravel(vector)] == [leaf.dtype for leaf in tree]
    assert all(map(np.array_equal, unravel(vector), tree))


def test_a_tree_without_leaves_is_an_empty_vector():
    vector, unravel = tn.tree_ravel({"a": None})

    assert vector.shape == (0,)
    assert unravel(vector) == {"a": None}


def test_vectors_of_another_length_or_dtype_are_refused():
    _, unravel = tn.tree_ravel([np.zeros(2)])
    for vector in (np.zeros(3), np.zeros((1, 2)), np.zeros(2, np.float32)):
        with pytest.raises(ValueError, match="expected a vector of 2 float64, got float"):
            unravel(vector)


def test_arithmetic_is_that_of_the_vectors(tree):
    other = tn.tree_ones_like(tree)
    (a, _), (b, _) = tn.tree_ravel(tree), tn.tree_ravel(other)
    cases = [
        (tn.tree_add(tree, other), a + b),
        (tn.tree_sub(tree, other), a - b),
        (tn.tree_mul(tree, other), a * b),
        (tn.tree_scalar_mul(3.0, tree), 3 * a),
        (tn.tree_add_scalar_mul(tree, 2.0, other), a + 2 * b),
        (tn.tree_zeros_like(tree), 0 * a),
        (tn.tree_where(True, tree, other), a),
        (tn.tree_where({"a": True, "b": False}, tree, other), np.r_[a[:1], b[1:]]),
    ]
    for result, expected in cases:
        np.testing.assert_allclose(tn.tree_ravel(result)[0], expected)
    np.testing.assert_allclose(tn.tree_vdot(tree, other), a @ b)
    np.testing.assert_allclose(tn.tree_l2_norm(tree), np.linalg.norm(a))
    np.testing.assert_allclose(tn.tree_l2_norm(tree, squared=True), a @ a)


def test_shapes_that_would_broadcast_are_refused_by_vdot():
    with pytest.raises(ValueError, match=r"at \(0,\): the shapes \(2,\) and \(1,\) differ"):
        tn.tree_vdot([np.ones(2)], [np.ones(1)])

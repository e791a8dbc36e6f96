import pickle
import subprocess
import sys

import pytest
from pytree_core import tree_leaves, tree_map, tree_structure

torch = pytest.importorskip("torch")
tt = pytest.importorskip("pytree_core.integrations.torch")


@pytest.fixture
def tree():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return {"b": [random(2, 3), None], "a": (random(), random(0, 2))}


def test_importing_the_package_imports_no_array_library():
    program = "import sys, pytree_core; print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.stdout.strip() == "set()"


def test_unravel_gives_the_tree_back(tree):
    vector, unravel = tt.tree_ravel(tree)
    rebuilt = unravel(vector)

    assert vector.shape == (7,)
    assert tree_structure(rebuilt) == tree_structure(tree)
    assert all(map(torch.equal, tree_leaves(rebuilt), tree_leaves(tree)))


def test_raveling_is_differentiable_twice(tree):
    leaves = tree_leaves(tree)

    def there_and_back(*leaves):
        vector, unravel = tt.tree_ravel(tree_structure(tree).unflatten(leaves))
        return tuple(tree_leaves(unravel(vector**2)))

    assert torch.autograd.gradcheck(there_and_back, leaves)
    assert torch.autograd.gradgradcheck(there_and_back, leaves)


def test_mixed_dtypes_are_promoted_and_restored():
    tree = [
        torch.tensor([1, 2]),
        torch.tensor(0.5),
        torch.tensor([1.5], dtype=torch.float64),
        torch.tensor([True]),
    ]
    vector, unravel = tt.tree_ravel(tree)

    assert vector.dtype == torch.float64
    assert [leaf.dtype for leaf in unravel(vector)] == [leaf.dtype for leaf in tree]
    assert all(map(torch.equal, unravel(vector), tree))


def test_a_complex_vector_gives_real_leaves_back():
    tree = [torch.tensor([1.0]), torch.tensor([2j])]
    vector, unravel = tt.tree_ravel(tree)

    assert vector.dtype == torch.complex64
    assert all(map(torch.equal, unravel(vector), tree))


def test_a_tree_without_leaves_is_an_empty_vector():
    vector, unravel = tt.tree_ravel({"a": None})

    assert vector.shape == (0,)
    assert unravel(vector) == {"a": None}


def test_ravel_works_under_function_transforms(tree):
    tree = tree_map(torch.Tensor.detach, tree)
    vector, unravel = tt.tree_ravel(tree)

    def loss(vector):
        return tt.tree_l2_norm(unravel(vector), squared=True)

    assert torch.allclose(torch.func.grad(loss)(vector), 2 * vector)
    assert torch.allclose(torch.func.hessian(loss)(vector), 2 * torch.eye(7, dtype=vector.dtype))
    batch = torch.stack([vector, 2 * vector])
    assert torch.allclose(torch.func.vmap(loss)(batch), loss(vector) * torch.tensor([1, 4]))


def test_vectors_of_another_length_or_dtype_are_refused():
    _, unravel = tt.tree_ravel([torch.zeros(2)])
    for vector in (torch.zeros(3), torch.zeros(1, 2), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"expected a vector of 2 torch.float32, got torch"):
            unravel(vector)
    with pytest.raises(TypeError, match=r"at \('a', 0\): expected a tensor, got 1\.5"):
        tt.tree_ravel({"a": [1.5]})


def test_unravel_can_be_pickled(tree):
    vector, unravel = tt.tree_ravel(tree)
    loaded = pickle.loads(pickle.dumps(unravel))

    assert loaded == unravel
    assert torch.equal(loaded(vector)["b"][0], tree["b"][0])


def test_arithmetic_is_that_of_the_vectors(tree):
    other = tree_map(torch.ones_like, tree)
    (a, _), (b, _) = tt.tree_ravel(tree), tt.tree_ravel(other)
    cases = [
        (tt.tree_add(tree, other), a + b),
        (tt.tree_sub(tree, other), a - b),
        (tt.tree_mul(tree, other), a * b),
        (tt.tree_scalar_mul(3.0, tree), 3 * a),
        (tt.tree_add_scalar_mul(tree, 2.0, other), a + 2 * b),
        (tt.tree_zeros_like(tree), 0 * a),
        (tt.tree_ones_like(tree), b),
        (tt.tree_where(torch.tensor(True), tree, other), a),
    ]
    for result, expected in cases:
        torch.testing.assert_close(tt.tree_ravel(result)[0], expected)
    torch.testing.assert_close(tt.tree_vdot(tree, other), a @ b)
    torch.testing.assert_close(tt.tree_l2_norm(tree), a.norm())
    torch.testing.assert_close(tt.tree_l2_norm(tree, squared=True), a @ a)


def test_the_first_argument_of_vdot_is_conjugated():
    a, b = torch.tensor([1j, 2.0]), torch.tensor([1j, 1j])

    assert tt.tree_vdot([a], [b]) == torch.vdot(a, b)
    assert tt.tree_l2_norm([a], squared=True) == 5.0


def test_the_norm_has_a_derivative_of_zero_at_zero():
    x = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(tt.tree_l2_norm([x, torch.zeros(2)]), x)

    assert torch.equal(gradient, torch.zeros(3))


def test_trees_without_leaves_have_norm_zero():
    assert tt.tree_l2_norm([]) == 0
    assert tt.tree_vdot({}, {}) == 0


def test_shapes_that_would_broadcast_are_refused_by_vdot():
    with pytest.raises(ValueError, match=r"at \(0,\): the shapes \(2,\) and \(1,\) differ"):
        tt.tree_vdot([torch.ones(2)], [torch.ones(1)])


def test_a_condition_may_be_a_prefix():
    a, b = {"x": [torch.ones(2)], "y": torch.ones(1)}, {"x": [torch.zeros(2)], "y": torch.zeros(1)}
    result = tt.tree_where({"x": torch.tensor([True, False]), "y": torch.tensor(False)}, a, b)

    assert torch.equal(result["x"][0], torch.tensor([1.0, 0.0]))
    assert torch.equal(result["y"], torch.zeros(1))

import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
integration = pytest.importorskip("pytree_core.integrations.jax")


def test_raveling_and_back_keeps_shapes_and_dtypes():
    tree = {"b": jnp.ones((2, 3)), "a": (jnp.zeros((), jnp.bfloat16), None, 3)}
    vector, unravel = integration.tree_ravel(tree)
    back = unravel(vector + 1)

    assert vector.shape == (8,)
    assert vector.dtype == jnp.float32
    assert back["b"].tolist() == [[2.0] * 3] * 2
    assert back["a"][0].dtype == jnp.bfloat16
    assert back["a"][1] is None
    assert (back["a"][2].dtype, int(back["a"][2])) == (jnp.asarray(3).dtype, 4)


def test_raveling_agrees_with_jax_and_is_differentiable_and_traceable():
    tree = {"w": jnp.arange(4.0).reshape(2, 2), "b": jnp.ones(3)}
    expected, _ = pytest.importorskip("jax.flatten_util").ravel_pytree(tree)

    @jax.jit
    def norm(tree):
        vector, unravel = integration.tree_ravel(tree)
        return (unravel(vector)["w"] ** 2).sum() + vector.sum()

    gradient = jax.grad(norm)(tree)
    assert integration.tree_ravel(tree)[0].tolist() == expected.tolist()
    assert gradient["w"].tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert gradient["b"].tolist() == [1.0] * 3


def test_an_empty_tree_is_an_empty_vector():
    vector, unravel = integration.tree_ravel({"a": None})

    assert vector.shape == (0,)
    assert unravel(vector) == {"a": None}


def test_a_vector_of_another_length_is_refused():
    _, unravel = integration.tree_ravel([jnp.ones(2)])
    with pytest.raises(ValueError, match="expected a vector of 2 float32, got float32 of shape"):
        unravel(jnp.ones(3))


def test_arithmetic_works_on_jax_arrays():
    tree = [jnp.ones(2)]
    assert integration.tree_add_scalar_mul(tree, 2.0, tree)[0].tolist() == [3.0, 3.0]

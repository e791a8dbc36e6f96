import pickle

import pytree_core as pt


def test_a_partial_is_a_tree_of_its_arguments():
    partial = pt.Partial(max, [1, 2], key=len)
    leaves, spec = pt.tree_flatten(partial)

    assert leaves == [1, 2, len]
    assert spec.paths() == [("args", 0, 0), ("args", 0, 1), ("keywords", "key")]
    assert isinstance(spec.unflatten(leaves), pt.Partial)
    assert spec != pt.tree_structure(pt.Partial(min, [1, 2], key=len))


def test_a_partial_of_a_partial_is_one_partial():
    tree = pt.tree_map(lambda x: x + 1, pt.Partial(pt.Partial(max, 1), 5))

    assert tree(3) == 6
    assert tree.args == (2, 6)


def test_a_partial_can_be_pickled():
    assert pickle.loads(pickle.dumps(pt.Partial(max, 1)))(3) == 3

import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st

numbers = st.recursive(st.integers(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))


@given(numbers)
def test_reductions_are_those_of_the_list_of_leaves(tree):
    leaves = pt.tree_leaves(tree)

    assert pt.tree_sum(tree) == sum(leaves)
    assert pt.tree_max(tree, default=None) == max(leaves, default=None)
    assert pt.tree_min(tree, default=None) == min(leaves, default=None)
    assert pt.tree_all(tree) == all(leaves)
    assert pt.tree_any(tree) == any(leaves)
    assert pt.tree_reduce(lambda seen, x: [*seen, x], tree, []) == leaves


def test_reductions_of_no_leaves_need_a_default():
    with pytest.raises(TypeError, match="empty"):
        pt.tree_reduce(max, [])
    for extreme in (pt.tree_max, pt.tree_min):
        with pytest.raises(ValueError, match="empty"):
            extreme({})
    assert pt.tree_sum((), 1.5) == 1.5


def test_the_first_of_equal_extremes_by_key_is_returned():
    assert pt.tree_max(["a", ["bb", "cc"]], key=len) == "bb"
    assert pt.tree_min(["aa", ["b", "c"]], key=len) == "b"


def test_a_single_leaf_is_not_compared_with_the_default():
    assert pt.tree_max(3, default=9) == 3

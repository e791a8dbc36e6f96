import pytree_core as pt
from hypothesis import given
from pytree_strategies import trees


@given(trees, trees)
def test_there_are_prefix_errors_exactly_if_it_is_no_prefix(tree, other):
    errors = pt.prefix_errors(tree, other)
    other_spec = pt.tree_structure(other)
    holes = other_spec.unflatten([0] * other_spec.num_leaves)

    assert bool(pt.prefix_errors(tree, holes)) != pt.tree_structure(tree).is_prefix(other_spec)
    assert all(isinstance(error("tree"), ValueError) for error in errors)


def test_all_prefix_errors_are_listed_from_left_to_right():
    errors = pt.prefix_errors([{"a": 1}, (2,), [3]], [{"b": 1}, (2,), None])

    assert [str(error("in_axes")) for error in errors] == [
        "in_axes at [0]: expected the keys ['a'], got a dict without ['a'] and with ['b'] besides",
        "in_axes at [2]: expected a list of 1, got None",
    ]


@given(trees, trees)
def test_there_are_equality_errors_exactly_where_leaves_do_not_correspond(tree, other):
    first, second = pt.tree_structure(tree), pt.tree_structure(other)
    errors = pt.equality_errors(tree, other)

    assert (not errors) == (first <= second <= first)
    assert pt.equality_errors(tree, tree) == []


def test_equality_errors_say_where_and_what():
    ours = {"a": [1, {"b": 2}], "c": (3, 4), "d": 5}
    theirs = {"a": [1, 2], "c": (3, 4, 5), "d": [6]}

    assert pt.equality_errors(ours, theirs) == [
        "at ['a'][1]: expected a dict of 1, got an int",
        "at ['c']: expected a tuple of 2, got a tuple of 3",
        "at ['d']: expected a leaf, got TreeSpec([*])",
    ]
    assert pt.equality_errors([(1, 2)], [(1, 2)], lambda x: x == (1, 2)) == []


def test_what_is_declared_a_leaf_on_one_side_only_is_an_equality_error():
    marked, plain = [1], [2]

    assert pt.equality_errors(plain, marked, lambda x: x is marked) == [
        "at the root: expected TreeSpec([*]), got a leaf"
    ]

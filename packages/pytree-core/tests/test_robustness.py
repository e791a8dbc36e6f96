"""What user code may do while a tree is taken apart: nothing of it may crash."""

import gc
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque

import pytest
import pytree_core as pt
from pytree_backend import needs_native
from pytree_strategies import Box, Config, Point


@pytest.fixture
def node():
    """Registers a type whose flatten function the test chooses."""
    registered = []

    def register(flatten, unflatten=lambda metadata, children: children):
        cls = type("Node", (), {})
        pt.register_pytree_node(cls, flatten, unflatten, namespace="robust")
        registered.append(cls)
        return cls()

    yield register
    for cls in registered:
        pt.unregister_pytree_node(cls, namespace="robust")


def test_a_list_may_shrink_while_it_is_flattened():
    tree = [[i] for i in range(10)]

    def is_leaf(subtree):
        if subtree == [3]:
            tree.clear()
        return False

    leaves, treespec = pt.tree_flatten(tree, is_leaf)

    assert leaves == [0, 1, 2, 3]
    assert treespec == pt.tree_structure([[0]] * 4)


def test_a_list_may_grow_while_it_is_flattened():
    tree = [0]

    def is_leaf(subtree):
        if len(tree) < 1000:
            tree.append(len(tree))
        return False

    assert pt.tree_leaves(tree, is_leaf) == list(range(1000))


@pytest.mark.parametrize("kind", [dict, OrderedDict, Config, lambda x: defaultdict(None, x)])
def test_a_dict_may_change_while_it_is_flattened(kind):
    tree = kind({key: [key] for key in "abcde"})

    def is_leaf(subtree):
        if subtree == ["b"]:
            tree.clear()
            tree.update(dict.fromkeys("xyz"))
        return False

    leaves, treespec = pt.tree_flatten(tree, is_leaf)

    assert leaves == list("abcde")
    assert treespec.entries == list("abcde")


def test_a_deque_may_change_while_it_is_flattened():
    tree = deque([[1], [2], [3]])

    def is_leaf(subtree):
        if subtree == [1]:
            tree.clear()
        return False

    assert pt.tree_leaves(tree, is_leaf) == [1, 2, 3]


def test_keys_whose_comparison_changes_the_dict_are_sorted_from_a_copy():
    class Key:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            tree.clear()
            return self.value < other.value

    tree = {Key(i): i for i in (3, 1, 2)}

    assert pt.tree_leaves(tree) == [1, 2, 3]


def test_a_rest_that_shrinks_while_it_is_flattened_was_taken_whole(node):
    def flatten(_):
        other.clear()
        return (), None

    emptying = node(flatten)
    other = []
    spec = pt.tree_structure([[0], [0], emptying], namespace="robust")
    other.extend([[1], [2], emptying])

    assert spec.flatten_up_to(other) == [1, 2]
    assert other == []


def test_errors_of_callbacks_pass_and_leave_nothing_behind(node):
    class OwnError(Exception):
        pass

    def fail(*_):
        raise OwnError

    for call in (
        lambda: pt.tree_flatten([1, [2]], fail),
        lambda: pt.tree_flatten([1, node(fail)], namespace="robust"),
        lambda: pt.tree_map(fail, [1, 2]),
        lambda: pt.tree_structure(node(lambda _: ((1,), 0), fail), namespace="robust").unflatten(
            [1]
        ),
    ):
        with pytest.raises(OwnError):
            call()


def test_callbacks_may_call_the_library_again(node):
    inner = {"b": 1, "a": [2]}

    def is_leaf(subtree):
        assert pt.tree_leaves(inner) == [2, 1]
        return False

    outer = node(lambda _: ((pt.tree_map(abs, inner),), None))

    assert pt.tree_leaves([outer, 3], is_leaf, namespace="robust") == [2, 1, 3]


def test_a_flatten_function_is_called_once_a_node(node):
    calls = []

    def flatten(_):
        calls.append(1)
        return iter([1, 2]), None

    tree = node(flatten)
    assert pt.tree_leaves(tree, namespace="robust") == [1, 2]
    assert len(calls) == 1
    pt.tree_map(lambda *x: x, tree, tree, namespace="robust")
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        (None, TypeError, r"must return \(children, metadata\) or .*, got None"),
        ([(), None], TypeError, "must return"),
        (((),), TypeError, "must return"),
        (((), 1, 2, 3), TypeError, "must return"),
        ((3, None), TypeError, "not iterable"),
        (((1, 2), None, ("a",)), ValueError, "returned 2 children and 1 entries"),
        (((1, 2), None, 3), TypeError, "not iterable"),
    ],
)
def test_a_flatten_function_must_return_what_it_should(node, result, error, text):
    from pytree_core import _reference as reference

    tree = node(lambda _: result)
    for flatten in (pt.tree_flatten, pt.tree_leaves, reference.tree_flatten):
        with pytest.raises(error, match=text):
            flatten([tree], namespace="robust")


@needs_native("promises this")
def test_types_may_be_unregistered_while_they_are_flattened():
    class Fleeting:
        pass

    def flatten(_):
        pt.unregister_pytree_node(Fleeting, namespace="fleeting")
        gc.collect()
        return (1, Fleeting()), None

    pt.register_pytree_node(Fleeting, flatten, lambda *_: None, namespace="fleeting")
    tree = Fleeting()
    with pytest.raises(ValueError, match="not registered"):
        # The call sees the registration of its beginning, so the inner one is a node too.
        pt.tree_leaves(tree, namespace="fleeting")
    assert pt.tree_leaves(tree, namespace="fleeting") == [tree]


def test_unflatten_may_change_its_leaves_on_the_way(node):
    leaves = [1, 2, 3]

    def unflatten(metadata, children):
        leaves.clear()
        return children

    spec = pt.tree_structure([node(lambda _: ((0,), None), unflatten), 0, 0], namespace="robust")

    assert spec.unflatten(leaves) == [(1,), 2, 3]


@needs_native("promises this")
def test_incomplete_sequences_are_never_seen(node):
    def look(*_):
        for thing in gc.get_objects():
            if type(thing) in (list, tuple):
                thing[:1]  # crashes if the first element is not there
        return False

    tree = node(lambda _: (look() or (1, 2), None), lambda _, children: look() or children)

    assert pt.tree_map(look, [1, (2, [3])]) == [False, (False, [False])]
    assert pt.tree_leaves([1, (2, [3])], look) == [1, 2, 3]
    assert pt.tree_map(abs, [tree, tree], namespace="robust") == [(1, 2), (1, 2)]


def test_threads_may_flatten_and_register_at_once():
    errors = []

    def flatten():
        try:
            for _ in range(2000):
                tree = {"b": [Box([1, 2])], "a": Point(3, (4,))}
                assert pt.tree_map(lambda x: x, tree) == tree
        except Exception as error:
            errors.append(error)

    def register():
        for _ in range(300):
            cls = type("Node", (), {})
            pt.register_pytree_node(cls, lambda _: ((), None), lambda *_: 0, namespace="thread")
            pt.unregister_pytree_node(cls, namespace="thread")

    threads = [threading.Thread(target=work) for work in (flatten, flatten, register, register)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_subinterpreter_cannot_import_the_core():
    program = """
try:
    import _interpreters as interpreters
    run = interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
code = "try: import pytree_core\\nexcept ImportError as error: print(error.__cause__ or error)"
run(interpreters.create(), code + "\\nimport sys; sys.stdout.flush()")
"""
    assert "does not support" in run(program)


def test_a_second_import_keeps_the_types():
    program = """
import sys
import pytree_core
old = pytree_core.tree_structure([1])
for name in [name for name in sys.modules if name.startswith("pytree_core")]:
    del sys.modules[name]
import pytree_core
print(old == pytree_core.tree_structure([1]), old.compose(pytree_core.tree_structure({})))
"""
    assert run(program) == "True TreeSpec([{}])"

"""The stub, the docstrings and the public names, which drift unless they are compared."""

import ast
import doctest
import importlib
import importlib.metadata
import inspect
from pathlib import Path

import pytest
import pytree_core as pt
from pytree_backend import needs_native

PUBLIC = [name for name in vars(pt) if not name.startswith("_") and name != "PyTree"]


def stub():
    path = Path(inspect.getfile(pt)).parent / "_native.pyi"
    return ast.parse(path.read_text(encoding="utf-8")).body


def native_core():
    return importlib.import_module("pytree_core._native")


def names_in(body):
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, ast.AnnAssign):
            yield statement.target.id


@needs_native("has a stub")
def test_the_stub_names_exactly_what_the_core_has():
    public = {name for name in vars(native_core()) if not name.startswith("__")}

    assert set(names_in(stub())) == public


@needs_native("has a stub")
def test_the_stub_names_exactly_the_methods_of_a_treespec():
    (body,) = (node.body for node in stub() if getattr(node, "name", "") == "TreeSpec")
    invisible = {"__doc__", "__module__", "__repr__"}

    assert set(names_in(body)) == set(vars(pt.TreeSpec)) - invisible


@needs_native("has a stub")
def test_the_stub_has_the_signatures_of_the_core():
    for node in stub():
        if not isinstance(node, ast.FunctionDef) or node.name in ("publish", "mismatches"):
            continue
        arguments = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
        signature = inspect.signature(getattr(native_core(), node.name))
        plain = [n for n, p in signature.parameters.items() if p.kind is not p.VAR_POSITIONAL]
        assert plain == arguments


@needs_native("documents itself")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_with_an_example(name):
    thing = getattr(pt, name)
    if inspect.ismodule(thing):
        return
    tests = doctest.DocTestFinder(recurse=False).find(thing, name)

    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@needs_native("documents itself")
@pytest.mark.parametrize("name", [n for n in PUBLIC if n.startswith(("tree_", "all", "prefix"))])
def test_the_options_are_the_same_everywhere(name):
    parameters = inspect.signature(getattr(pt, name)).parameters
    if name in ("tree_unflatten", "tree_transpose", "tree_replace_nones"):
        return
    assert {"is_leaf", "none_is_leaf", "namespace"} <= set(parameters)
    assert parameters["namespace"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_examples_of_the_readme_run_as_one_script(capsys):
    pytest.importorskip("torch")
    readme = Path(__file__).parent.parent / "README.md"
    if not readme.exists():
        pytest.skip("the tests are not beside the README")
    blocks = readme.read_text(encoding="utf-8").split("```python\n")[1:]
    lines = "\n".join(block.split("```")[0] for block in blocks).splitlines()
    exec("\n".join(lines), {})

    printed = capsys.readouterr().out.splitlines()
    promised = [line.split("# ")[1] for line in lines if "print(" in line]
    assert len(printed) == len(promised) > 2
    for text, start in zip(printed, promised, strict=True):
        assert text.startswith(start.removesuffix("..."))


def test_the_version_is_that_of_the_package():
    assert pt.__version__ == importlib.metadata.version("pytree-core")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pt.nothing  # noqa: B018

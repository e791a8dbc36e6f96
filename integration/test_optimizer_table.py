"""The table of optimizers in the README of diffopt-explicit lists all, and what is fused."""

import re
from pathlib import Path

import diffopt_explicit
import pytest
import torch
from diffopt_explicit import _fused, _recipes, _recipes_adam, _recipes_large
from diffopt_explicit._chain import Chain

README = Path(__file__).parents[1] / "packages" / "diffopt-explicit" / "README.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", README.read_text(), re.MULTILINE))


def test_every_recipe_has_a_row():
    modules = (_recipes, _recipes_adam, _recipes_large)
    recipes = {
        name
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    }

    assert set(ROWS) == recipes


@pytest.mark.parametrize("name", ROWS)
def test_what_is_called_one_native_call_is_one(name, monkeypatch):
    calls = []
    for rule, kernel in _fused.KERNELS.items():
        spy = lambda *a, of=kernel.step, **k: calls.append(of) or of(*a, **k)
        monkeypatch.setitem(_fused.KERNELS, rule, kernel._replace(step=spy))
    tx, params = getattr(diffopt_explicit, name)(), [torch.ones(2, 2), torch.ones(3, 3)]
    tx.update(params, tx.init(params), params)

    assert isinstance(tx, Chain)
    assert ("yes" if calls else "composed") == ROWS[name]

"""Chains, partitions, overrides: transforms made of transforms."""

import copy
import pickle

import pytest
import torch
from diffopt_explicit import (
    Transform,
    adam,
    adamw,
    add_decayed_weights,
    apply_updates,
    chain,
    freeze,
    override,
    partition,
    scale,
    sgd,
    trace,
)

PARAMS = {"a": torch.tensor([1.0, -2.0]), "b": (torch.tensor(3.0), None)}


@pytest.mark.parametrize(
    "tx",
    [
        sgd(0.1, 0.9, weight_decay=0.1, maximize=True),
        adamw(lr={"a": 0.1, "b": (0.2, None)}),
        chain(scale(2.0), trace(0.5), freeze()),
        partition({"x": adam(), "y": sgd()}, {"a": "x", "b": ("y", None)}),
    ],
    ids=repr,
)
def test_transforms_are_values_that_copy_pickle_and_leave_their_arguments_alone(tx):
    before = copy.deepcopy(PARAMS)
    state = tx.init(PARAMS)
    first = tx.update(PARAMS, state, PARAMS)
    again = pickle.loads(pickle.dumps(tx)).update(PARAMS, state, PARAMS)

    assert isinstance(tx, Transform)
    assert copy.deepcopy(tx) == tx
    assert repr(first) == repr(again)
    assert repr(PARAMS) == repr(before)


def test_chain_passes_updates_states_and_extras_through():
    seen = []

    class Spy:
        def init(self, params):
            return 0

        def update(self, updates, state, params=None, **extra):
            seen.append((updates, state, extra))
            return updates, state + 1

    tx = chain(scale(3.0), Spy())
    _, state = tx.update([torch.ones(1)], tx.init([torch.ones(1)]), value=7)

    assert seen == [([torch.tensor([3.0])], 0, {"value": 7})]
    assert state[1] == 1


def test_chain_refuses_what_is_no_transform():
    with pytest.raises(TypeError, match="argument 1 is <built-in method sin"):
        chain(scale(1.0), torch.sin)
    with pytest.raises(TypeError, match="argument 0 is <class"):
        chain(type(scale(1.0)))


def test_chain_refuses_the_state_of_another():
    with pytest.raises(ValueError, match="has 2 transforms, but the state is that of 1"):
        chain(scale(1.0), scale(2.0)).update(PARAMS, chain(scale(1.0)).init(PARAMS))


def test_partition_equals_each_transform_on_its_own_parameters():
    tx = partition({"x": adam(0.1), "y": sgd(0.1, 0.9)}, {"a": "x", "b": ("y", None)})
    state = tx.init(PARAMS)
    alone = {"a": adam(0.1), "b": sgd(0.1, 0.9)}
    states = {name: one.init(PARAMS[name]) for name, one in alone.items()}
    for _ in range(2):
        updates, state = tx.update(PARAMS, state, PARAMS)
        for name, one in alone.items():
            expected, states[name] = one.update(PARAMS[name], states[name], PARAMS[name])

            assert repr(updates[name]) == repr(expected)


def test_partition_refuses_a_label_without_a_transform():
    with pytest.raises(ValueError, match=r"no transform for the labels \['z'\]"):
        partition({"x": sgd()}, {"a": "z", "b": ("x", None)}).init(PARAMS)


def test_override_reaches_into_chains_and_partitions():
    tx = partition({"x": adam(0.1), "y": sgd(0.1, 0.9)}, {})
    changed = override(tx, lr=0.5, momentum=0.1)

    assert changed == partition({"x": adam(0.5), "y": sgd(0.5, 0.1)}, {})


def test_override_refuses_an_unknown_name_and_lists_the_known():
    with pytest.raises(ValueError, match=r"no hyperparameter `beta`.*'lr'"):
        override(adam(), beta=0.9)


def test_missing_parameters_are_asked_for():
    tx = add_decayed_weights(0.1)
    with pytest.raises(ValueError, match="needs `params`"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_apply_updates_keeps_dtype_and_skips_missing_updates():
    params = [torch.ones(1, dtype=torch.float16), torch.ones(1)]
    moved = apply_updates(params, [torch.full((1,), 0.5), None])

    assert moved[0].dtype == torch.float16
    assert moved[1] is params[1]


def test_updates_of_another_structure_are_refused_with_the_place():
    tx = sgd(0.1, 0.9)
    with pytest.raises(ValueError, match="'b'"):
        tx.update({"a": torch.ones(2)}, tx.init(PARAMS), PARAMS)

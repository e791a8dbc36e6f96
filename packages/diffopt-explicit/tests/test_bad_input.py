"""What cannot be right is refused at the call that caused it, and nothing is changed by then."""

import copy

import pytest
import torch
from diffopt_explicit import (
    Rule,
    adam,
    apply_updates,
    chain,
    clip_by_global_norm,
    muon,
    override,
    scale_by_learning_rate,
    sgd,
    trace,
)
from every_optimizer import EVERY

pytestmark = pytest.mark.usefixtures("path")


def matrices(**kwargs):
    """Parameters that every optimizer takes."""
    return {"a": [torch.ones(2, 3, **kwargs)], "b": torch.ones(2, 2, **kwargs)}


@pytest.fixture(params=EVERY)
def tx(request):
    entry = EVERY[request.param]
    return entry.make(**entry.values)


BAD_PARAMS = {
    "a number": (3.0, r"must be tensors: the leaf at \['a'\]\[0\] is a float"),
    "integers": (torch.ones(2, 3, dtype=torch.int64), r"at \['a'\]\[0\] has dtype torch.int64"),
    "truths": (torch.ones(2, 3, dtype=torch.bool), r"at \['a'\]\[0\] has dtype torch.bool"),
    "complex": (torch.ones(2, 3, dtype=torch.complex64), "must be real: .*view_as_real"),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_parameters_that_cannot_be_moved_are_refused_by_their_place(tx, name):
    bad, message = BAD_PARAMS[name]
    with pytest.raises(TypeError, match=message):
        tx.init({**matrices(), "a": [bad]})


BAD_UPDATES = {
    "shape": (torch.ones(3, 2), ValueError, r"at \['a'\]\[0\] has shape \(3, 2\), but its"),
    "one element": (torch.ones(()), ValueError, r"at \['a'\]\[0\] has shape \(\), but its"),
    "dtype": (
        torch.ones(2, 3, dtype=torch.float64),
        ValueError,
        r"at \['a'\]\[0\] has dtype torch.float64, but its parameter torch.float32. Convert",
    ),
    "integers": (torch.ones(2, 3, dtype=torch.int32), ValueError, "has dtype torch.int32"),
    "complex": (torch.ones(2, 3) * 1j, ValueError, "has dtype torch.complex64"),
    "device": (
        torch.ones(2, 3, device="meta"),
        ValueError,
        r"has device meta, but its parameter cpu",
    ),
    "a number": (1.0, TypeError, r"must be tensors or None: the one at \['a'\]\[0\] is a float"),
    "structure": ([], ValueError, "another structure than the parameters: at .*'a'"),
}


@pytest.mark.parametrize("name", BAD_UPDATES)
def test_updates_that_do_not_match_are_refused_by_their_place(tx, name):
    bad, error, message = BAD_UPDATES[name]
    params = matrices()
    state = tx.init(params)
    before = copy.deepcopy((state, params))
    updates = {**params, "a": bad if isinstance(bad, list) else [bad]}
    with pytest.raises(error, match=message):
        tx.update(updates, state, params)

    assert repr((state, params)) == repr(before)


def test_the_state_of_other_parameters_is_refused(tx):
    params = matrices()
    others = {"a": [torch.ones(4, 4)], "b": torch.ones(2, 2)}
    first = tx.transforms[0]
    if not isinstance(first, Rule) or first.needs_params:
        return  # has no state to tell them apart by
    with pytest.raises(ValueError, match=r"at \['a'\]\[0\] has shape .* but its state"):
        tx.update(params, tx.init(others), params)


def test_the_state_of_another_optimizer_is_refused(tx):
    params = matrices()
    foreign = tuple(chain(trace(0.9)).init(params)[0] for _ in tx.transforms)
    with pytest.raises(TypeError, match=r"needs the (Rule|Step)State that its own `init`"):
        tx.update(params, foreign, params)
    with pytest.raises(TypeError, match="state of a chain is a tuple, got None"):
        tx.update(params, None, params)


def signed(name):
    """Hyperparameters that may be negative."""
    return name in {"dampening", "beta2_decay", "a", "b", "c"}


@pytest.mark.parametrize("bad", [-0.5, float("nan"), "0.1", None])
def test_hyperparameters_that_make_no_sense_are_refused_by_name(bad):
    for entry in EVERY.values():
        for name in entry.values:
            if bad == -0.5 and signed(name):
                continue
            if bad is None and name == "eps1":  # which means: that of the dtype
                continue
            with pytest.raises((ValueError, TypeError), match=r"`\w+(\[\d\])?` must be "):
                entry.make(**{**entry.values, name: bad})


def test_a_schedule_gives_numbers():
    params = matrices()
    for tx in (sgd(lambda step: params), adam(betas=(0.9, lambda step: None))):
        with pytest.raises(
            TypeError, match=r"is a schedule, and gave a \w+ in step 0\. It must give"
        ):
            tx.update(params, tx.init(params), params)


def test_scheduled_values_are_checked_in_their_step():
    for entry in EVERY.values():
        for name in entry.values:
            if signed(name):
                continue
            falling = lambda step, first=entry.values[name]: -0.5 if step else first
            tx = entry.make(**{**entry.values, name: falling})
            params = matrices()
            _, state = tx.update(params, tx.init(params), params)
            with pytest.raises(ValueError, match=r"` must be .* got -0.5"):
                tx.update(params, state, params)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgd({"a": 0.1, "b": -1.0}), ValueError, r"`lr\['b'\]` must be at least 0"),
        (lambda: sgd(torch.tensor(1)), TypeError, "`lr` must be a floating-point tensor"),
        (lambda: sgd([0.1, "fast"]), TypeError, r"`lr\[1\]` must be a number or a tensor"),
        (lambda: adam(betas=0.9), ValueError, "`betas` must be 2 hyperparameters, got 0.9"),
        (lambda: adam(betas=(0.9,)), ValueError, "`betas` must be 2 hyperparameters"),
        (lambda: muon(adjust_lr_fn="mine"), ValueError, "`adjust_lr_fn` must be None, 'orig"),
        (lambda: muon(ns_steps=100), ValueError, r"`ns_steps` must be in \[0, 100\)"),
        (lambda: clip_by_global_norm([1.0]), TypeError, "`max_norm` is one for all parameters"),
    ],
)
def test_other_hyperparameters_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [sgd, adam, trace, lambda h: adam(betas=(0.5, h))])
def test_trees_of_hyperparameters_of_another_structure_are_refused(make):
    tx, params = make({"other": 0.1}), matrices()
    with pytest.raises(ValueError, match="` is a tree of another structure than the parameters"):
        tx.update(params, tx.init(params), params)


def test_applied_updates_are_checked_but_may_be_wider():
    params = {"w": torch.ones(3, dtype=torch.float16)}
    assert apply_updates(params, {"w": torch.ones(3)})["w"].dtype == torch.float16
    with pytest.raises(ValueError, match=r"at \['w'\] has shape \(1,\), but its parameter \(3,\)"):
        apply_updates(params, {"w": torch.ones(1)})
    with pytest.raises(ValueError, match="another structure than the parameters"):
        apply_updates(params, {"v": torch.ones(3)})


def test_rates_that_would_enlarge_a_parameter_are_refused():
    tx, params = chain(scale_by_learning_rate({"w": torch.ones(3)})), {"w": torch.ones(1)}
    updates, _ = tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"at \['w'\] has shape \(3,\)"):
        apply_updates(params, updates)


def test_overrides_are_checked_as_any_other():
    with pytest.raises(ValueError, match=r"`lr` must be at least 0, got -1\.0"):
        override(adam(), lr=-1.0)

"""What problems and graphs of them refuse when they are declared."""

import functools
from dataclasses import replace

import pytest
import torch
from diffopt_implicit import CG, Engine
from nested_problems import Momentum
from problem_chain import HIGH, LOW, chain
from torch import nn

# Problems


def test_a_name_is_an_identifier():
    for name in ("two words", "_hidden", "", 3):
        with pytest.raises(ValueError, match=r"must be an identifier"):
            replace(LOW, name=name)


def test_upper_is_no_string():
    with pytest.raises(TypeError, match=r"got the string 'high'. Write `upper=\['high'\]`"):
        replace(LOW, upper="high")


def test_lower_says_how_to_differentiate():
    with pytest.raises(TypeError, match=r"must be a mapping of names to methods, .* got \['low'\]"):
        replace(HIGH, lower=["low"])


def test_a_problem_is_above_or_below():
    with pytest.raises(ValueError, match=r"names `low` in `upper` and in `lower`"):
        replace(HIGH, upper=["low"])


@pytest.mark.parametrize("field", ["unroll_steps", "gradient_accumulation"])
def test_counts_are_positive(field):
    with pytest.raises(ValueError, match=rf"`{field}` must be positive, got 0"):
        replace(LOW, **{field: 0})


def test_no_problem_warms_up_for_less_than_nothing():
    with pytest.raises(ValueError, match=r"`warmup_steps` must be at least 0, got -1"):
        replace(LOW, warmup_steps=-1)


def test_an_optimizer_is_made_by_the_engine():
    with pytest.raises(TypeError, match=r"must make an optimizer for a list of tensors.*got SGD"):
        replace(LOW, optimizer=torch.optim.SGD([torch.zeros(1)]))


def test_an_optimizer_steps_the_parameters_of_its_problem():
    other = lambda tensors: torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(ValueError, match=r"`low` made an optimizer of other tensors"):
        Engine([replace(LOW, optimizer=other), HIGH])
    with pytest.raises(TypeError, match=r"`low` made a list, and an optimizer of torch"):
        Engine([replace(LOW, optimizer=lambda tensors: []), HIGH])


def test_a_transform_has_no_schedule_of_torch():
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    with pytest.raises(TypeError, match=r"is for optimizers of torch, and its `optimizer` is a"):
        replace(LOW, optimizer=Momentum(0.1), scheduler=schedule)


def test_mixed_precision_is_of_sixteen_bits():
    with pytest.raises(ValueError, match=r"`autocast` of `low` must be None, torch.bfloat16 or"):
        replace(LOW, autocast=torch.float64)


def test_params_are_floating_point_tensors_and_some():
    with pytest.raises(TypeError, match=r"The params of `low` must hold floating-point tensors"):
        Engine([replace(LOW, params=torch.zeros(2, dtype=torch.int64)), HIGH])
    with pytest.raises(ValueError, match=r"`low` has no parameters to train: its `params` hold no"):
        Engine([replace(LOW, params={}), HIGH])
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"hold no tensor that requires grad"):
        Engine([replace(LOW, params=frozen), HIGH])


# Graphs


def test_there_are_problems_and_each_has_its_name():
    with pytest.raises(ValueError, match=r"There is no problem to solve"):
        Engine([])
    with pytest.raises(ValueError, match=r"Two problems have the name `low`"):
        Engine([LOW, LOW])
    with pytest.raises(TypeError, match=r"sequence of `Problem`s, got int"):
        Engine([LOW, 3])


def test_references_are_to_other_problems():
    with pytest.raises(ValueError, match=r"`upper` of `low` names `hihg`, and there is no such"):
        Engine([replace(LOW, upper=["hihg"]), HIGH])
    with pytest.raises(ValueError, match=r"`lower` of `high` names `x`.* are low, high"):
        Engine([LOW, replace(HIGH, lower={"x": CG()})])
    with pytest.raises(ValueError, match=r"`low` names itself in `upper`"):
        Engine([replace(LOW, upper=["low"]), HIGH])


def test_a_cycle_is_shown():
    with pytest.raises(
        ValueError, match=r"make a cycle.*(low above high|high above low).*solved f"
    ):
        Engine([LOW, replace(HIGH, upper=["low"], lower={})])


def test_a_problem_that_nothing_reaches_is_refused():
    with pytest.raises(ValueError, match=r"`low` is unreachable.*Add it to `lower` of `high`, as"):
        Engine([LOW, replace(HIGH, lower={})])


def test_a_solution_depends_on_what_differentiates_it():
    with pytest.raises(ValueError, match=r"the solution of `low` does not depend on `high`"):
        Engine([replace(LOW, upper=[]), HIGH])


def test_every_way_has_a_method():
    one = replace(chain()[0], upper=["two", "three"])
    three = replace(chain()[2], lower={"one": CG()})
    with pytest.raises(ValueError, match=r"There is no method for `two` in `three`: `three` moves"):
        Engine([one, chain()[1], three])

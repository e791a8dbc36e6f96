"""What a program refuses, and what it says then."""

from dataclasses import replace

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    EarlyStopping,
    Engine,
    OneStep,
    Problem,
    UnrolledSteps,
)
from nested_problems import Momentum, half
from problem_chain import HIGH, LOW, SGD, chain
from torch import nn

# Methods


@pytest.mark.parametrize("method", [None, CG, "cg"])
def test_a_missing_method_is_named(method):
    with pytest.raises(TypeError, match=r"no method for the solution of `low` in `high`.*`CG"):
        Engine([LOW, replace(HIGH, lower={"low": method})])


def test_a_method_that_moves_what_is_solved_is_refused():
    with pytest.raises(
        ValueError, match=r"`BOME` is no method for the solution of `low` in `high`"
    ):
        Engine([LOW, replace(HIGH, lower={"low": BOME()})])


@pytest.mark.parametrize("method", [SAMA(), F2SA()])
def test_first_order_methods_are_refused_where_second_derivatives_are_needed(method):
    with pytest.raises(
        NotImplementedError, match=rf"`{type(method).__name__}` differentiates the "
    ):
        Engine(chain(two={"lower": {"one": method}}))
    Engine(chain(three={"lower": {"two": method}}))


def test_unrolls_need_functions():
    with pytest.raises(TypeError, match=r"needs an optimizer that is a function.*from_torch"):
        Engine([LOW, replace(HIGH, lower={"low": UnrolledSteps()})])


def test_no_more_is_unrolled_than_was_stepped():
    low = replace(LOW, optimizer=Momentum(0.1), unroll_steps=3)
    with pytest.raises(ValueError, match=r"`UnrolledSteps\(4\)` of .*: it takes 3 steps each time"):
        Engine([low, replace(HIGH, lower={"low": UnrolledSteps(4)})])
    with pytest.raises(ValueError, match=r"`steps` must be positive, got 0"):
        UnrolledSteps(0)


def test_no_steps_are_unrolled_that_differentiate_others():
    changes = {"two": {"optimizer": Momentum(0.1)}, "three": {"lower": {"two": UnrolledSteps()}}}
    with pytest.raises(NotImplementedError, match=r"its own steps differentiate other solutions"):
        Engine(chain(**changes))


def test_no_scaled_steps_are_unrolled():
    low = replace(LOW, optimizer=Momentum(0.1), autocast=torch.float16)
    with pytest.raises(NotImplementedError, match=r"its float16 steps are scaled"):
        Engine([low, replace(HIGH, lower={"low": UnrolledSteps()})])


def test_running_statistics_are_refused_in_what_is_differentiated():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    x = torch.randn(5, 2)
    low = replace(LOW, params=net, loss=lambda at, _: half(at.low(x) - at.high))
    with pytest.raises(ValueError, match=r"the batch norm of `low` writes its running statistics"):
        Engine([low, HIGH])
    net.eval()
    read = lambda at, _: half(at.low(x) - 1)
    Engine([low, replace(HIGH, loss=read, lower={"low": OneStep()})]).run(1)


def test_what_is_differentiated_above_is_not_rolled_back_below():
    with pytest.raises(
        ValueError, match=r"`one` is rolled back after each step of `two`, and `thr"
    ):
        Engine(chain(one={"roll_back": True}))


# Losses


def test_a_loss_reads_what_its_problem_names():
    low = replace(LOW, upper=["high"], loss=lambda at, _: half(at.low - at.hihg))
    with pytest.raises(AttributeError, match=r"`low` reads `hihg`, and .* to low, high alone"):
        Engine([low, HIGH]).run(1)


def test_a_loss_is_a_scalar():
    with pytest.raises(ValueError, match=r"loss of `low` must return a scalar tensor, got \(2,\)"):
        Engine([replace(LOW, loss=lambda at, _: at.low - at.high), HIGH]).run(1)
    with pytest.raises(ValueError, match=r"must return a scalar tensor, got float"):
        Engine([replace(LOW, loss=lambda at, _: 1.0), HIGH]).run(1)


def test_a_loss_depends_on_its_parameters():
    with pytest.raises(ValueError, match=r"depends on no parameters of any problem"):
        Engine([replace(LOW, loss=lambda at, _: half(at.low.detach())), HIGH]).run(1)
    w = {"used": torch.zeros(1), "idle": torch.zeros(1)}
    problem = Problem("w", w, lambda at, _: half(at.w["used"] - 1), SGD)
    with pytest.raises(ValueError, match=r"parameters \['idle'\] of `w` have no gradient"):
        Engine([problem]).run(1)


def test_a_loss_reads_modules_from_its_argument():
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    read_outside = lambda at, _: half(net(x) - at.high) + half(at.low(x))
    message = r"`low` uses tensors that require grad .* `net.weight` of shape \(2, 2\), `net.bias`"
    with pytest.raises(ValueError, match=message):
        Engine([replace(LOW, params=net, loss=read_outside), HIGH]).run(1)


def test_a_loss_depends_on_the_constants_that_it_names():
    with pytest.raises(
        ValueError, match=r"`low` does not depend on `high`, which it names in `upp"
    ):
        Engine([replace(LOW, loss=lambda at, _: half(at.low)), HIGH]).run(1)


def test_a_loss_depends_on_the_solutions_that_it_names():
    with pytest.raises(ValueError, match=r"`high` does not depend on the solution of `low`"):
        Engine([LOW, replace(HIGH, loss=lambda at, _: half(at.high))]).run(1)


def test_a_parameter_that_no_loss_reads_is_named():
    high = replace(
        HIGH,
        params={"a": torch.zeros(2), "b": torch.zeros(1)},
        loss=lambda at, _: half(at.low - 1),
    )
    low = replace(LOW, loss=lambda at, _: half(at.low - at.high["a"]))
    with pytest.raises(ValueError, match=r"\['b'\] of `high` have no gradient: neither its own"):
        Engine([low, high]).run(1)


def test_a_solution_that_was_not_begun_is_not_differentiated():
    with pytest.raises(ValueError, match=r"`low` has taken no step yet, and `high` is to differ"):
        Engine([replace(LOW, warmup_steps=2), HIGH]).run(1)
    low = replace(LOW, warmup_steps=2, optimizer=Momentum(0.1))
    with pytest.raises(ValueError, match=r"`low` has taken no step"):
        Engine([low, replace(HIGH, lower={"low": UnrolledSteps()})]).run(1)


def test_steps_that_lead_elsewhere_the_second_time_are_refused():
    calls = []

    def fickle(at, _):
        calls.append(0)
        return half(at.low - len(calls) * at.high - 1)

    low = replace(LOW, optimizer=Momentum(0.1), loss=fickle)
    high = replace(HIGH, params=torch.ones(2), lower={"low": UnrolledSteps()})
    with pytest.raises(ValueError, match=r"The last steps of `low`, taken again, lead elsewhere"):
        Engine([low, high]).run(1)


# Data


def test_data_are_many_batches_that_can_begin_anew():
    for data, message in (
        (torch.zeros(3), "is one batch, and a collection"),
        ((torch.zeros(3), torch.zeros(3)), "is one batch, and a collection"),
        (3, "must be an iterable of batches, .* got int"),
        (iter([1]), "is an iterator, which ends once for all"),
    ):
        with pytest.raises(TypeError, match=message):
            Engine([replace(LOW, data=data), HIGH])
    with pytest.raises(ValueError, match=r"data of `low` holds no batch"):
        Engine([replace(LOW, data=[]), HIGH]).run(1)


# Engines


def test_stopping_waits_for_a_measure_that_there_is():
    with pytest.raises(ValueError, match=r"waits for 'error', and there is no `validate`"):
        Engine([LOW, HIGH], early_stopping=EarlyStopping("error"))
    engine = Engine(
        [LOW, HIGH], early_stopping=EarlyStopping("error"), validate=lambda engine: {"loss": 1.0}
    )
    with pytest.raises(ValueError, match=r"waits for 'error', and `validate` returned 'loss'"):
        engine.run(1)
    with pytest.raises(ValueError, match=r"`mode` must be 'min' or 'max', got 'least'"):
        EarlyStopping("error", mode="least")


def test_an_unknown_problem_is_named():
    with pytest.raises(KeyError, match=r"There is no problem 'x'; there are high, low"):
        Engine([LOW, HIGH]).params("x")


def test_a_state_of_other_problems_is_refused():
    engine = Engine([LOW, HIGH])
    with pytest.raises(ValueError, match=r"no state of an `Engine`"):
        engine.load_state_dict({"model": 3})
    with pytest.raises(ValueError, match=r"of the problems one, three, two, and these are high, l"):
        engine.load_state_dict(Engine(chain()).state_dict())


def test_a_failed_step_leaves_parameters_as_they_were():
    high = replace(HIGH, params=torch.ones(2), lower={"low": CG()})
    low = replace(LOW, loss=lambda at, _: -half(at.low - at.high))  # no minimum
    engine = Engine([low, high])
    engine.step()
    before = engine.params("high").clone()
    with pytest.raises(RuntimeError, match=r"not positive definite"):
        engine.step()
    assert torch.equal(engine.params("high"), before)
    assert engine.counts() == {"high": 0, "low": 1}

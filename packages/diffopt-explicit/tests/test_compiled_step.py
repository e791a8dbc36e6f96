"""Whole inner steps as graphs: what is in them, and which are compiled in parts."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from diffopt_explicit import (
    Compiled,
    Recorded,
    Replay,
    Store,
    adam,
    add_noise,
    chain,
    clip_by_global_norm,
    cosine_decay,
    inject,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
    unroll,
)
from every_optimizer import EVERY
from torch import tensor
from torch._dynamo.utils import counters
from torch.autograd import grad

WAY = Compiled(backend="eager")
F64 = torch.float64
STORE = Store()


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


START = {"w": torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3), "b": torch.ones(2, dtype=F64)}
BATCHES = [torch.linspace(0, i, 3, dtype=F64) for i in range(1, 7)]


def loss(params, weight, x):
    return ((params["w"] @ x + params["b"] - 1) ** 2).sum() * weight.exp() + params["w"].cos().sum()


def gradients(make, gradient, adjoint=STORE, learned=(), **options):
    """Of a sum over all that an unroll gives, with respect to all that it depends on."""
    params = {name: value.clone().requires_grad_() for name, value in START.items()}
    learned = [tensor(value, dtype=F64, requires_grad=True) for value in learned]
    weight = tensor(-0.5, dtype=F64, requires_grad=True)
    given = {"batches": BATCHES, "meta_params": weight, **options}
    end = unroll(loss, make(*learned), params, gradient=gradient, adjoint=adjoint, **given)
    total = sum(p.cos().sum() for p in end.params.values()) + end.losses.square().sum()
    return grad(total, [*params.values(), weight, *learned], allow_unused=True)


def check(make, adjoint=STORE, **options):
    expected = gradients(make, Recorded(), **options)
    actual = gradients(make, WAY, adjoint, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


LEARNED = {
    "adam's rate and betas": (lambda lr, b1, b2: adam(lr, (b1, b2)), (0.05, 0.8, 0.9)),
    "a schedule's start and end": (
        lambda start, share: adam(cosine_decay(start, 5, share)),
        (0.1, 0.2),
    ),
    "a rate for each parameter": (
        lambda one, other: sgd({"w": one, "b": other}, momentum=0.9, nesterov=True),
        (0.05, 0.02),
    ),
    "a rate in the state": (lambda lr: inject(sgd(), lr=lr), (0.05,)),
    "a bound on the norm": (
        lambda bound: chain(
            clip_by_global_norm(bound), scale_by_adam(), scale_by_learning_rate(0.1)
        ),
        (0.5,),
    ),
}


@pytest.mark.parametrize("case", LEARNED)
def test_what_an_optimizer_learns_gets_its_gradient_from_two_graphs(case):
    make, learned = LEARNED[case]
    check(make, learned=learned)

    # The end of a schedule, and the first step of a momentum, have graphs of their own.
    assert graphs() == (4 if "parameter" in case else 2)


@pytest.mark.parametrize("name", ["amsgrad", "lion"])
def test_optimizers_of_every_sort_are_one_graph(name):
    entry = EVERY[name]
    make = lambda *values: entry.make(**dict(zip(entry.values, values, strict=True)))
    check(make, learned=entry.values.values())

    assert graphs() == 2


@pytest.mark.parametrize("verify", ["last", "always"])
def test_replayed_steps_are_pulled_back_by_the_graph_of_the_derivative(verify):
    check(adam, Replay(snapshots=2, verify=verify))

    assert graphs() == 2


def test_replayed_steps_give_their_gradients_to_what_rates_were_computed_from():
    make = lambda raw, b: chain(sgd(raw.exp() * 2, momentum=b), scale_by_learning_rate(raw.exp()))
    check(make, Replay(snapshots=2), learned=(-1.5, 0.9))


@pytest.mark.parametrize("options", [{"detach_every": 2}, {"truncate": 3}, {"first_order": True}])
def test_truncation_is_the_same(options):
    check(adam, **options)


def test_an_unroll_that_stops_by_itself_and_one_without_a_graph():
    until = lambda params, value: value < 4
    check(adam, until=until)
    with torch.no_grad():
        params, weight = START, tensor(-0.5, dtype=F64)
        result = unroll(loss, adam(), params, batches=BATCHES, meta_params=weight, gradient=WAY)
    expected = unroll(loss, adam(), params, batches=BATCHES, meta_params=weight)

    assert not result.losses.requires_grad
    torch.testing.assert_close(result.losses, expected.losses.detach())
    assert graphs() == 2


def test_a_second_run_goes_on_from_the_state_of_the_first():
    ends = []
    for way in (Recorded(), WAY):
        half = unroll(lambda w: (w**4).sum(), adam(0.1), START["b"], steps=2, gradient=way)
        start = half.params.detach().requires_grad_()
        rest = unroll(
            lambda w: (w**4).sum(),
            adam(0.1),
            start,
            steps=3,
            opt_state=half.opt_state,
            gradient=way,
        )
        ends.append((rest.params, grad(rest.params.sum(), start)[0], rest.opt_state[0].step))
    torch.testing.assert_close(ends[1], ends[0])


def test_other_hyperparameters_of_the_same_optimizer_are_not_those_of_the_first():
    for lr in (0.1, 0.2, tensor(0.4, dtype=F64), tensor(0.5, dtype=F64)):
        check(lambda lr=lr: sgd(lr))


def test_the_callers_own_schedule_may_be_learned():
    make = lambda a, b: sgd(lambda t: a * b**t)
    check(make, learned=(0.05, 0.9))
    check(make, Replay(snapshots=2), learned=(0.05, 0.9))

    assert graphs() == 2  # of the gradient alone


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")  # torch 2.12
def test_noise_is_the_same_on_the_way_back():
    make = lambda scale: chain(add_noise(scale), sgd(0.05))
    found = []
    for way in (Recorded(), WAY):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*AddNoise.* is not: ")
            found.append(gradients(make, way, learned=(0.1,)))

    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@dataclass(frozen=True)
class Jittering:
    """A transform that draws torch's own random numbers."""

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        jitter = lambda update: -0.05 * update * (1 + 0.1 * torch.randn_like(update))
        return {name: jitter(update) for name, update in updates.items()}, state


def test_random_numbers_of_an_optimizer_are_not_in_a_graph():
    seen = []

    def spy(module, inputs):
        seen.append(module.code)
        return module.forward

    found = []
    for way in (Recorded(), Compiled(backend=spy)):
        torch.manual_seed(3)
        found.append(gradients(Jittering, way))

    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)
    assert len(seen) == 2
    assert not any("rand" in code for code in seen)


@dataclass(frozen=True)
class Branching:
    """A transform that looks at values, so that it is no graph."""

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        sign = -0.1 if updates["w"].sum() > 0 else -0.2
        return {name: sign * update for name, update in updates.items()}, state


@dataclass(frozen=True)
class Closing:
    """A transform that does not show what it depends on from some step on."""

    rate: object
    begin: int = 0

    def init(self, params):
        return 0

    def update(self, updates, state, params=None, **extra):
        rate = 0.05 if state < self.begin else self.rate.value
        return {name: -rate * update for name, update in updates.items()}, state + 1


class Holder:
    """Holds a tensor."""

    def __init__(self, value):
        self.value = value


def test_an_optimizer_that_is_no_graph_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=r"loss is compiled, but Branching\(\) is not: "):
        check(Branching)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Branching)


def test_a_tensor_that_a_transform_hides_gets_its_gradient():
    check(lambda rate: Closing(Holder(rate)), learned=(0.05,))
    check(lambda rate: Closing(Holder(rate.exp() * 0.05)), learned=(0.05,))
    # Not every step is of the sort of the first, which alone can be looked at.
    check(lambda rate: Closing(Holder(rate), begin=2), learned=(0.05,))
    check(lambda rate: Closing(Holder(rate), begin=2), Replay(snapshots=2), learned=(0.05,))


def test_second_derivatives_with_learned_rates():
    found = []
    for way in (Recorded(), WAY):
        lr = tensor(0.05, dtype=F64, requires_grad=True)
        w = torch.linspace(1, 2, 3, dtype=F64).requires_grad_()
        end = unroll(lambda w: (w**4).sum() / 9, adam(lr), w, steps=2, gradient=way).params
        first = grad(end.square().sum(), [w, lr], create_graph=True)
        found.append(grad(sum(g.square().sum() for g in first), [w, lr]))

    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)

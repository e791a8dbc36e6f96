import math
import pickle

import pytest
import torch
from diffopt_explicit import (
    constant,
    cosine_decay,
    exponential_decay,
    join,
    linear,
    one_cycle,
    piecewise_constant,
    polynomial,
    sgd,
    unroll,
    warmup_cosine,
)

KNOWN = [
    (polynomial(30.0, 10.0, 2, 10, 4), {0: 30, 4: 30, 9: 15, 14: 10, 19: 10}),
    (exponential_decay(1.0, 2, 2.0, 5), {0: 1, 5: 1, 6: math.sqrt(2), 7: 2, 9: 4}),
    (exponential_decay(1.0, 2, 2.0, staircase=True), {0: 1, 1: 1, 2: 2, 3: 2, 4: 4}),
    (cosine_decay(0.1, 10), {0: 0.1, 5: 0.05, 10: 0, 99: 0}),
    (piecewise_constant(0.1, {3: 2.0, 6: 0.5}), {0: 0.1, 2: 0.1, 3: 0.2, 5: 0.2, 6: 0.1, 99: 0.1}),
    (warmup_cosine(0.0, 1.0, 10, 110, 0.1), {0: 0, 5: 0.5, 10: 1, 60: 0.55, 110: 0.1, 999: 0.1}),
    (linear(1.0, 3.0, 4, begin=2), {0: 1, 2: 1, 3: 1.5, 6: 3, 7: 3}),
    (join([constant(5.0), linear(1.0, 0.0, 2)], [3]), {2: 5, 3: 1, 4: 0.5, 5: 0}),
    (one_cycle(2.0, 10, rising=0.5, init_divisor=4.0, end_divisor=5.0), {0: 0.5, 5: 2, 10: 0.1}),
    (polynomial(3.0, 1.0, 2, 0), {0: 3, 9: 3}),
    (exponential_decay(3.0, 0, 2.0), {0: 3, 9: 3}),
    (exponential_decay(3.0, 5, 0.0), {0: 3, 9: 3}),
    (cosine_decay(3.0, -1), {0: 3, 9: 3}),
]


@pytest.mark.parametrize(("schedule", "values"), KNOWN, ids=lambda value: repr(value)[:60])
def test_values_are_the_known_ones(schedule, values):
    actual = {step: schedule(step) for step in values}

    assert actual == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in KNOWN], ids=repr)
def test_schedules_are_values_that_pickle_and_compare(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


LEARNED = {
    "constant": lambda a, b: constant(a * b),
    "polynomial": lambda a, b: polynomial(a, 0.1 * b, 1.5 * b, 5),
    "exponential": lambda a, b: exponential_decay(a, 2, b),
    "cosine": lambda a, b: cosine_decay(a, 5, b),
    "warmup": lambda a, b: warmup_cosine(0.1 * b, a, 2, 5, 0.1 * b),
    "piecewise": lambda a, b: piecewise_constant(a, {2: b}),
    "one cycle": lambda a, b: one_cycle(a, 5, rising=0.4, init_divisor=4.0 * b, end_divisor=3.0),
    "join": lambda a, b: join([constant(a), cosine_decay(b, 3)], [2]),
}


@pytest.mark.parametrize("name", LEARNED)
def test_parameters_of_schedules_get_exact_hypergradients(name):
    start = torch.tensor([0.4, -0.3], dtype=torch.float64)

    def end(a, b):
        return unroll(lambda w: (w**4).sum(), sgd(LEARNED[name](a, b)), start, steps=4).params

    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 0.7))

    assert torch.autograd.gradcheck(end, (a, b))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmup_cosine(0.0, 1.0, 10, 10), "between 0 and `steps`, got 10 and 10"),
        (lambda: join([constant(1.0)], [3]), "one boundary fewer than schedules"),
        (lambda: join([constant(1.0)] * 3, [3, 3]), "must be positive and rise"),
        (lambda: join([constant(1.0)] * 2, [0]), "must be positive and rise"),
        (lambda: one_cycle(1.0, 2, rising=0.1), "leave steps on both sides"),
        (lambda: polynomial(1.0, 0.0, 2, 10, -1), "`begin` must be a number of steps"),
        (lambda: piecewise_constant(1.0, {0.5: 2.0}), "`scales` must be a number of steps"),
    ],
)
def test_contradictory_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

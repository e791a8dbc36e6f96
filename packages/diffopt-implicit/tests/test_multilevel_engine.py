"""The order in which the problems of a program take their steps."""

import torch
from diffopt_implicit import (
    CG,
    Engine,
    Problem,
)
from multilevel_problems import SGD, follow, half, pair
from torch.testing import assert_close


def test_a_problem_steps_once_for_each_unroll_of_the_one_below():  # O-29
    engine = pair(low={"unroll_steps": 10})
    for i in range(10):
        assert engine.counts() == {"high": 0, "low": i}
        assert engine.step() == "low"
    assert engine.counts() == {"high": 0, "low": 10}
    assert engine.step() == "high"
    assert (engine.counts(), engine.rounds) == ({"high": 1, "low": 10}, 1)


def test_turns_are_nested_from_the_top_to_the_bottom():
    engine = Engine(
        [
            Problem(
                "three",
                torch.zeros(2),
                lambda at, _: half(at.two) + half(at.one - 1),
                SGD,
                lower={"one": CG(), "two": CG()},
            ),
            Problem(
                "two",
                torch.zeros(2),
                lambda at, _: half(at.two - at.three) + half(at.one),
                SGD,
                upper=["three"],
                lower={"one": CG()},
                unroll_steps=2,
            ),
            Problem(
                "one", torch.zeros(2), follow("one", "two"), SGD, upper=["two"], unroll_steps=3
            ),
        ]
    )
    names = [engine.step() for _ in range(24)]
    solve = ["one"] * 3
    assert names == 2 * [*solve, "two", *solve, "two", *solve, "three"]


def test_two_problems_at_the_top_take_turns():
    tops = [
        Problem(
            name,
            torch.zeros(2),
            lambda at, _, sign=sign: half(at.low - sign),
            SGD,
            lower={"low": CG()},
        )
        for name, sign in (("plus", 1), ("minus", -1))
    ]
    low = Problem(
        "low",
        torch.zeros(2),
        lambda at, _: half(at.low - at.plus - at.minus),
        SGD,
        upper=["plus", "minus"],
        unroll_steps=2,
    )
    engine = Engine([low, *tops])
    assert [engine.step() for _ in range(6)] == ["low", "low", "plus", "low", "low", "minus"]


def test_a_program_of_one_problem_is_training():
    engine = Engine([Problem("w", torch.zeros(2), lambda at, _: half(at.w - 1), SGD)])
    engine.run(3)
    assert_close(engine.params("w"), torch.full((2,), 1 - 0.9**3))


def test_a_round_counts_from_the_start_of_the_program():
    engine = pair()
    engine.run(3)
    engine.run(3)
    assert engine.rounds == 3


def test_turns_pass_while_a_problem_warms_up():
    engine = pair(low={"unroll_steps": 5}, high={"warmup_steps": 2})
    engine.run(2)
    assert engine.counts() == {"high": 0, "low": 10}
    engine.run(3)
    assert engine.counts() == {"high": 1, "low": 15}


def test_the_solution_is_followed_to_the_optimum():
    engine = pair(low={"unroll_steps": 20})
    engine.run(100)
    assert_close(engine.params("high"), torch.ones(2), rtol=1e-3, atol=0)

"""Transforms around others, or beside them: their semantics, and their derivatives."""

import copy
import pickle

import pytest
import torch
from diffopt_explicit import (
    accumulate,
    adam,
    add_decayed_weights,
    add_noise,
    apply_if_finite,
    apply_updates,
    chain,
    clip,
    constant,
    ema,
    inject,
    lookahead,
    masked,
    named_chain,
    nan_to_num,
    register_hook,
    scale,
    scale_by_adam,
    scale_by_schedule,
    sgd,
    trace,
    unroll,
    zero_nans,
)
from every_optimizer import F64
from torch import tensor

NAN, INF = float("nan"), float("inf")


def run(tx, gradients, start=0.0):
    """The updates that a transform makes of some gradients, and its last state."""
    params = {"w": tensor(start, dtype=F64)}
    state, updates = tx.init(params), []
    for g in gradients:
        update, state = tx.update({"w": tensor(g, dtype=F64)}, state, params)
        params = apply_updates(params, update)
        updates.append(update["w"].item())
    return updates, state


def seeded(scale_):
    return add_noise(scale_, torch.Generator().manual_seed(0))


EVERYWHERE = {
    "accumulate": lambda lr: accumulate(sgd(lr, 0.9), 2),
    "apply_if_finite": lambda lr: apply_if_finite(adam(lr), 3),
    "ema": lambda lr: chain(ema(0.5), sgd(lr)),
    "lookahead": lambda lr: lookahead(adam(lr), 2, lr),
    "inject": lambda lr: inject(adam(), lr=lr),
    "named_chain": lambda lr: named_chain(("a", scale_by_adam()), ("b", sgd(lr))),
    "masked": lambda lr: chain(masked(scale(3.0), {"x": True, "y": False}), sgd(lr)),
    "masked decay": lambda lr: chain(add_decayed_weights(lr, {"x": True, "y": False}), sgd(0.1)),
    "nan_to_num": lambda lr: chain(nan_to_num(), sgd(lr)),
    "register_hook": lambda lr: chain(sgd(lr), register_hook(lambda g: 2 * g)),
    "add_noise": lambda lr: chain(seeded(lr), sgd(0.1)),
}


def outer_of(name):
    def outer(x, lr):
        loss = lambda p: (p["x"] ** 4).sum() + (p["y"] ** 2 * p["x"]).sum()
        tx, start = EVERYWHERE[name](lr), {"x": x, "y": x.flip(0)}
        end = unroll(loss, tx, start, steps=4).params
        return (end["x"] - 2 * end["y"]).square().sum()

    return outer


START, LR = torch.tensor([0.6, -0.8], dtype=F64), tensor(0.05, dtype=F64)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_derivatives_agree_in_every_mode(name):
    outer = outer_of(name)
    x, lr = START.clone().requires_grad_(), LR.clone().requires_grad_()
    expected = torch.autograd.grad(outer(x, lr), (x, lr))
    by_func = torch.func.grad(outer, argnums=(0, 1))(START, LR)
    _, along = torch.func.jvp(outer, (START, LR), (torch.ones_like(START), LR))

    torch.testing.assert_close(by_func, expected, rtol=1e-10, atol=1e-12)
    if name == "register_hook":  # which changes gradients, and not tangents
        return
    assert torch.autograd.gradcheck(outer, (x, lr))
    torch.testing.assert_close(along, expected[0].sum() + LR * expected[1])


@pytest.mark.parametrize("name", set(EVERYWHERE) - {"apply_if_finite"})
def test_vmap_over_starts_equals_the_loop(name):
    gradient = torch.func.grad(outer_of(name))
    starts = torch.stack([START, 2 * START, -START])
    batched = torch.vmap(gradient, in_dims=(0, None), randomness="same")(starts, LR)

    torch.testing.assert_close(batched, torch.stack([gradient(x, LR) for x in starts]))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_neither_gradients_nor_states_are_changed(name):
    tx, params = EVERYWHERE[name](0.1), {"x": torch.ones(2), "y": torch.ones(2)}
    state = tx.init(params)
    for _ in range(2):
        before = copy.deepcopy((state, params))
        _, after = tx.update(params, state, params)

        assert repr((state, params)) == repr(before)
        state = after


@pytest.mark.parametrize("name", set(EVERYWHERE) - {"register_hook", "add_noise"})
def test_they_are_values_that_pickle_and_compare(name):
    tx = EVERYWHERE[name](0.1)

    assert pickle.loads(pickle.dumps(tx)) == tx == EVERYWHERE[name](0.1)


def test_accumulation_emits_the_mean_in_the_last_step_only():
    assert run(accumulate(scale(1.0), 4), [1.0, 2.0, 3.0, 4.0])[0] == [0.0, 0.0, 0.0, 2.5]


def test_accumulated_steps_equal_steps_by_the_mean_gradients():
    small, _ = run(accumulate(adam(constant(0.1)), 2), [1.0, 2.0, 5.0, -1.0])
    large, _ = run(adam(0.1), [1.5, 2.0])

    assert small[1::2] == pytest.approx(large, rel=1e-14)


def test_accumulation_takes_a_missing_gradient_for_zero():
    tx, params = accumulate(scale(1.0), 2), {"a": torch.ones(1), "b": torch.ones(1)}
    _, state = tx.update({"a": tensor([3.0]), "b": None}, tx.init(params))
    updates, state = tx.update({"a": None, "b": None}, state)

    assert updates == {"a": tensor([1.5]), "b": None}
    assert state.mean == {"a": None, "b": None}


def test_steps_that_are_not_finite_are_skipped_until_there_are_too_many():
    tx = apply_if_finite(trace(0.5), 2)
    updates, state = run(tx, [1.0, NAN, INF, 1.0, NAN])

    assert updates == [1.0, 0.0, 0.0, 1.5, 0.0]
    assert (state.consecutive, state.total) == (1, 3)
    assert run(tx, [NAN, NAN, NAN])[0][:2] == [0.0, 0.0]
    assert run(tx, [NAN, NAN, NAN])[0][2] != run(tx, [NAN, NAN, NAN])[0][2]  # a NaN


def test_skipping_is_refused_under_vmap():
    tx = apply_if_finite(sgd(0.1), 2)
    with pytest.raises(RuntimeError, match=r"vmap`\. Use `nan_to_num` or `zero_nans`"):
        torch.vmap(lambda g: tx.update(g, tx.init(g))[0])(torch.ones(3))


def test_nans_are_replaced_and_are_constants_to_derivatives():
    g = tensor([NAN, INF, -INF, 2.0], requires_grad=True)
    (zeroed, _), (replaced, _) = (
        tx.update(g, tx.init(g)) for tx in (zero_nans(), nan_to_num(7.0, 8.0, 9.0))
    )

    assert zeroed.tolist() == [0.0, INF, -INF, 2.0]
    assert replaced.tolist() == [7.0, 8.0, 9.0, 2.0]
    assert torch.autograd.grad(replaced.sum(), g)[0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_averages_are_those_of_adam_without_its_scale():
    gradients = [1.0, -3.0, 0.5]
    mean, expected = 0.0, []
    for t, g in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * g
        expected.append(mean / (1 - 0.9**t))

    assert run(ema(0.9), gradients)[0] == pytest.approx(expected)
    assert run(ema(0.9, debias=False), [1.0])[0] == pytest.approx([0.1])


def test_lookahead_follows_its_paper():
    fast = slow = 2.0
    gradients = [1.0, -0.5, 2.0, 0.25, 1.0]
    expected = []
    for k, g in enumerate(gradients, 1):
        before, fast = fast, fast - 0.1 * g
        if k % 2 == 0:
            fast = slow = slow + 0.3 * (fast - slow)
        expected.append(fast - before)
    updates, state = run(lookahead(sgd(0.1), 2, 0.3), gradients, start=2.0)

    assert updates == pytest.approx(expected)
    assert state.slow["w"].item() == pytest.approx(slow)


def test_noise_has_its_deviation_and_depends_on_the_state_alone():
    tx, zeros = seeded(0.5), [torch.zeros(10_000), torch.zeros(10_000)]
    state = tx.init(zeros)
    (first, other), after = tx.update(zeros, state)
    (again, _), _ = tx.update(zeros, state)
    (second, _), _ = tx.update(zeros, after)

    assert first.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(first, again)
    for independent in (other, second):
        assert abs((first * independent).mean().item()) < 0.02
    assert tx.init(zeros).seed != state.seed  # drawn on
    assert seeded(0.5).init(zeros) == state


def test_hooks_see_and_replace_the_gradients_of_updates():
    seen = []
    start = tensor(3.0, requires_grad=True)
    tx = chain(sgd(0.5), register_hook(lambda g: seen.append(g.item())))
    unroll(lambda w: w**2 / 2, tx, start, steps=2).params.backward()

    assert start.grad.item() == 0.25
    assert seen == [1.0, 0.5]  # the last step first

    stop = chain(sgd(0.5), register_hook(torch.zeros_like))
    end = unroll(lambda w: w**2 / 2, stop, start, steps=2).params

    assert torch.autograd.grad(end, start)[0].item() == 1.0


def test_injected_hyperparameters_are_read_from_the_state():
    tx = inject(sgd(momentum=0.9), lr=tensor(0.1), momentum=0.0)
    params = [torch.ones(1)]
    state = tx.init(params)
    lr = tensor([0.1, 0.2])
    stacked = state._replace(hyperparameters={**state.hyperparameters, "lr": lr})

    def step(lr):
        return tx.update(params, stacked._replace(hyperparameters={"lr": lr}))[0][0]

    torch.testing.assert_close(torch.vmap(step)(lr), tensor([[-0.1], [-0.2]]))
    with pytest.raises(ValueError, match="no hyperparameter `rate`"):
        inject(sgd(), rate=0.1)


def test_a_mask_may_be_a_function_and_others_pass_unchanged():
    params = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    only_matrices = lambda params: {key: p.dim() > 1 for key, p in params.items()}
    tx = chain(add_decayed_weights(0.5, only_matrices), masked(scale(3.0), only_matrices))
    updates, _ = tx.update(params, tx.init(params), params)

    assert updates["w"].unique().item() == 4.5
    assert updates["b"] is params["b"]


def test_named_chains_do_what_chains_do_and_name_their_states():
    parts = {"bound": clip(0.5), "momentum": trace(0.9), "rate": sgd(0.1)}
    named, plain = named_chain(*parts.items()), chain(*parts.values())
    updates, state = run(named, [1.0, 2.0])
    expected, states = run(plain, [1.0, 2.0])

    assert updates == expected
    assert tuple(state) == tuple(parts)
    assert repr(tuple(state.values())) == repr(states)


def test_schedules_scale():
    assert run(scale_by_schedule(lambda step: 2.0**step), [1.0, 1.0, 1.0])[0] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: accumulate(sgd(), 0), ValueError, "`steps` must be at least 1, got 0"),
        (lambda: apply_if_finite(sgd(), -1), ValueError, "must be a number of steps, got -1"),
        (lambda: lookahead(sgd(), 0), ValueError, "`sync_period` must be at least 1, got 0"),
        (lambda: lookahead(sgd(), 5, -0.5), ValueError, "`slow_step_size` must be at least 0"),
        (lambda: ema(1.0), ValueError, r"`decay` must be in \[0, 1\), got 1.0"),
        (lambda: add_noise(-1.0), ValueError, "`scale` must be at least 0, got -1.0"),
        (lambda: scale_by_schedule(0.1), TypeError, "must be a function of the step, got 0.1"),
        (lambda: named_chain(("a", sgd()), ("a", sgd())), ValueError, "the name 'a' twice"),
        (lambda: named_chain(("a", 1.0)), TypeError, "argument 0 is 1.0"),
        (
            lambda: named_chain(("a", sgd())).update([], {"b": ()}),
            ValueError,
            r"transforms \['a'\], but the state is that of \['b'\]",
        ),
    ],
)
def test_contradictions_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_lookahead_asks_for_parameters():
    tx = lookahead(sgd())
    with pytest.raises(ValueError, match="`lookahead` needs `params`"):
        tx.update([torch.ones(1)], tx.init([torch.ones(1)]))

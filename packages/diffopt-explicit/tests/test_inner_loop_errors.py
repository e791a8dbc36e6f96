"""What inner loops refuse, and what is left of them."""

import pytest
import torch
from diffopt_explicit import adam, inner_loop, sgd
from torch import nn


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_loss_that_has_lost_its_graph_is_refused():
    module = nn.Linear(2, 1)
    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        loss = fmodule(torch.ones(1, 2)).square().sum()
        loss.backward()
        params, state = fmodule.params, opt.state
        with pytest.raises(ValueError, match="The graph of the loss is gone"):
            opt.step(loss)

        assert fmodule.params is params
        assert opt.state is state


@pytest.mark.parametrize(
    "transform", [torch.func.grad, lambda f: lambda lr: torch.func.vmap(f)(lr[None])]
)
def test_a_loss_under_a_transform_of_torch_func_is_refused_with_a_way_out(transform):
    module, x = nn.Linear(2, 1), torch.ones(1, 2)

    def end(lr):
        with inner_loop(module, sgd(0.1), override={"lr": lr}) as (fmodule, opt):
            for _ in range(2):
                opt.step(fmodule(x).square().sum())
            return fmodule(x).sum()

    with pytest.raises(ValueError, match=r"under a transform of `torch.func`, .* Use `unroll`"):
        transform(end)(torch.tensor(0.1))


@pytest.mark.parametrize("where", ["override", "callback"])
def test_an_error_in_a_step_changes_nothing(where):
    module = nn.Linear(2, 1)

    def callback(grads):
        raise ZeroDivisionError

    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        params, state = fmodule.params, opt.state
        loss = fmodule(torch.ones(1, 2)).square().sum()
        if where == "override":
            with pytest.raises(ValueError, match="no hyperparameter `momentum`"):
                opt.step(loss, override={"momentum": 0.9})
        else:
            with pytest.raises(ZeroDivisionError):
                opt.step(loss, grad_callback=callback)

        assert fmodule.params is params
        assert opt.state is state


def test_what_is_neither_a_transform_nor_an_optimizer_is_refused():
    with (
        pytest.raises(TypeError, match=r"`tx` must be a transform, .* got 0\.1"),
        inner_loop(nn.Linear(2, 1), 0.1),
    ):
        pass


def test_a_module_without_trainable_parameters_is_refused():
    with (
        pytest.raises(ValueError, match="no parameter that requires grad"),
        inner_loop(nn.Tanh(), sgd(0.1)),
    ):
        pass

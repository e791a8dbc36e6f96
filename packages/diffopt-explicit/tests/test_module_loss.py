"""Steps of modules by losses that are functions, against those by losses that are numbers."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from diffopt_explicit import (
    Compiled,
    MetaOptimizer,
    Recomputed,
    Recorded,
    Segments,
    Segmentwise,
    adam,
    inner_loop,
    sgd,
)
from torch import nn, tensor
from torch.autograd import grad, gradcheck, gradgradcheck

WAYS = [Recorded(), Recomputed()]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def by_meta_optimizer(module, tx, gradient):
    with MetaOptimizer(module, tx, gradient=gradient) as optimizer:
        yield module, optimizer


def by_inner_loop(module, tx, gradient):
    return inner_loop(module, tx, gradient=gradient)


LOOPS = pytest.mark.parametrize("loop", [by_inner_loop, by_meta_optimizer])


def network():
    """Normalization with running statistics, dropout, tied and frozen weights."""
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 4)]
    module = nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    module[6].weight = module[4].weight
    module[6].bias.requires_grad_(False)
    return module


def error(model, x, y, weight):
    return ((model(x) - y).square() * weight.exp()).mean()


def adapted(loop, gradient, *, as_function, steps=3):
    """Meta-gradients by all there is, buffers and random numbers before and after."""
    torch.manual_seed(1)
    module = network()
    x, y, weight = torch.randn(5, 3).requires_grad_(), torch.randn(5, 2), tensor(0.2)
    weight.requires_grad_()
    lr = tensor(0.05, requires_grad=True)
    inputs = [*filter(lambda p: p.requires_grad, module.parameters()), x, weight, lr]
    with loop(module, adam(lr), gradient) as (model, opt):
        for _ in range(steps):
            if as_function:
                opt.step(error, x, y, weight)
            else:
                opt.step(error(model, x, y, weight))
        outer = error(model, x, y, weight)
        buffers = model.buffers if loop is by_inner_loop else dict(module.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}, torch.rand(2)
        found = grad(outer, inputs)
        buffers = model.buffers if loop is by_inner_loop else dict(module.named_buffers())
        after = {name: buffer.clone() for name, buffer in buffers.items()}, torch.rand(2)
    return found, before, after


@LOOPS
@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_a_function_gives_the_meta_gradients_of_its_numbers(loop, way):
    expected = adapted(loop, Recorded(), as_function=False)
    found = adapted(loop, way, as_function=True)

    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert found[1][0]["1.num_batches_tracked"] == 4  # once a step, and not again on the way back


@LOOPS
def test_derivatives_by_a_learning_rate_are_those_of_differences(loop):
    module, x = nn.Linear(2, 1), torch.randn(4, 2)
    start = {name: param.detach().clone() for name, param in module.named_parameters()}

    def after(lr):
        with torch.no_grad():
            for name, param in module.named_parameters():
                param.copy_(start[name])
        with loop(module, sgd(lr), Recomputed()) as (model, opt):
            for _ in range(2):
                opt.step(lambda fmodule: fmodule(x).sin().sum())
            return model(x).square().sum()

    lr = tensor(0.1, requires_grad=True)
    assert gradcheck(after, lr)
    assert gradgradcheck(after, lr)


@LOOPS
def test_parts_are_differentiated_one_by_one(loop):
    def gradients(gradient, as_function):
        torch.manual_seed(2)
        blocks = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)]
        module, batch = nn.Sequential(*blocks), (torch.randn(4, 3), torch.randn(4))
        start = list(module.parameters())
        criterion = lambda out, batch: (out.sum(1) - batch[1]).square().mean()
        parts = Segments.of(blocks, criterion)
        with loop(module, adam(0.1), gradient) as (model, opt):
            for _ in range(3):
                if as_function:
                    opt.step(parts, batch)
                else:
                    opt.step(criterion(model(batch[0]), batch))
            return grad(criterion(model(batch[0]), batch), start)

    expected = gradients(Recorded(), as_function=False)
    found = gradients(Segmentwise(), as_function=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@LOOPS
def test_two_graphs_serve_for_all_steps_and_modules(loop):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    x, y, weight = torch.randn(5, 3), torch.randn(5, 2), tensor(0.0)
    for _ in range(2):
        results = []
        for gradient in (Recorded(), Compiled(backend=backend)):
            torch.manual_seed(3)
            module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            start = list(module.parameters())
            with loop(module, adam(0.1), gradient) as (model, opt):
                for _ in range(4):
                    opt.step(error, x, y, weight)
                results.append(grad(error(model, x, y, weight), start))
        torch.testing.assert_close(results[1], results[0], rtol=1e-11, atol=1e-13)
    # The first step starts from parameters that are leaves, the others do not.
    assert len(compiled) <= (2 if loop is by_inner_loop else 4)


def test_untracked_and_first_order_steps_take_functions_too():
    module, x = nn.Linear(2, 1), torch.randn(4, 2)
    ends = []
    for as_function in (False, True):
        loss = lambda model: model(x).square().mean()
        gradient = Recomputed() if as_function else Recorded()
        with inner_loop(module, sgd(0.1), track=False, gradient=gradient) as (model, opt):
            opt.step(loss if as_function else loss(model))
            assert next(model.parameters()).grad_fn is None
        with inner_loop(module, sgd(0.1), gradient=gradient) as (model, opt):
            opt.step(loss if as_function else loss(model), first_order=True)
            ends.append(grad(loss(model), list(module.parameters())))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-13, atol=1e-15)


def test_a_loop_with_functions_can_be_transformed():
    module, x = nn.Linear(2, 1), torch.randn(4, 2)

    def after(lr):
        with inner_loop(module, sgd(lr)) as (fmodule, opt):
            opt.step(lambda fmodule: fmodule(x).square().mean())
            return fmodule(x).square().mean()

    lr = tensor(0.1, requires_grad=True)
    torch.testing.assert_close(torch.func.grad(after)(lr.detach()), grad(after(lr), lr)[0])


@LOOPS
def test_of_a_step_nothing_but_its_weights_is_kept(loop):
    module, seen = nn.Linear(2, 2), []

    def loss(fmodule):
        hidden = fmodule(torch.ones(3, 2)).tanh()
        seen.append(weakref.ref(hidden))
        return hidden.sum()

    with loop(module, sgd(0.1), Recomputed()) as (model, opt):
        for _ in range(3):
            opt.step(loss)
        gc.collect()
        assert next(iter(model.parameters())).requires_grad
        assert all(ref() is None for ref in seen)


@LOOPS
def test_nothing_of_a_loop_with_functions_outlives_it(loop):
    dead = []

    def run():
        module = network()
        x, y, weight = torch.randn(5, 3), torch.randn(5, 2), tensor(0.0)
        with loop(module, adam(0.1), Recomputed()) as (model, opt):
            for _ in range(2):
                opt.step(error, x, y, weight)
                dead.extend(weakref.ref(p) for p in model.parameters() if p.grad_fn is not None)
            error(model, x, y, weight).backward()
        dead.append(weakref.ref(module))

    gc.collect()
    gc.disable()  # what is freed is freed by itself, not by the collector of cycles
    try:
        run()
        assert len(dead) > 10
        assert [ref() for ref in dead] == [None] * len(dead)
    finally:
        gc.enable()


@LOOPS
def test_a_function_that_fails_changes_nothing(loop):
    module = network()
    with loop(module, adam(0.1), Recomputed()) as (model, opt):
        present = model if loop is by_inner_loop else opt
        before, state = dict(present.params), opt.state
        with pytest.raises(ValueError, match="depends on none of the parameters"):
            opt.step(lambda fmodule: tensor(0.0, requires_grad=True) * 2)
        with pytest.raises(ValueError, match="must be a 0-d tensor"):
            opt.step(lambda fmodule: fmodule(torch.ones(2, 3)))
        assert all(param is before[name] for name, param in present.params.items())
        assert opt.state is state


def test_what_no_step_can_be_taken_with_is_refused():
    module, x = nn.Linear(2, 1), torch.ones(3, 2)
    by_function = r"With `gradient=Recomputed.* takes its loss as a function"
    for gradient, arguments, why in (
        (Recomputed(), (), by_function),
        (Recorded(), (x,), "got a loss that is a number, and 1 more besides"),
    ):
        with inner_loop(module, sgd(0.1), gradient=gradient) as (fmodule, opt):
            loss = fmodule(x).sum()
            with pytest.raises(TypeError, match=why):
                opt.step(loss, *arguments)
    with pytest.raises(TypeError, match="`gradient` must be a way to take it"):
        MetaOptimizer(module, sgd(0.1), gradient=True)
    with pytest.raises(TypeError, match="`gradient` must be a way to take it"):
        inner_loop(module, sgd(0.1), gradient="recomputed").__enter__()


def test_a_module_that_is_gone_is_missed_on_the_way_back():
    module = nn.Linear(2, 1)
    (weight, *_), optimizer = module.parameters(), MetaOptimizer(module, sgd(0.1), gradient=WAYS[1])
    optimizer.step(lambda fmodule: fmodule(torch.ones(1, 2)).square().sum())
    end = module.weight.sum()
    del module, optimizer
    gc.collect()
    with pytest.raises(RuntimeError, match="module of an inner step was deleted before"):
        grad(end, weight)

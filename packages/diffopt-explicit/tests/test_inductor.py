"""What torch's compiler is asked for."""

import logging

import pytest
import torch
from diffopt_explicit import compile_meta_step, sgd, unroll
from diffopt_explicit._inductor import ON_CPU, inductor


@pytest.mark.parametrize(
    ("devices", "options"),
    [
        (["cpu", "cpu"], ON_CPU),
        (["cpu", "meta"], None),
        ([], ON_CPU),
    ],
)
def test_only_graphs_for_the_cpu_are_called_from_c(monkeypatch, devices, options):
    said = []
    spy = lambda graph, inputs, config_patches: said.append(config_patches) or graph.forward
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", spy)
    inputs = [torch.ones(2, device=device) for device in devices]
    function = lambda inputs: sum(x.sum() for x in inputs)
    torch.compile(function, fullgraph=True, backend=inductor)([*inputs, torch.ones(1)])

    assert said == [options]


def test_torch_knows_the_options():
    from torch._inductor import config

    assert ON_CPU.keys() <= config.get_config_copy().keys()


def cholesky_step():
    loss = lambda w: torch.linalg.cholesky(w).sum()
    outer = lambda w: loss(unroll(loss, sgd(0.1), w, steps=1).params)
    return outer, torch.tensor([[2.0, 1.0], [1.0, 3.0]])


def test_what_has_no_call_in_c_is_called_without_a_warning(caplog):
    outer, w = cholesky_step()
    step, expected = compile_meta_step(outer), torch.func.grad(outer)(w)
    for _ in range(2):
        torch.testing.assert_close(step(w)[1], expected)

    told = [record.name for record in caplog.records if record.levelno >= logging.WARNING]
    assert "torch._inductor.ir" not in told


@pytest.mark.skipif(torch.__version__ < "2.13", reason="this torch's compiler drops the check")
def test_errors_of_what_has_no_call_in_c_come_out():
    outer, w = cholesky_step()
    step = compile_meta_step(outer)
    for _ in range(2):  # the first run of the program itself: torch loses the message of its errors
        step(w)
    with pytest.raises(RuntimeError, match="is not positive-definite"):
        step(-w)

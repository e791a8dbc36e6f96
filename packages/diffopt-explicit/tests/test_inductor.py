"""What torch's compiler is asked for."""

import pytest
import torch
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

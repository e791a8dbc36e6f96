"""Where the doctor finds that a gradient ends, and the paths that it tells."""

import re
import subprocess
import sys

import pytest
import torch
from diffopt_viz import explain_path, find_broken, watch
from doctor_problems import Straight, scalar

REMOTE = """
from contextlib import nullcontext
import tempfile, torch
from torch.distributed import autograd, rpc
from diffopt_viz import find_broken, watch

with tempfile.NamedTemporaryFile() as file:
    options = rpc.TensorPipeRpcBackendOptions(init_method="file://" + file.name)
    rpc.init_rpc("me", rank=0, world_size=1, rpc_backend_options=options)
    w, x = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with CONTEXT, watch() as seen:
        loss = rpc.rpc_sync("me", torch.mul, (w * 2, 2.0)) * x
        print(find_broken(loss, {"w": w, "x": x}, seen)[0].reason)
    rpc.shutdown()
"""


@pytest.mark.parametrize("context", [False, True])
def test_a_graph_that_goes_on_in_another_process_is_told_so(context):
    code = REMOTE.replace("CONTEXT", "autograd.context()" if context else "nullcontext()")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[-1] == "other process"  # after what Gloo says, before torch 2.11


def test_the_inside_of_a_compiled_function_is_seen():
    @torch.compile(backend="eager")
    def model(w, x):
        return torch.relu(w).detach() * x  # lost

    w, x = scalar(2.0), scalar(3.0)
    with watch() as seen:
        loss = model(w, x)
    [broken] = find_broken(loss, {"w": w}, seen)

    assert broken.reason == "detach"
    assert "# lost" in broken.place.text


def test_a_gradient_that_goes_on_after_a_cut_on_another_way_is_not_broken():
    w, x = scalar(2.0), scalar(3.0)
    with watch() as seen:
        y = w.detach() * x
        loss = y * w

    assert find_broken(loss, {"w": w, "x": x}, seen) == []


def test_the_last_place_that_the_gradient_reached_is_named_not_a_side_way_cut_before():
    w = scalar(2.0)
    with watch() as seen:
        scale = w.detach()
        y = w * scale
        loss = y.detach()  # lost
    [broken] = find_broken(loss, {"w": w}, seen)

    assert "# lost" in broken.place.text
    assert broken.others == ()


def test_each_of_several_cuts_in_parallel_is_named():
    w = scalar(2.0)
    with watch() as seen:
        a = w.detach() * 1
        b = (w * 2).long()
        loss = a + b
    [broken] = find_broken(loss, {"w": w}, seen)

    assert broken.reason == "detach"
    assert [place.text for place in broken.others] == ["b = (w * 2).long()"]
    assert "and at" in str(broken)


def test_a_custom_function_is_no_cut():
    w = scalar(2.4)
    with watch() as seen:
        loss = Straight.apply(w * 3) ** 2

    assert find_broken(loss, {"w": w}, seen) == []


def test_a_named_tensor_inside_the_graph_can_be_asked_for():
    w = scalar(2.0)
    with watch() as seen:
        inner = w * 2
        loss = inner.detach() + w

    assert [b.name for b in find_broken(loss, {"inner": inner, "w": w}, seen)] == ["inner"]


def test_twenty_thousand_watched_operations_need_no_recursion():
    w = scalar(1.0)
    with watch() as seen:
        y = w
        for _ in range(10_000):
            y = y * 1.0
        loss = y.detach()

    assert find_broken(loss, {"w": w}, seen)[0].reason == "detach"


@pytest.mark.parametrize(("outputs", "params", "what"), [([], 1, "outputs"), (1, {}, "params")])
def test_nothing_to_look_at_is_refused(outputs, params, what):
    tensor = scalar(1.0)
    give = lambda x: tensor if x == 1 else x
    with pytest.raises(ValueError, match=f"`{what}` hold no tensor"):
        find_broken(give(outputs), give(params))


def test_a_path_names_the_fewest_operations_and_their_lines():
    w = scalar(2.0)
    with watch() as seen:
        y = w.exp().sin().cos()
        loss = y + w  # short
    text = explain_path(loss, {"w": w}, seen)

    assert text.splitlines()[:2] == ["w reaches the output through 1 operation:", "  w"]
    assert re.fullmatch(
        r"  add    .*test_doctor_places.py:\d+: loss = y \+ w  # short", text.splitlines()[2]
    )
    assert text.splitlines()[3:] == ["  output"]


def test_the_path_of_a_broken_parameter_is_its_diagnosis():
    w = scalar(2.0)
    with watch() as seen:
        loss = w.detach() * 2

    assert explain_path(loss, w, seen) == str(find_broken(loss, w, seen)[0])


def test_a_path_is_for_one_parameter():
    with pytest.raises(ValueError, match="`param` must be one tensor, got 2"):
        explain_path(scalar(1.0) * 2, [scalar(1.0), scalar(1.0)])


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.reshape(-1)[0] * 2 + sum(x.reshape(-1).tolist())

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_views_of_leaves_inside_custom_functions_are_watched_without_harm():
    w = scalar(1.0)
    with watch() as seen:
        loss = Scaled.apply(w).detach()

    assert find_broken(loss, {"w": w}, seen)[0].reason == "detach"


def test_what_function_transforms_give_is_followed_by_its_graph():
    w, x = scalar(2.0), scalar(3.0)
    with watch() as seen:
        gradient = torch.func.grad(lambda x: w * x**2)(x)
        mapped = torch.func.vmap(lambda x: x.sin())(torch.stack([x, x]))
        loss = gradient.detach() * mapped.sum()  # lost
    [broken] = find_broken(loss, {"w": w, "x": x}, seen)

    assert (broken.name, broken.reason) == ("w", "detach")
    assert "# lost" in broken.place.text

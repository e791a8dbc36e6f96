"""Mistakes that people make, each found at its line."""

import copy
import inspect
import re
import subprocess
import sys

import pytest
import torch
from diffopt_viz import explain_path, find_broken, watch
from torch import nn


def scalar(value):
    return torch.tensor(value, requires_grad=True)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round() + 0

    @staticmethod
    def backward(ctx, grad):
        return grad


# Each mistake takes the meta-parameter `w` and another `x`, and returns the loss. The line at
# which the gradient of `w` is lost ends in the comment "# lost".


def detached(w, x):
    y = (w * x).detach()  # lost
    return y * x


def detached_in_place(w, x):
    y = w * x
    y.detach_()  # lost
    return y * x


def under_no_grad(w, x):
    with torch.no_grad():
        y = w * x  # lost
    return y * x


def under_inference_mode(w, x):
    with torch.inference_mode():
        y = w * x  # lost
    return y.clone() + x


def data(w, x):
    y = (w * x).data  # lost
    return y * x


def item(w, x):
    factor = (w * 2).item()  # lost
    return factor * x


def number_of_a_tensor(w, x):
    factor = float(w.detach())  # lost
    return factor * x


def rewritten_under_no_grad(w, x):
    inner = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((inner * w).square(), inner, create_graph=True)
    step = 0.1 * gradient
    with torch.no_grad():
        inner -= step  # lost
    return inner**2


def rewritten_through_data(w, x):
    inner = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((inner * w).square(), inner, create_graph=True)
    inner.data.sub_(0.1 * gradient)  # lost
    return inner**2


def assigned_to_data(w, x):
    inner = x.detach().clone().requires_grad_()
    inner.data = w * 2  # lost
    return inner**2


def step_of_a_torch_optimizer(w, x):
    inner = x.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([inner], lr=0.1)
    (inner * w).square().backward(create_graph=True)
    optimizer.step()  # lost
    return inner**2


def first_order(w, x):
    (gradient,) = torch.autograd.grad((x * w).square(), x)  # lost
    return (x - 0.1 * gradient) ** 2


def gradient_of_backward(w, x):
    (x * w).square().backward(inputs=[x])
    gradient = x.grad  # lost
    return (x - 0.1 * gradient) ** 2


def buffer(w, x):
    norm = nn.BatchNorm1d(1, affine=False)
    norm((w * torch.arange(4.0)).reshape(4, 1))  # lost
    return norm.eval()(x.reshape(1, 1)).sum()


def integer_cast(w, x):
    index = (w * 3).long()  # lost
    return index * x


def comparison(w, x):
    mask = w > 0  # lost
    return torch.where(mask, x, 2 * x)


def chosen(w, x):
    index = torch.stack([w, -w]).argmax()  # lost
    return torch.stack([x, 2 * x])[index]


def copied(w, x):
    y = copy.deepcopy(w)  # lost
    return y * x


def new_parameter(w, x):
    y = nn.Parameter(w * 2)
    return y * x  # lost


def new_tensor(w, x):
    y = torch.tensor([w * 2, w])  # lost
    return y.sum() * x


def through_numpy(w, x):
    y = torch.from_numpy((w * torch.ones(1)).detach().numpy())  # lost
    return (y * x).sum()


def cut_inside_a_custom_function_is_none(w, x):
    y = Straight.apply(w * 3)
    return y.detach() * x  # lost


MISTAKES = {
    detached: "detach",
    detached_in_place: "detach",
    under_no_grad: "no_grad",
    under_inference_mode: "inference_mode",
    data: "data",
    item: "item",
    number_of_a_tensor: "item",
    rewritten_under_no_grad: "in-place rewrite",
    rewritten_through_data: "in-place rewrite",
    assigned_to_data: "in-place rewrite",
    step_of_a_torch_optimizer: "in-place rewrite",
    first_order: "first order",
    gradient_of_backward: "backward",
    buffer: "in-place rewrite",
    integer_cast: "integer cast",
    comparison: "integer cast",
    chosen: "integer cast",
    copied: "fresh leaf",
    new_parameter: "fresh leaf",
    new_tensor: "fresh leaf",
    through_numpy: "detach",
    cut_inside_a_custom_function_is_none: "detach",
}


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


def line_of(mistake):
    lines, first = inspect.getsourcelines(mistake)
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# lost"))


@pytest.mark.filterwarnings("ignore")  # torch warns of some of these mistakes
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_at_its_line(mistake):
    w, x = scalar(2.0), scalar(3.0)
    with watch() as seen:
        loss = mistake(w, x)
    [broken] = find_broken(loss, {"w": w}, seen)

    assert (broken.name, broken.reason) == ("w", MISTAKES[mistake])
    assert broken.place is not None
    assert (broken.place.file, broken.place.line) == (__file__, line_of(mistake))
    assert re.match(
        r"w gets no gradient: .*\n    stops at `.*`, .*test_doctor.py:\d+: ", str(broken)
    )
    assert (
        torch.autograd.grad(loss, w, allow_unused=True) == (None,) if loss.requires_grad else True
    )


def test_a_number_read_of_what_was_cut_before_is_not_the_place():
    w, x = scalar(2.0), scalar(3.0)
    with watch() as seen:
        rate = (2 * w).detach()
        loss = rate.item() * x  # as a kernel reads a rate that needs no gradient
    [broken] = find_broken(loss, {"w": w}, seen)
    assert (broken.reason, broken.place.text) == ("detach", "rate = (2 * w).detach()")


def test_an_unused_head_is_unused():
    body, head = nn.Linear(2, 2), nn.Linear(2, 3)
    with watch() as seen:
        features = body(torch.ones(1, 2))
        head(features)
        loss = features.sum()
    broken = find_broken(loss, {"body": body, "head": head}, seen)

    assert [(b.name, b.reason) for b in broken] == [
        ("head.weight", "unused"),
        ("head.bias", "unused"),
    ]


def test_a_copied_module_is_told_from_an_unused_one():
    module = nn.Linear(2, 2)
    working = copy.deepcopy(module)
    with watch() as seen:
        loss = working(torch.ones(1, 2)).sum()

    assert {b.reason for b in find_broken(loss, module, seen)} == {"wrong parameter"}
    assert find_broken(loss, working, seen) == []


def test_a_parameter_that_requires_no_grad_is_told_so():
    w = torch.ones(1)

    assert "requires_grad_()" in str(find_broken(w * 2, {"w": w})[0])


def test_without_a_record_broken_parameters_are_named_and_the_way_to_know_more():
    w, x = scalar(1.0), scalar(1.0)
    [broken] = find_broken((w * 2).detach() * x, [("w", w), ("x", x)])

    assert (broken.name, broken.reason, broken.place) == ("w", "unknown", None)
    assert "with watch()" in str(broken)


@pytest.mark.parametrize("context", [False, True])
def test_a_graph_that_goes_on_in_another_process_is_told_so(context):
    code = REMOTE.replace("CONTEXT", "autograd.context()" if context else "nullcontext()")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "other process"


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
        r"  add    .*test_doctor.py:\d+: loss = y \+ w  # short", text.splitlines()[2]
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

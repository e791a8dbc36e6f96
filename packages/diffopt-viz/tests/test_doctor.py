"""Mistakes that people make, each found at its line."""

import copy
import inspect
import re

import pytest
import torch
from diffopt_viz import find_broken, watch
from doctor_problems import Straight, scalar
from torch import nn


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

"""Third derivatives in the context against differences of second ones; torch's own beside."""

import threading

import pytest
import torch
from diffopt_explicit import higher_order
from torch import nn
from torch.autograd import grad
from torch.func import functional_call
from torch.nn import functional


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def second(f, x, u):
    """The product of the second derivative of f with u, part of the graph of x."""
    (first,) = grad(f(x), x, create_graph=True)
    return grad((first * u).sum(), x, create_graph=True)[0]


def error_of_third(f, x):
    """That of the third derivative in three directions, against central differences."""
    u, v, w = torch.randn(3, *x.shape)
    x = x.clone().requires_grad_()
    actual = (grad((second(f, x, u) * v).sum(), x)[0] * w).sum()
    above, below = (second(f, (x + e * w).detach().requires_grad_(), u) for e in (1e-5, -1e-5))
    expected = ((above - below) * v).sum() / 2e-5
    return ((actual - expected) / expected).abs().item()


def layers():
    norms = {
        "layer_norm": (nn.LayerNorm((3, 2)), (4, 3, 2)),
        "layer_norm, plain": (nn.LayerNorm(2, elementwise_affine=False), (4, 3, 2)),
        "layer_norm, no bias": (nn.LayerNorm(2, bias=False), (4, 3, 2)),
        "batch_norm": (nn.BatchNorm1d(3), (4, 3, 2)),
        "batch_norm, no statistics": (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 2, 2)),
        "batch_norm, cumulative": (nn.BatchNorm1d(3, momentum=None), (4, 3)),
        "batch_norm, eval": (nn.BatchNorm1d(3).eval(), (4, 3)),
        "instance_norm": (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 4)),
        "instance_norm, eval": (nn.InstanceNorm1d(3, track_running_stats=True).eval(), (2, 3, 4)),
        "encoder": (nn.TransformerEncoderLayer(4, 2, 4, 0.0, "gelu", batch_first=True), (2, 3, 4)),
        "lstm": (nn.LSTM(2, 3), (3, 2, 2)),
    }
    for module, _ in norms.values():
        for param in module.parameters():
            param.data = torch.randn_like(param)
    return norms


LAYERS = list(layers())
WRONG = ["layer_norm"]
if torch.__version__ < "2.14":
    WRONG += ["batch_norm", "instance_norm"]


def scalar(module):
    def function(x):
        out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        return (out * torch.linspace(-1, 2, out.numel()).view_as(out) + out**3).sum()

    return function


@pytest.mark.parametrize("name", LAYERS)
def test_third_derivatives_equal_central_differences(name):
    module, shape = layers()[name]
    with higher_order():
        assert error_of_third(scalar(module), torch.randn(shape)) < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_torchs_own_third_derivatives_are_still_wrong(name):
    """Once they are right, this context need not replace them any more."""
    module, shape = layers()[name]

    assert error_of_third(scalar(module), torch.randn(shape)) > 1e-2


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_statistics_are_those_of_torch(name):
    (plain, shape), (ours, _) = layers()[name], layers()[name]
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    for _ in range(2):
        expected = plain(x)
        with higher_order():
            actual = ours(x)

        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_reverse_over_forward_is_right_too():
    module = layers()["layer_norm"][0]
    x, u = torch.randn(2, 4, 3, 2)
    directional = lambda x: torch.func.jvp(scalar(module), (x,), (u,))[1]
    expected = second(scalar(module), x.clone().requires_grad_(), u).detach()
    wrong = torch.func.grad(directional)(x)
    with higher_order():
        right = torch.func.grad(directional)(x)
        batched = torch.func.vmap(torch.func.grad(directional))(x[None])[0]

    torch.testing.assert_close(right, expected)
    torch.testing.assert_close(batched, expected)
    assert (wrong - expected).norm() > 0.1 * expected.norm()


def test_functions_are_replaced_as_modules_are():
    x = torch.randn(4, 3)
    calls = [
        lambda x: functional.layer_norm(x, (3,)),
        lambda x: torch.layer_norm(x, [3]),
        lambda x: functional.batch_norm(x, None, None, training=True),
        lambda x: functional.instance_norm(x.view(1, 4, 3)),
    ]
    for call in calls:
        with higher_order():
            assert error_of_third(lambda x: (call(x) ** 3).sum(), x) < 1e-6  # noqa: B023


def test_all_other_functions_do_what_they_do():
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    calls = [
        lambda x: functional.max_pool2d(x, 2),
        lambda x: functional.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: functional.adaptive_max_pool2d(x, 2),
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: functional.gumbel_softmax(x),
        lambda x: functional.dropout(x, 0.5),
        lambda x: functional.cross_entropy(x.flatten(1), torch.tensor([0, 1])),
        lambda x: functional.normalize(x).clamp(min=0).square(),
    ]
    for call in calls:
        torch.manual_seed(1)
        expected = call(x)
        with higher_order():
            torch.manual_seed(1)
            actual = call(x)

        assert torch.equal(actual, expected)
        assert torch.equal(*(grad(out.square().sum(), x)[0] for out in (actual, expected)))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_has_second_and_third_derivatives(need_weights):
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    f = lambda x: (module(x, x, x, need_weights=need_weights)[0] ** 3).sum()
    with higher_order():
        assert error_of_third(f, torch.randn(2, 3, 4)) < 1e-6


def test_the_fast_path_of_frozen_attention_is_not_taken():
    module = nn.MultiheadAttention(4, 2, batch_first=True).eval().requires_grad_(False)
    x, u = torch.randn(2, 2, 3, 4)
    attend = lambda x: module(x, x, x, need_weights=False)[0]
    step = 1e-6 * u
    expected = (attend(x + step) - attend(x - step)) / 2e-6
    with higher_order():
        value, tangent = torch.func.jvp(attend, (x,), (u,))

    torch.testing.assert_close(value, attend(x))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)


OPTIONS = [
    {},
    {"is_causal": True},
    {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
    {"attn_mask": torch.arange(25.0, dtype=torch.float64).view(5, 5), "scale": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_attention_equals_torchs_and_can_be_differentiated_twice(options):
    options = {
        k: v.double() if k == "attn_mask" and v.dtype.is_floating_point else v
        for k, v in options.items()
    }
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind()
    attend = lambda q: functional.scaled_dot_product_attention(q, k, v, **options)
    expected = attend(q)
    with higher_order():
        torch.testing.assert_close(attend(q), expected)
        assert error_of_third(lambda q: (attend(q) ** 3).sum(), q) < 1e-5


def test_grouped_queries_and_dropout():
    q, k = torch.randn(1, 4, 5, 2, requires_grad=True), torch.randn(1, 2, 5, 2)
    attend = lambda p: functional.scaled_dot_product_attention(
        q, k, k, dropout_p=p, enable_gqa=True
    )
    expected = attend(0.0)
    with higher_order():
        torch.testing.assert_close(attend(0.0), expected)
        assert attend(1.0).abs().sum() == 0
    with pytest.raises(RuntimeError, match="not implemented"):  # torch's own
        grad(grad(expected.square().sum(), q, create_graph=True)[0].sum(), q)


def test_recurrent_layers_have_forward_over_reverse_derivatives():
    module = nn.LSTM(2, 3).float()  # in double precision torch does not take oneDNN's
    params = {name: param.detach() for name, param in module.named_parameters()}
    x = torch.ones(3, 2, 2, dtype=torch.float32)
    f = lambda p: functional_call(module, p, (x,))[0].square().sum()
    with higher_order():
        _, tangent = torch.func.jvp(torch.func.grad(f), (params,), (params,))
    with pytest.raises(NotImplementedError, match="mkldnn_rnn_layer"):  # torch's own
        torch.func.jvp(torch.func.grad(f), (params,), (params,))

    step = lambda size: {name: (1 + size) * param.double() for name, param in params.items()}
    gradient = torch.func.grad(
        lambda p: functional_call(module, p, (x.double(),))[0].square().sum()
    )
    above, below = gradient(step(1e-6)), gradient(step(-1e-6))
    expected = {name: (above[name] - below[name]).float() / 2e-6 for name in params}
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_half_precision():
    x = torch.randn(4, 8).bfloat16()
    norm = nn.LayerNorm(8).bfloat16()
    expected = norm(x)
    with higher_order():
        actual = norm(x)

    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def is_replaced():
    x = torch.randn(2, 3, requires_grad=True)
    return type(functional.layer_norm(x, (3,)).grad_fn).__name__ != "NativeLayerNormBackward0"


def test_nothing_is_left_behind_and_contexts_nest():
    with higher_order():
        with higher_order():
            assert is_replaced()
        assert is_replaced()
    assert not is_replaced()

    with pytest.raises(KeyError), higher_order():
        raise KeyError
    assert not is_replaced()


def test_the_context_is_that_of_its_thread():
    seen, entered, left = [], threading.Event(), threading.Event()

    def other():
        with higher_order():
            entered.set()
            left.wait(10)
            seen.append(is_replaced())

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    assert not is_replaced()
    with higher_order():
        nn.LSTM(2, 3)(torch.ones(1, 1, 2))
    left.set()
    thread.join()

    assert seen == [True]
    assert torch._C._get_mkldnn_enabled()


def test_recurrent_libraries_are_switched_off_until_the_last_thread_is_done():
    from diffopt_explicit._higher_order import NO_LIBRARIES

    before = torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled()
    with NO_LIBRARIES.held():
        with NO_LIBRARIES.held():
            pass
        assert not torch._C._get_cudnn_enabled()
        assert not torch._C._get_mkldnn_enabled()

    assert before == (torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's look
def test_it_holds_inside_of_compiled_functions():
    f = lambda x: (functional.layer_norm(x, (3,)) ** 3).sum()
    x = torch.randn(4, 3)

    def inside(x):
        with higher_order():
            return f(x)

    compiled = torch.compile(inside, backend="eager")
    torch.testing.assert_close(compiled(x), f(x))
    assert error_of_third(compiled, x) < 1e-6

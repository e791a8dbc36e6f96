"""What tensors tell of themselves, through DLPack as through their attributes."""

import pytest
import torch
from diffopt_kernels import _native
from diffopt_kernels._explain import DTYPES
from torch._subclasses import FakeTensorMode

TYPES = (torch.Tensor, torch.nn.Parameter)
EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
READERS = {"attributes": None, **({} if EXCHANGE is None else {"DLPack": EXCHANGE})}


@pytest.fixture(autouse=True)
def device():
    """Stay on the CPU, whatever else there is."""
    return "cpu"


@pytest.fixture(params=READERS)
def look(request):
    """Each way to look."""
    return _native.Looker(TYPES, tuple(DTYPES), READERS[request.param])


class Special(torch.Tensor):
    pass


def fake():
    with FakeTensorMode():
        return torch.zeros(2)


def beyond_vmap():
    kept = []
    torch.func.vmap(lambda x: kept.append(x) or x)(torch.zeros(2, 3))
    return kept[0]


DENSE = {
    "matrix": lambda: torch.randn(3, 4),
    "parameter": lambda: torch.nn.Parameter(torch.randn(3)),
    "within a graph": lambda: torch.randn(3, requires_grad=True) * 2,
    "0-d": lambda: torch.randn(()),
    "zero-size": lambda: torch.randn(0, 3),
    "transposed": lambda: torch.randn(3, 4).T,
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "channels-last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "of size 1 with odd strides": lambda: torch.randn(8).as_strided((1, 4), (7, 1)),
    "within another": lambda: torch.randn(10)[3:7],
    "inference": lambda: torch.inference_mode()(torch.ones)(3),
    "negated, then resolved": lambda: torch.randn(2, dtype=torch.cfloat).conj().imag + 0,
}  # fmt: skip
OTHER = {
    "a number": lambda: 1.0,
    "an integer": lambda: torch.zeros(2, dtype=torch.long),
    "complex": lambda: torch.zeros(2, dtype=torch.cfloat),
    "a float of 8 bits": lambda: torch.zeros(2, dtype=torch.float8_e5m2),
    "a subclass": lambda: torch.zeros(2).as_subclass(Special),
    "lazily negated": lambda: torch.randn(2, dtype=torch.cfloat).conj().imag,
    "lazily negated and dense": lambda: torch._neg_view(torch.randn(2)),
    "without memory": lambda: torch.zeros(2, device="meta"),
    "lazily zero": lambda: torch._efficientzerotensor((2,)),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "sparse by rows": lambda: torch.eye(2).to_sparse_csr(),
    "MKL-DNN's": lambda: torch.zeros(2).to_mkldnn(),
    "fake": fake,
    "vmap's": beyond_vmap,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER)
def test_what_is_not_plain_memory_is_not_seen(look, make):
    assert look(((make(),),), 1) is None
    assert look(((torch.zeros(2), make()),), 1) is None


def told(found):
    return found.sizes, found.contiguous, found.addresses, found.dtype, found.gpu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_tensors_are_what_torch_says(look, make, dtype):
    tensor = make().detach().to(dtype)
    expected = [tensor.numel()], tensor.is_contiguous(), [tensor.data_ptr()], DTYPES[dtype], -1
    assert told(look(([tensor],), 1)) == expected


@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_a_graph_and_a_parameter_are_looked_through(look, make):
    tensor = make()
    assert told(look(((tensor,),), 1)) == told(look(((tensor.detach(),),), 1))


def test_columns_lie_one_after_the_other(look):
    columns = [[torch.zeros(2), torch.zeros(3, 2)] for _ in range(3)]
    found = look(tuple(columns), 3)
    assert found.sizes == [2, 6]
    assert found.contiguous
    assert found.complete
    assert found.addresses == [t.data_ptr() for column in columns for t in column]


@pytest.mark.parametrize(
    "columns",
    [
        ((torch.zeros(2), torch.zeros(2)), (torch.zeros(2),)),
        ((torch.zeros(2),), (torch.zeros(3),)),
        ((torch.zeros(2, 3),), (torch.zeros(3, 2),)),
        ((torch.zeros(6),), (torch.zeros(2, 3),)),
        ((torch.zeros(2),), (torch.zeros(2, dtype=torch.double),)),
        ((torch.zeros(2),), iter([torch.zeros(2)])),
        ((), ()),
    ],
    ids=["length", "size", "shape", "dimensions", "dtype", "no list", "nothing"],
)
def test_columns_that_do_not_match_are_not_seen(look, columns):
    assert look(columns, len(columns)) is None


@pytest.mark.skipif(EXCHANGE is None, reason="this torch has no table of DLPack's functions")
def test_something_else_than_dlpacks_table_is_refused():
    with pytest.raises(ValueError, match=r"dlpack_exchange_api|PyCapsule"):
        _native.Looker(TYPES, tuple(DTYPES), object())


def test_what_is_absent_has_no_address_where_it_may_be_absent(look):
    columns = [torch.zeros(2), torch.zeros(3)], [None, torch.ones(3)]
    found = look(columns, 1)
    assert found.addresses[1:] == [columns[0][1].data_ptr(), 0, columns[1][1].data_ptr()]
    assert not found.complete
    assert look(columns, 2) is None

import sys
from pathlib import Path

import pytest
from diffopt_explicit import Forward, Replay, Store, _fused

# The table of all optimizers is one module for all tests here, wherever this folder lies.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(params=["installed", "composed"])
def path(request, monkeypatch):
    """Each test with the kernels, if they are installed, and with composed operations."""
    if request.param == "composed":
        monkeypatch.setattr(_fused, "KERNELS", {})


@pytest.fixture(
    params=[Store(), Replay(), Replay(graphs=2), Replay(snapshots=1), Forward()], ids=repr
)
def adjoint(request):
    """Each test with every way to differentiate an unroll."""
    return request.param

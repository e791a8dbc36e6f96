import pytest
from diffopt_explicit import _fused


@pytest.fixture(params=["installed", "composed"])
def path(request, monkeypatch):
    """Each test with the kernels, if they are installed, and with composed operations."""
    if request.param == "composed":
        monkeypatch.setattr(_fused, "KERNELS", {})

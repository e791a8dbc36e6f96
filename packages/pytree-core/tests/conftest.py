import gc
import sys
from pathlib import Path

import pytest

# The strategies are one module for all tests here, wherever this folder lies.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def collected():
    """Leaves no garbage of earlier tests to a test that counts objects."""
    gc.collect()
    yield
    gc.collect()

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def two_at_a_time(request):
    """Start a function for each value that a parameter has in the file; returns futures."""
    here = [item for item in request.session.items if item.path == request.path]
    parameters = [item.callspec.params for item in here if hasattr(item, "callspec")]
    with ThreadPoolExecutor(2) as pool:
        yield lambda name, call: {
            of[name]: pool.submit(call, of[name]) for of in parameters if name in of
        }
        pool.shutdown(cancel_futures=True)

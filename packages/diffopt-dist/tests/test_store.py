"""What a process keeps for others, and who cleans up."""

import threading
from types import SimpleNamespace

import pytest
from diffopt_dist import _store


@pytest.fixture
def left():
    """Let there be no janitor before, nor anything after."""
    yield
    _store.forget(list(_store._kept))
    _store.start_cleaning()


def test_a_world_can_be_left_while_the_janitor_is_about_to_start(monkeypatch, left):
    about, go_on = threading.Event(), threading.Event()

    class Slow(threading.Thread):
        def start(self):
            about.set()
            assert go_on.wait(30)
            super().start()

    monkeypatch.setattr(_store, "threading", SimpleNamespace(Thread=Slow))
    answering = threading.Thread(target=_store.keep, args=((0, 1), "graph", 60.0))
    answering.start()
    assert about.wait(30)
    threading.Timer(0.2, go_on.set).start()

    _store.stop_cleaning()  # waits for the start, and for the end

    answering.join()
    assert not _store._janitor.is_alive()


def test_what_is_kept_while_a_world_is_left_calls_no_new_janitor(left):
    _store.stop_cleaning()
    before = _store._janitor

    _store.keep((0, 2), "graph", 60.0)

    assert _store._janitor is before
    assert _store.find((0, 2)) == "graph"

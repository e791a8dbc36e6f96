"""How work is cut into tasks, which worker gets which, and in what order they are done."""

import time

import pytest
import torch
from diffopt_dist import (
    as_completed,
    batch_partitioner,
    exclusive_batch_partitioner,
    get_rank,
    local_state,
    mean_reducer,
    parallelize,
    remote_async_call,
)


def test_uneven_shards_are_weighted_in_the_mean():
    x = torch.arange(5.0)
    shards = batch_partitioner((x,), {}, 2)
    means = [shard.args[0].mean() for shard in shards]

    assert mean_reducer(means, [shard.size for shard in shards]).item() == 2.0


def test_there_are_no_more_shards_than_examples():
    shards = batch_partitioner(([torch.ones(2, 3), "text"],), {"y": torch.ones(2)}, 5)

    assert [shard.size for shard in shards] == [1, 1]
    assert shards[0].args[0][1] == "text"
    assert shards[1].kwargs["y"].shape == (1,)


def test_a_fast_worker_takes_more_tasks_and_none_has_two_at_a_time(on_rank_zero):
    def main():
        def task(number):
            state = local_state()
            state["now"] = state.get("now", 0) + 1
            state["most"] = max(state.get("most", 0), state["now"])
            time.sleep(0.4 if get_rank() == 1 else 0.02)
            state["now"] -= 1
            return get_rank(), state["most"], number.item()

        told = []
        results = parallelize(
            task,
            partitioner=exclusive_batch_partitioner,
            reducer=lambda results, sizes: results,
            workers="agent",
            progress=lambda done, total: told.append((done, total)),
        )(torch.arange(12))
        return results, told

    results, told = on_rank_zero(main)

    ranks = [rank for rank, _, _ in results]
    assert ranks.count(2) > ranks.count(1) > 0
    assert {most for _, most, _ in results} == {1}
    assert [number for _, _, number in results] == list(range(12))
    assert told == [(i, 12) for i in range(1, 13)]


def test_progress_is_told_while_other_tasks_run(on_rank_zero, tmp_path):
    def main():
        def task(number):
            deadline = time.monotonic() + 60
            while number == 1 and not (tmp_path / "told").exists():
                assert time.monotonic() < deadline, "nothing is told"
                time.sleep(0.01)

        parallelize(
            task,
            partitioner=exclusive_batch_partitioner,
            reducer=lambda results, sizes: None,
            progress=lambda done, total: (tmp_path / "told").touch(),
        )(torch.arange(2))

    on_rank_zero(main)


def test_an_error_of_the_progress_callback_is_raised(on_rank_zero):
    def main():
        def interrupt(done, total):
            raise KeyError("enough")

        try:
            parallelize(torch.sum, progress=interrupt)(torch.ones(3))
        except KeyError as error:
            return str(error)

    assert on_rank_zero(main) == "'enough'"


def test_random_numbers_follow_from_the_seed_and_not_from_the_worker(on_rank_zero):
    def main():
        draw = lambda x: torch.rand(())
        gather = lambda results, sizes: [result.item() for result in results]
        options = {"partitioner": exclusive_batch_partitioner, "reducer": gather}
        seeded = [
            parallelize(draw, workers=workers, seed=7, **options)(torch.ones(4))
            for workers in ([0], [1, 2], [0, 1, 2])
        ]
        torch.manual_seed(1)
        before = torch.get_rng_state()
        drawn = [parallelize(draw, **options)(torch.ones(4)) for _ in range(2)]
        return seeded, drawn, torch.equal(before, torch.get_rng_state())

    seeded, drawn, untouched = on_rank_zero(main)

    assert seeded[0] == seeded[1] == seeded[2]
    assert len({*seeded[0], *drawn[0], *drawn[1]}) == 12
    assert untouched


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_random_numbers_of_a_gpu_follow_from_the_seed_too(on_rank_zero):
    def main():
        draw = lambda x: torch.rand(2, device="cuda").sum().cpu()
        f = [parallelize(draw, workers=[rank], seed=7) for rank in (0, 1, 1)]
        return [each(torch.ones(1)).item() for each in f]

    assert len(set(on_rank_zero(main))) == 1


def test_calls_are_taken_as_they_are_done(on_rank_zero, tmp_path):
    def main():
        def wait(name):
            while not (tmp_path / name).exists():
                time.sleep(0.01)
            return name

        (tmp_path / "early").touch()
        taken = []
        for call in as_completed([remote_async_call(wait, (n,), to=1) for n in ("late", "early")]):
            taken.append(call.wait())
            (tmp_path / "late").touch()
        call = remote_async_call(wait, ("last",), to=1)
        try:
            next(as_completed([call], timeout=0.1))
        except TimeoutError as error:
            (tmp_path / "last").touch()
            return taken, call.wait(), str(error)

    taken, last, message = on_rank_zero(main)

    assert taken == ["early", "late"]
    assert last == "last"
    assert message == "1 calls were not done after 0.1 s."

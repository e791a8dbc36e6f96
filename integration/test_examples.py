"""The examples run, and what they show is there already in their first steps."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = [path for path in sorted(EXAMPLES.glob("*.py")) if "__main__" in path.read_text("utf-8")]


def shows(*command):
    """Let a test have what an example printed, and the folder of its pictures."""
    return pytest.mark.parametrize("example", [command], indirect=True, ids=command[:1])


def run(command, folder):
    """Run an example as a user does, on one thread, because another runs beside it."""
    name, *options = command
    line = [sys.executable, "-W", "error", str(EXAMPLES / name), *options, "--results", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    return done, folder


@pytest.fixture(scope="module")
def results(two_at_a_time, tmp_path_factory):
    """What comes of the examples that were asked for."""
    return two_at_a_time(
        "example", lambda command: run(command, tmp_path_factory.mktemp("example"))
    )


@pytest.fixture
def example(request, results):
    """What an example printed, and the folder of its pictures."""
    done, pictures = results[request.param].result()

    assert done.returncode == 0, done.stderr
    return done.stdout, pictures


def numbers(pattern, printed):
    """The numbers in the groups of each match, a tuple a match."""
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, printed)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_is_short_and_is_told_and_tried(program):
    text = program.read_text("utf-8")
    told = ast.get_docstring(ast.parse(text)) or ""

    assert len(text.splitlines()) < 150
    assert "Expected, in " in told
    assert "Shows: " in told
    assert f'@shows("{program.name}"' in Path(__file__).read_text("utf-8")
    assert f"`{program.name}`" in (EXAMPLES.parent / "docs" / "examples.md").read_text("utf-8")


@shows("learned_schedule.py", "--quick")
def test_a_schedule_learned_through_all_steps_beats_one_learned_through_the_last(example):
    printed, pictures = example
    losses = [float(after) for after in re.findall(r"held-out loss [\d.]+ -> ([\d.]+)", printed)]

    assert losses[0] < losses[1]
    assert (pictures / "learned_schedule.png").stat().st_size > 10_000


@shows("deq_digits.py", "--quick")
def test_a_deep_equilibrium_model_learns_by_every_gradient(example):
    printed, pictures = example
    accuracies = [float(share) for share in re.findall(r"test accuracy ([\d.]+)%", printed)]

    assert len(accuracies) == 4
    assert min(accuracies) > 30  # from 10, in one epoch
    assert (pictures / "deq_digits.png").stat().st_size > 10_000


@shows("reweight_noisy_labels.py", "--quick")
def test_learned_weights_beat_equal_ones_where_labels_are_wrong(example):
    printed, pictures = example
    learned, alike, _ = [float(share) for share in re.findall(r"test accuracy ([\d.]+)%", printed)]
    right, wrong = [float(share) for share in re.findall(r"labels ([\d.]+)% have", printed)]

    assert learned > alike + 10
    assert right > wrong + 50
    assert (pictures / "reweight_noisy_labels.png").stat().st_size > 10_000


@shows("trilevel.py", "--quick")
def test_penalties_learned_at_the_third_level_beat_those_that_were_set(example):
    printed, pictures = example
    as_set, learned = [float(loss) for loss in re.findall(r"test loss ([\d.]+)", printed)]

    assert learned < as_set - 0.05
    assert (pictures / "trilevel.png").stat().st_size > 10_000


@shows("maml_distributed.py", "--quick")
def test_meta_gradients_of_two_processes_have_the_bits_of_sequential_ones(example):
    printed, pictures = example

    assert "0 of 10 meta-gradients differ" in printed
    assert (pictures / "maml_distributed.png").stat().st_size > 10_000


@shows("lola_distributed.py", "--quick")
def test_agents_that_look_through_one_another_lose_fewer_years(example):
    printed, pictures = example
    years = [float(first) for first in re.findall(r"(-[\d.]+) and -[\d.]+ years", printed)]

    assert years[1] > years[0] + 0.3
    assert (pictures / "lola_distributed.png").stat().st_size > 10_000


@shows("population_distributed.py", "--quick")
def test_an_asynchronous_population_brings_its_rates_together(example):
    printed, pictures = example
    rates = [float(rate) for rate in re.findall(r"-> ([\d.]+):", printed)]

    assert len(rates) == 6
    assert max(rates) / min(rates) < 150  # from 300
    assert (pictures / "population_distributed.png").stat().st_size > 10_000


@shows("gradient_graphs.py")
def test_graphs_of_unrolls_and_of_solutions_are_small_pictures(example):
    printed, pictures = example
    boxes = {name: int(count) for name, count in re.findall(r"(\w+): \d+ nodes in (\d+)", printed)}

    assert "gets no gradient" not in printed
    assert boxes.keys() == {"maml", "imaml", "equilibrium", "thousand_steps"}
    assert max(boxes.values()) < 20
    assert all((pictures / f"{name}.html").stat().st_size > 10_000 for name in boxes)
    assert "like this" in (pictures / "thousand_steps.svg").read_text()


@shows("lola_prisoners_dilemma.py", "--quick")
def test_lola_agents_find_tit_for_tat_where_naive_learners_defect(example):
    printed, pictures = example
    probability = r" ([\d.]+)" * 5
    naive, exact, sampled = numbers(rf"(-[\d.]+) years .*DD:{probability}", printed)

    assert naive[0] < -1.9
    for years, _, after_cc, after_cd, after_dc, after_dd in (exact, sampled):
        assert years > -1.5
        assert min(after_cc, after_dc) > 0.7
        assert max(after_cd, after_dd) < 0.4
    assert (pictures / "lola_prisoners_dilemma.png").stat().st_size > 10_000


@shows("maml_rl.py", "--quick")
def test_where_maml_begins_a_policy_adapts_to_more_than_one_that_knows_nothing(example):
    printed, pictures = example
    returns = numbers(r"return ([\d.]+) -> ([\d.]+) -> ([\d.]+)", printed)

    assert returns[0][2] > returns[2][2] + 1
    assert returns[0][2] > returns[0][0] + 1
    assert (pictures / "maml_rl.png").stat().st_size > 10_000


@shows("mgrl.py", "--quick")
def test_a_discount_comes_nearer_to_the_best_one_from_both_sides(example):
    printed, pictures = example
    (low, raised), (high, lowered) = numbers(r"discount ([\d.]+) -> ([\d.]+)", printed)

    assert low + 0.1 < raised < 0.95
    assert 0.88 < lowered < high - 0.01
    assert (pictures / "mgrl.png").stat().st_size > 10_000


@shows("es_maml.py", "--quick")
def test_a_learned_beginning_makes_a_search_win_more(example):
    printed, pictures = example
    ((learned,),) = numbers(r"learned beginning [\d.]+, after 8 tries ([\d.]+)", printed)
    ((still,),) = numbers(r"after 8 tries, from standing still: ([\d.]+)", printed)

    assert learned > still + 1
    assert (pictures / "es_maml.png").stat().st_size > 10_000


@shows("feature_regularization.py", "--quick")
def test_a_penalty_for_each_feature_beats_the_best_shared_one(example):
    printed, pictures = example
    losses = numbers(r"test loss ([\d.]+) with the best shared penalty, ([\d.]+)", printed)

    assert len(losses) == 2
    assert all(learned < shared - 0.05 for shared, learned in losses)
    assert (pictures / "feature_regularization.png").stat().st_size > 10_000


@shows("hyper_cleaning.py", "--quick")
def test_weights_learned_through_a_thousand_steps_find_wrong_labels(example):
    printed, pictures = example
    ((alike,),) = numbers(r"all alike: test accuracy ([\d.]+)%", printed)
    ways = numbers(
        r"clean loss ([\d.]+), test accuracy ([\d.]+)%, ([\d.]+)% of the labels", printed
    )

    assert ways[0][0] < ways[1][0]  # the exact gradient minimizes faster than the truncated one
    for _, accuracy, found in ways:
        assert accuracy > alike + 10
        assert found > 75
    assert (pictures / "hyper_cleaning.png").stat().st_size > 10_000


@shows("optnet_layer.py", "--quick")
def test_a_learned_filter_leaves_less_noise_than_total_variation(example):
    printed, pictures = example
    errors = dict(re.findall(r"([\w ]+): mean squared error ([\d.]+)", printed))

    assert float(errors["learned"]) < 0.8 * float(errors["total variation"])
    assert (pictures / "optnet_layer.png").stat().st_size > 10_000


@shows("learned_schedule_pes.py", "--quick")
def test_persistent_evolution_strategies_learn_a_schedule_that_truncation_misses(example):
    printed, pictures = example
    (first,), (persistent,), (truncated,) = numbers(r"sum of losses ([\d.]+)", printed)

    assert persistent < 0.5 * first
    assert truncated > 2 * persistent
    assert (pictures / "learned_schedule_pes.png").stat().st_size > 10_000


@shows("learned_optimizer_pes.py", "--quick")
def test_an_optimizer_learns_to_train_classifiers_that_it_has_not_seen(example):
    printed, pictures = example
    ((mean, last), *rivals) = numbers(r"mean loss ([\d.]+), at the end ([\d.]+)", printed)

    assert mean < 1.4  # one that knows nothing stays at 2.3
    assert last < 0.8
    assert len(rivals) == 2
    assert (pictures / "learned_optimizer_pes.png").stat().st_size > 10_000


@shows("maml_digits.py", "--quick")
def test_learned_rates_and_weights_tell_unseen_digits_apart_after_five_steps(example):
    printed, pictures = example
    ((before, after),) = numbers(r"MAML: accuracy ([\d.]+)% -> ([\d.]+)%", printed)

    assert after > before + 10
    assert len(numbers(r"from scratch, \d+ steps: accuracy ([\d.]+)%", printed)) == 2
    assert (pictures / "maml_digits.png").stat().st_size > 10_000
    assert "adam_step" in (pictures / "meta_step.svg").read_text()


@shows("imaml_digits.py", "--quick")
def test_gradients_through_many_steps_come_to_those_of_implicit_maml(example):
    printed, pictures = example
    accuracies = numbers(r"MAML: accuracy ([\d.]+)% -> ([\d.]+)%", printed)
    away = numbers(r"is ([\d.]+)% away from the implicit one", printed)

    assert len(accuracies) == 2
    assert away[0] > (100.0,)
    assert away[-1] < (1.0,)
    assert (pictures / "imaml_digits.png").stat().st_size > 10_000


@shows("few_shot_variants.py", "--quick")
def test_all_ways_to_begin_run_on_the_same_tasks(example):
    printed, pictures = example
    before = [first for first, _ in numbers(r"accuracy ([\d.]+)% -> ([\d.]+)%", printed)]

    assert len(before) == 3
    assert before[0] == before[1]  # Meta-SGD begins as MAML does
    assert (pictures / "few_shot_variants.png").stat().st_size > 10_000

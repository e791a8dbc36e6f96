"""The examples run, and what they show is there already in their first steps."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *options):
    """What an example prints."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern, printed):
    """The numbers in the groups of each match, a tuple a match."""
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, printed)]


def test_a_schedule_learned_through_all_steps_beats_one_learned_through_the_last(tmp_path):
    printed = run("learned_schedule.py", "--quick", "--results", tmp_path)
    losses = [float(after) for after in re.findall(r"held-out loss [\d.]+ -> ([\d.]+)", printed)]

    assert losses[0] < losses[1]
    assert (tmp_path / "learned_schedule.png").stat().st_size > 10_000


def test_a_deep_equilibrium_model_learns_by_every_gradient(tmp_path):
    printed = run("deq_digits.py", "--quick", "--results", tmp_path)
    accuracies = [float(share) for share in re.findall(r"test accuracy ([\d.]+)%", printed)]

    assert len(accuracies) == 4
    assert min(accuracies) > 30  # from 10, in one epoch
    assert (tmp_path / "deq_digits.png").stat().st_size > 10_000


def test_learned_weights_beat_equal_ones_where_labels_are_wrong(tmp_path):
    printed = run("reweight_noisy_labels.py", "--quick", "--results", tmp_path)
    learned, alike, _ = [float(share) for share in re.findall(r"test accuracy ([\d.]+)%", printed)]
    right, wrong = [float(share) for share in re.findall(r"labels ([\d.]+)% have", printed)]

    assert learned > alike + 10
    assert right > wrong + 50
    assert (tmp_path / "reweight_noisy_labels.png").stat().st_size > 10_000


def test_penalties_learned_at_the_third_level_beat_those_that_were_set(tmp_path):
    printed = run("trilevel.py", "--quick", "--results", tmp_path)
    as_set, learned = [float(loss) for loss in re.findall(r"test loss ([\d.]+)", printed)]

    assert learned < as_set - 0.05
    assert (tmp_path / "trilevel.png").stat().st_size > 10_000


def test_meta_gradients_of_two_processes_have_the_bits_of_sequential_ones(tmp_path):
    printed = run("maml_distributed.py", "--quick", "--results", tmp_path)

    assert "0 of 10 meta-gradients differ" in printed
    assert (tmp_path / "maml_distributed.png").stat().st_size > 10_000


def test_agents_that_look_through_one_another_lose_fewer_years(tmp_path):
    printed = run("lola_distributed.py", "--quick", "--results", tmp_path)
    years = [float(first) for first in re.findall(r"(-[\d.]+) and -[\d.]+ years", printed)]

    assert years[1] > years[0] + 0.3
    assert (tmp_path / "lola_distributed.png").stat().st_size > 10_000


def test_an_asynchronous_population_brings_its_rates_together(tmp_path):
    printed = run("population_distributed.py", "--quick", "--results", tmp_path)
    rates = [float(rate) for rate in re.findall(r"-> ([\d.]+):", printed)]

    assert len(rates) == 6
    assert max(rates) / min(rates) < 150  # from 300
    assert (tmp_path / "population_distributed.png").stat().st_size > 10_000


def test_graphs_of_unrolls_and_of_solutions_are_small_pictures(tmp_path):
    printed = run("gradient_graphs.py", "--results", tmp_path)
    boxes = {name: int(count) for name, count in re.findall(r"(\w+): \d+ nodes in (\d+)", printed)}

    assert "gets no gradient" not in printed
    assert boxes.keys() == {"maml", "imaml", "equilibrium", "thousand_steps"}
    assert max(boxes.values()) < 20
    assert all((tmp_path / f"{name}.html").stat().st_size > 10_000 for name in boxes)
    assert "like this" in (tmp_path / "thousand_steps.svg").read_text()


def test_lola_agents_find_tit_for_tat_where_naive_learners_defect(tmp_path):
    printed = run("lola_prisoners_dilemma.py", "--quick", "--results", tmp_path)
    probability = r" ([\d.]+)" * 5
    naive, exact, sampled = numbers(rf"(-[\d.]+) years .*DD:{probability}", printed)

    assert naive[0] < -1.9
    for years, _, after_cc, after_cd, after_dc, after_dd in (exact, sampled):
        assert years > -1.5
        assert min(after_cc, after_dc) > 0.7
        assert max(after_cd, after_dd) < 0.4
    assert (tmp_path / "lola_prisoners_dilemma.png").stat().st_size > 10_000


def test_where_maml_begins_a_policy_adapts_to_more_than_one_that_knows_nothing(tmp_path):
    printed = run("maml_rl.py", "--quick", "--results", tmp_path)
    returns = numbers(r"return ([\d.]+) -> ([\d.]+) -> ([\d.]+)", printed)

    assert returns[0][2] > returns[2][2] + 1
    assert returns[0][2] > returns[0][0] + 1
    assert (tmp_path / "maml_rl.png").stat().st_size > 10_000


def test_a_discount_comes_nearer_to_the_best_one_from_both_sides(tmp_path):
    printed = run("mgrl.py", "--quick", "--results", tmp_path)
    (low, raised), (high, lowered) = numbers(r"discount ([\d.]+) -> ([\d.]+)", printed)

    assert low + 0.1 < raised < 0.95
    assert 0.88 < lowered < high - 0.01
    assert (tmp_path / "mgrl.png").stat().st_size > 10_000


def test_a_learned_beginning_makes_a_search_win_more(tmp_path):
    printed = run("es_maml.py", "--quick", "--results", tmp_path)
    ((learned,),) = numbers(r"learned beginning [\d.]+, after 8 tries ([\d.]+)", printed)
    ((still,),) = numbers(r"after 8 tries, from standing still: ([\d.]+)", printed)

    assert learned > still + 1
    assert (tmp_path / "es_maml.png").stat().st_size > 10_000


def test_a_penalty_for_each_feature_beats_the_best_shared_one(tmp_path):
    printed = run("feature_regularization.py", "--quick", "--results", tmp_path)
    losses = numbers(r"test loss ([\d.]+) with the best shared penalty, ([\d.]+)", printed)

    assert len(losses) == 2
    assert all(learned < shared - 0.05 for shared, learned in losses)
    assert (tmp_path / "feature_regularization.png").stat().st_size > 10_000


def test_weights_learned_through_a_thousand_steps_find_wrong_labels(tmp_path):
    printed = run("hyper_cleaning.py", "--quick", "--results", tmp_path)
    ((alike,),) = numbers(r"all alike: test accuracy ([\d.]+)%", printed)
    ways = numbers(
        r"clean loss ([\d.]+), test accuracy ([\d.]+)%, ([\d.]+)% of the labels", printed
    )

    assert ways[0][0] < ways[1][0]  # the exact gradient minimizes faster than the truncated one
    for _, accuracy, found in ways:
        assert accuracy > alike + 10
        assert found > 75
    assert (tmp_path / "hyper_cleaning.png").stat().st_size > 10_000


def test_a_learned_filter_leaves_less_noise_than_total_variation(tmp_path):
    printed = run("optnet_layer.py", "--quick", "--results", tmp_path)
    errors = dict(re.findall(r"([\w ]+): mean squared error ([\d.]+)", printed))

    assert float(errors["learned"]) < 0.8 * float(errors["total variation"])
    assert (tmp_path / "optnet_layer.png").stat().st_size > 10_000


def test_persistent_evolution_strategies_learn_a_schedule_that_truncation_misses(tmp_path):
    printed = run("learned_schedule_pes.py", "--quick", "--results", tmp_path)
    (first,), (persistent,), (truncated,) = numbers(r"sum of losses ([\d.]+)", printed)

    assert persistent < 0.5 * first
    assert truncated > 2 * persistent
    assert (tmp_path / "learned_schedule_pes.png").stat().st_size > 10_000


def test_an_optimizer_learns_to_train_classifiers_that_it_has_not_seen(tmp_path):
    printed = run("learned_optimizer_pes.py", "--quick", "--results", tmp_path)
    ((mean, last), *rivals) = numbers(r"mean loss ([\d.]+), at the end ([\d.]+)", printed)

    assert mean < 1.4  # one that knows nothing stays at 2.3
    assert last < 0.8
    assert len(rivals) == 2
    assert (tmp_path / "learned_optimizer_pes.png").stat().st_size > 10_000


def test_implicit_maml_and_maml_learn_to_read_digits_that_they_have_not_seen(tmp_path):
    printed = run("imaml_digits.py", "--quick", "--results", tmp_path)
    accuracies = numbers(r"MAML: accuracy ([\d.]+)% -> ([\d.]+)%", printed)

    assert len(accuracies) == 2
    assert max(after for _, after in accuracies) > 25  # chance is 20
    assert (tmp_path / "imaml_digits.png").stat().st_size > 10_000


def test_all_ways_to_begin_run_on_the_same_tasks(tmp_path):
    printed = run("few_shot_variants.py", "--quick", "--results", tmp_path)
    before = [first for first, _ in numbers(r"accuracy ([\d.]+)% -> ([\d.]+)%", printed)]

    assert len(before) == 3
    assert before[0] == before[1]  # Meta-SGD begins as MAML does
    assert (tmp_path / "few_shot_variants.png").stat().st_size > 10_000

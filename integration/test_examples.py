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

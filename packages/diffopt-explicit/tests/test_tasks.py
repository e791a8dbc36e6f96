import itertools
import math

import pytest
import torch
from diffopt_explicit.tasks import Harmonic, NWayKShot, Sinusoid, Task, stacked
from torch.utils.data import Subset, TensorDataset


class Counting:
    """Items that are their own index, with labels of another type, and a count of looks at them."""

    def __init__(self, size: int, classes: int):
        self.size, self.classes, self.looks = size, classes, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.looks += 1
        return torch.tensor([float(index)]), f"class {index % self.classes}"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_support_and_query_are_of_the_same_classes_and_disjoint():
    for task in itertools.islice(NWayKShot(Counting(60, 6), 3, 2, 4, generator=seeded()), 20):
        support = task.support_x.squeeze(1).long().reshape(3, 2)
        query = task.query_x.squeeze(1).long().reshape(3, 4)
        both = torch.cat([support, query], 1)

        assert len({*both.flatten().tolist()}) == 18
        assert torch.equal(both % 6, (both[:, :1] % 6).expand(3, 6))
        assert len({*(both[:, 0] % 6).tolist()}) == 3
        assert task.support_y.tolist() == [0, 0, 1, 1, 2, 2]
        assert task.query_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_every_class_is_drawn_equally_often():
    tasks = NWayKShot(Counting(20, 5), 2, 1, 0, generator=seeded())
    drawn = torch.cat([tasks.sample().support_x for _ in range(1000)]).long() % 5

    assert torch.bincount(drawn.flatten(), minlength=5).sub(400).abs().max() < 60


def test_labels_are_looked_for_once():
    dataset = Counting(30, 3)
    tasks = NWayKShot(dataset, 2, 1, 1)
    assert dataset.looks == 30
    tasks.sample()
    assert dataset.looks == 34
    NWayKShot(dataset, 2, 1, 1, labels=[index % 3 for index in range(30)])
    dataset.targets = torch.arange(30) % 3
    NWayKShot(dataset, 2, 1, 1)
    assert dataset.looks == 34


def test_the_generator_decides():
    def draw(seed):
        return NWayKShot(Counting(60, 6), 3, 2, 4, generator=seeded(seed)).sample().support_x

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_data_sets_of_torch_are_drawn_from():
    dataset = Subset(TensorDataset(torch.randn(40, 2, 3), torch.arange(40) % 4), range(20))
    task = NWayKShot(dataset, 4, 2, 3).sample_many(5)

    assert task.support_x.shape == (5, 8, 2, 3)
    assert task.query_y.shape == (5, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "`ways` must be at least 1, got 0"),
        ((2, 0), "`shots` must be at least 1, got 0"),
        ((2, 1, -1), "`queries` must be at least 0, got -1"),
        ((4, 1, 1), "needs as many classes of 2 examples or more, but there are 3"),
        ((3, 8, 3), "needs as many classes of 11 examples or more, but there are 0"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NWayKShot(Counting(30, 3), *arguments)


def test_inputs_that_are_no_tensors_are_refused():
    tasks = NWayKShot([(object(), 0), (object(), 1)], 2, 1, 0)
    with pytest.raises(TypeError, match=r"item [01] of the data set has a object"):
        tasks.sample()


def test_labels_for_another_number_of_items_are_refused():
    with pytest.raises(ValueError, match="There are 3 labels for 30 items"):
        NWayKShot(Counting(30, 3), 2, 1, labels=[0, 1, 2])


def residual(basis: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How much of `y` is not in the span of the columns of `basis`."""
    return (y - basis @ torch.linalg.lstsq(basis, y).solution).norm() / y.norm()


def everything(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.cat(pair).double() for pair in (task[0::2], task[1::2]))
    return x, y


def test_sinusoids_are_sine_waves_of_the_family():
    for seed in range(20):
        x, y = everything(Sinusoid(generator=seeded(seed)).sample())
        basis = torch.cat([x.sin(), -x.cos()], 1)
        across, along = torch.linalg.lstsq(basis, y).solution.flatten().tolist()

        assert residual(basis, y) < 1e-5
        assert 0.1 <= math.hypot(across, along) <= 5
        assert along >= 0  # a phase in [0, pi]
        assert x.abs().max() <= 5


def test_harmonics_are_sums_of_two_waves_one_an_octave_higher():
    for seed in range(5):
        x, y = everything(Harmonic(generator=seeded(seed)).sample())

        def off(w, x=x, y=y):
            return residual(
                torch.cat([f(k * w * x) for f in (torch.sin, torch.cos) for k in (1, 2)], 1), y
            ).item()

        best = min(torch.linspace(5, 7, 2001).tolist(), key=off)

        assert off(best) < 0.01 < off(best + 0.5)
        assert x.mean().abs() < 4.5


def test_noise_is_in_what_is_learned_from_only():
    pure, noisy = (Sinusoid(500, noise=noise, generator=seeded()).sample() for noise in (0.0, 0.3))
    difference = noisy.support_y - pure.support_y

    assert difference.std().item() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(pure.query_y, noisy.query_y)


@pytest.mark.parametrize("family", [Sinusoid, Harmonic])
def test_many_tasks_are_stacked(family):
    many = family(3, 7, generator=seeded()).sample_many(4)
    tasks = family(3, 7, generator=seeded())
    one_by_one = stacked([tasks.sample() for _ in range(4)])

    assert [tuple(part.shape) for part in many] == [(4, 3, 1), (4, 3, 1), (4, 7, 1), (4, 7, 1)]
    assert all(torch.equal(a, b) for a, b in zip(many, one_by_one, strict=True))

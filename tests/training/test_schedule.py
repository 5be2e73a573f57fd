"""How long training takes by itself: few examples are seen more often, and training stops when that no longer helps."""

import pytest

from loratory.settings import TrainConfig
from loratory.training import epochs_of, patience_of, resolve_schedule, total_steps


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(3, 40), (48, 40), (100, 18), (160, 12), (400, 5), (640, 3), (5000, 3)],
)
def test_few_examples_are_seen_more_often(examples: int, epochs: int):
    settings = resolve_schedule(TrainConfig(), examples, validated=True)
    assert epochs_of(settings) == epochs
    assert total_steps(examples, settings) >= 120 or epochs == 40


def test_the_batch_size_counts():
    assert epochs_of(resolve_schedule(TrainConfig(batch_size=4), 160, True)) == 3
    assert epochs_of(resolve_schedule(TrainConfig(batch_size=64), 160, True)) == 40


@pytest.mark.parametrize(("epochs", "patience"), [(1, 2), (3, 2), (12, 3), (40, 8)])
def test_training_stops_after_a_fifth_of_the_epochs_without_a_lower_loss(epochs: int, patience: int):
    assert patience_of(resolve_schedule(TrainConfig(epochs=epochs), 100, True)) == patience


def test_nothing_stops_early_without_validation_or_if_the_last_weights_are_wanted():
    assert patience_of(resolve_schedule(TrainConfig(), 100, validated=False)) == 0
    assert patience_of(resolve_schedule(TrainConfig(keep="last"), 100, validated=True)) == 0


def test_numbers_stay_as_they_are():
    settings = TrainConfig(epochs=7, early_stopping=1)
    assert resolve_schedule(settings, 10, validated=False) == settings

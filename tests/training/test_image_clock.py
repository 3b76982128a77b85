"""Intervals in images seen."""

import pytest

from diffgan.training.image_clock import ImageInterval


@pytest.mark.parametrize("batch", [1, 7, 10, 24])
def test_an_interval_passes_once_at_every_multiple(batch):
    interval = ImageInterval(10)
    counts = range(batch, 241, batch)
    passed = [images_seen for images_seen in counts if interval.passed(images_seen)]
    first_counts = {-(-multiple // batch) * batch for multiple in range(10, 241, 10)}
    assert passed == sorted(first_counts & set(counts))


def test_a_resumed_training_passes_where_an_uninterrupted_one_does():
    uninterrupted, resumed = ImageInterval(100), ImageInterval(100)
    before = [uninterrupted.passed(images_seen) for images_seen in range(32, 161, 32)]
    assert before == [False, False, False, True, False]
    resumed.start(160)
    after = range(192, 641, 32)
    assert [resumed.passed(images_seen) for images_seen in after] == [uninterrupted.passed(seen) for seen in after]

"""Pictures of a generation: every one is drawn, from the tables alone, and never at the cost of the run."""

import logging

import numpy as np
import pytest
from PIL import Image

from orchestrator.analysis.pictures import PLOTS, draw, is_pictured
from orchestrator.config import config_from_dict
from orchestrator.history import read_journal
from orchestrator.store import Store
from orchestrator.tracked import Pictures
from workers.memory.sensitivity import feature_names, feature_sensitivity
from workers.memory.specs import NammSettings


class Seen:
    """A tracker that remembers the pictures it was given."""

    def __init__(self):
        self.images = []

    def log_image(self, key, generation, path, timestamp_ms):
        assert path.exists()
        assert timestamp_ms > 0
        self.images.append((key, generation))


@pytest.fixture(scope="module")
def config(finished_run):
    return config_from_dict(read_journal(finished_run.folder).attempts[-1].config)


@pytest.mark.parametrize("generation", [0, 1])
def test_every_picture_shows_something(generation, finished_run, config, tmp_path):
    """The first as well: its four candidates must not be taken for one colour of four numbers."""
    drawn = draw(Store(finished_run.folder), generation, config.memory, tmp_path)
    assert set(drawn) == set(PLOTS)
    for path in drawn.values():
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape == (450, 720, 3)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 30


def test_about_eight_generations_get_pictures_the_first_and_the_last_among_them():
    for total in (1, 2, 7, 40, 200, 1000):
        chosen = [generation for generation in range(total) if is_pictured(generation, total)]
        assert chosen[0] == 0
        assert chosen[-1] == total - 1
        assert len(chosen) <= 9


def test_a_generation_is_drawn_when_the_next_has_ended(finished_run, config, tmp_path):
    seen = Seen()
    first, second = read_journal(finished_run.folder).generations
    with Pictures(config, Store(finished_run.folder), seen, tmp_path) as pictures:
        pictures.take(first)
        pictures._thread.submit(int).result()  # the thread has had its turn
        assert seen.images == []
        pictures.take(second)
        pictures.draw_waiting()
    assert seen.images == [(key, generation) for generation in (0, 1) for key in PLOTS]


def test_a_picture_that_fails_is_told_and_costs_nothing(config, tmp_path, finished_run, caplog):
    record = read_journal(finished_run.folder).generations[0]
    with caplog.at_level(logging.WARNING), Pictures(config, Store(tmp_path / "empty"), Seen(), tmp_path) as pictures:
        pictures.take(record)
        pictures.draw_waiting()
    assert "the pictures of generation 0 were not drawn" in caplog.text


def test_a_memory_that_reads_one_feature_is_found_out():
    """Only the score's own weight of feature 3 is set: importance is that feature, times its weight."""
    settings = NammSettings(update_every=64, hidden_size=4)
    genome = np.zeros(settings.genome_size, np.float32)
    genome[-1 - settings.num_features + 3] = -2.0
    sensitivity = feature_sensitivity(settings, genome)
    assert sensitivity[3] == pytest.approx(2.0)
    assert np.delete(sensitivity, 3) == pytest.approx(0.0)
    names = feature_names(settings)
    assert len(names) == len(set(names)) == settings.num_features

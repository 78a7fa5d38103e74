from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import bench_rivals
from tests.benchmarks.bench_rivals import Job, jobs_for, measured, printed
from tests.text_model import write_text_model
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec
from workers.settings import ModelSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model and memories of random genomes."""
    place = tmp_path_factory.mktemp("rivals")
    write_text_model(place / "model", vocabulary=2048)
    settings = NammSettings(update_every=256, heads="ragged", hidden_size=4, window=8, hop=4)
    for seed in (0, 1, 2):
        genome = np.random.default_rng(seed).normal(size=settings.genome_size).astype(np.float32)
        PretrainedMemory(NammSpec(settings=settings), genome, {}).save_pretrained(place / f"memory-seed{seed}")
    return place


def test_memories_are_compared_by_seed_with_every_rival(folder, monkeypatch):
    monkeypatch.setattr(bench_rivals, "KINDS", ("text_fact_code",))
    memories = [str(folder / f"memory-seed{seed}") for seed in (0, 1)]
    jobs = jobs_for(memories, [str(folder / "memory-seed2")], [(512, 2)], Job("", "", 0, 0, ("tova", "truncation")), [])
    assert [job.rivals for job in jobs] == [("tova", "truncation")] * 2 + [()]
    rows = [row for found in measured(ModelSettings(path_or_id=str(folder / "model")), jobs, 1) for row in found]
    names = {row["name"] for row in rows}
    assert names == {
        "full", "namm", "one-head", "truncation", "tova-uniform", "tova-layer", "tova-head", "memory-seed2",
    }  # fmt: skip
    assert all(len(row["by_document"]) == 2 for row in rows)
    held = {row["memory"]: row["kept_ratio"] for row in rows if row["name"] == "namm"}
    for row in rows:
        if row["name"] == "tova-head":
            assert row["kept_ratio"] == pytest.approx(held[row["memory"]], rel=0.05), "at equal bytes"
    text = printed([row for row in rows if row["kind"] == "text_fact_code"])
    assert "| *kept by namm* |" in text
    assert "| tova-head |" in text
    assert "| text_fact_code | 0" in text


@pytest.mark.parametrize("unit", ["tokens", "bytes"])
def test_a_dial_is_turned_for_all_kinds_together(folder, monkeypatch, tmp_path, unit):
    monkeypatch.setattr(bench_rivals, "KINDS", ("text_fact_code", "text_kv"))
    model = ModelSettings(path_or_id=str(folder / "model"))
    (found,) = bench_rivals.turned(model, [str(folder / "memory-seed0")], 0.6, 512, tmp_path, unit)
    assert found == str(tmp_path / f"memory-seed0-{unit}-0.6")
    memory = PretrainedMemory.from_pretrained(found)
    assert memory.spec.threshold != 0.0
    assert memory.origin["dial"]["reached"] == pytest.approx(0.6, abs=0.05)
    assert memory.spec.settings == PretrainedMemory.from_pretrained(folder / "memory-seed0").spec.settings

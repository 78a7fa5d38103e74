"""What a champion says about where it came from, and the card that is made of it."""

import json
import re

from orchestrator.provenance import TOLD, code_hash
from workers.memory.pretrained import PretrainedMemory


def test_a_champion_carries_its_scores_and_hashes(finished_run):
    origin, summary = PretrainedMemory.from_pretrained(finished_run.champion).origin, finished_run.summary
    assert origin["config_hash"] == summary["config_hash"]
    assert origin["population_hash"] == summary["population_hash"]
    assert origin["code_hash"] == code_hash()
    assert re.fullmatch("[0-9a-f]{64}", code_hash())
    assert [row["name"] for row in origin["table"]][:3] == ["full", "namm", "one-head"]
    assert all(row.keys() == set(TOLD) for row in origin["table"])
    (ours,) = [row for row in origin["table"] if row["name"] == "namm"]
    (theirs,) = [row for row in summary["table"] if row["name"] == "namm"]
    assert ours == {key: round(theirs[key], 6) if isinstance(theirs[key], float) else theirs[key] for key in TOLD}


def test_each_rival_is_shown_once_with_its_best_split(finished_run):
    rows = PretrainedMemory.from_pretrained(finished_run.champion).origin["table"]
    recent = [row for row in finished_run.summary["table"] if row["name"].startswith("recent-")]
    assert [row["name"] for row in rows[3:]] == [max(recent, key=lambda row: row["graded"])["name"]]


def test_a_champion_has_a_card(finished_run):
    text = (finished_run.champion / "README.md").read_text()
    assert "| 256 | **namm** |" in text
    assert finished_run.summary["config_hash"] in text
    assert len((finished_run.champion / "config.json").read_bytes()) < 16_000
    assert json.loads((finished_run.champion / "config.json").read_text())["version"] == 1

"""The table of architectures has a row for each, and says of every text whether it is the same."""

from __future__ import annotations

import dataclasses

import pytest

from tests.benchmarks import bench_architectures
from tests.workers.memory.zoo import ARCHITECTURES


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setattr(bench_architectures, "REPEATS", 1)
    monkeypatch.setattr(bench_architectures, "NEW_TOKENS", 4)


def rows(capsys):
    lines = capsys.readouterr().out.splitlines()[2:]
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in lines)}


def test_every_architecture_and_the_small_llama_have_a_row_with_the_same_text(capsys):
    assert bench_architectures.main() == 0
    found = rows(capsys)
    assert list(found) == [*ARCHITECTURES, "small-llama"]
    assert {cells[0] for cells in found.values()} == {"yes"}
    for name, (_, plain, fused, watching, plain_kb, memory_kb, own_kb) in found.items():
        assert all("ms" in cell for cell in (plain, fused, watching)), name
        held = [float(kb.replace(",", "")) for kb in (plain_kb, memory_kb, own_kb)]
        assert held[0] <= held[1], name
        assert held[2] > 0, name


def test_another_text_is_told_and_is_exit_code_1(capsys, monkeypatch):
    whole = bench_architectures.decode

    def decode(model, ids, memory):
        decoded = whole(model, ids, memory)
        return decoded if memory is None else dataclasses.replace(decoded, text=[[0]])

    models = list(bench_architectures.models())[:1]
    monkeypatch.setattr(bench_architectures, "models", lambda: models)
    monkeypatch.setattr(bench_architectures, "decode", decode)
    assert bench_architectures.main() == 1
    assert rows(capsys)["llama"][0] == "NO"

"""The benchmark of ``generate`` says what each way costs."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import bench_generate


@pytest.mark.slow
def test_every_way_has_a_line(capsys, tmp_path):
    options = ["--prompt", "600", "--kept", "100", "--new-tokens", "3", "--repeats", "1"]
    assert bench_generate.main([*options, "--json", str(tmp_path / "generate.json")]) == 0
    said, written = capsys.readouterr().out, json.loads((tmp_path / "generate.json").read_text())
    for name in ("plain SDPA", "even, model.generate", "even, memory.generate", "ragged, memory.generate"):
        assert f"| {name} | " in said
        assert len(written[name]) == 1

"""The benchmark of ``generate`` says what each way costs."""

from __future__ import annotations

import pytest

from tests.benchmarks import bench_generate


@pytest.mark.slow
def test_every_way_has_a_line(capsys):
    assert bench_generate.main(["--prompt", "600", "--kept", "100", "--new-tokens", "3", "--repeats", "1"]) == 0
    said = capsys.readouterr().out
    for name in ("plain SDPA", "even, model.generate", "even, memory.generate", "ragged, memory.generate"):
        assert f"| {name} | " in said

"""The comparison with golden data passes, and would not pass if a number were another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conformance.__main__ import USAGE, main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASE = "case2_mha"  # the quickest
ON_AN_ACCELERATOR = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator"),
]


@pytest.fixture(autouse=True)
def threads():
    """The command sets them for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def case(tmp_path) -> Path:
    """A copy of one case."""
    return Path(shutil.copytree(GOLDEN / CASE, tmp_path / "golden" / CASE))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.conformance", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def change(path: Path, key: str, by: float) -> None:
    """Adds ``by`` to the middle number of one array, times its magnitude where that is above 1."""
    with np.load(path) as arrays:
        changed = dict(arrays)
    array = changed[key] = np.array(changed[key])
    middle = array.size // 2
    array.flat[middle] += by * max(1, abs(array.flat[middle])) if array.dtype.kind == "f" else by
    np.savez(path, **changed)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_AN_ACCELERATOR)])
def test_the_command_passes_on_all_golden_data_with_one_line_per_case(device):
    done = run("tests/golden", device)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    names = [path.parent.name for path in GOLDEN.glob("*/meta.json")]
    names += [f"substeps/{path.name}" for path in GOLDEN.glob("substeps/*") if path.name != "metrics.json"]
    assert sorted(line.split()[1] for line in lines if line.startswith("pass")) == sorted(names)
    assert lines[-1] == f"{len(names)} passed, 0 failed"
    assert len(lines) == len(names) + 2  # what is skipped is said, too
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("file", "key", "by", "complaint"),
    [
        ("updates.npz", "u0_l0_scores", 3e-4, "u0_l0 scores: off by 3.0"),
        ("updates.npz", "u4_l2_scores", 3e-4, "u4_l2 scores: off by 3.0"),
        ("updates.npz", "u2_l1_retained_pos", 1, "u2_l1 retained: 1 of"),
        ("updates.npz", "u1_l0_pos_before", 1, "u1_l0 positions before: 1 of"),
        ("features.npz", "u0_l1_features", 3e-4, "u0_l1 features: off by"),
        ("features.npz", "u0_l2_ema", 3e-4, "u0_l2 ema: off by"),
        ("final_cache.npz", "k_l2", 3e-4, "final k_l2: off by"),
        ("final_cache.npz", "v_l0", 3e-4, "final v_l0: off by"),
        ("run.npz", "generated_ids", 1, "generated ids: 1 of 48"),
        ("run.npz", "logits", 3e-4, "logits: off by"),
        ("run.npz", "final_cache_sizes", 1, "final cache sizes: "),
        ("run.npz", "norm_num", 1, "norm_num: 1 of 17"),
        ("run.npz", "prompt_ids", 1, "u"),  # the model reads another text: everything is another
    ],
)
def test_one_number_beyond_tolerance_fails_the_case_by_name(case, capsys, file, key, by, complaint):
    change(case / file, key, by)
    assert main([str(case.parent)]) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f"FAIL  {CASE} ")
    assert f"MismatchError: {complaint}" in line
    assert summary == "0 passed, 1 failed"


def test_numbers_within_tolerance_pass(case, capsys):
    change(case / "updates.npz", "u0_l0_scores", 5e-5)
    change(case / "run.npz", "logits", 5e-5)
    assert main([str(case.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


@pytest.mark.parametrize(
    ("file", "key", "by"),
    [
        ("bam.npz", "scores", 3e-4),
        ("selection.npz", "ragged_retained", 1),
        ("recency.npz", "emb", 3e-4),
        ("stft_ema.npz", "f32_ema2", 3e-4),
        ("rope_llama3_x4.npz", "inv_freq", 3e-4),
        ("cma.npz", "n30_g1_mean", 3e-4),
    ],
)
def test_a_sub_step_fails_by_name_too_and_the_others_pass(tmp_path, capsys, file, key, by):
    substeps = tmp_path / "substeps"
    substeps.mkdir()
    for name in {file, "recency.npz", "bam.npz"}:
        shutil.copy(GOLDEN / "substeps" / name, substeps)
    change(substeps / file, key, by)
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == [f"substeps/{file}"]
    assert lines[-1] == f"{len(lines) - 2} passed, 1 failed"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a damaged file open
@pytest.mark.parametrize("spoil", [Path.unlink, cut_short], ids=["missing", "cut-short"])
@pytest.mark.parametrize("file", ["run.npz", "model.safetensors", "updates.npz"])
def test_a_file_that_cannot_be_read_fails_its_case_and_not_the_command(
    case, capsys, file, spoil: Callable[[Path], None]
):
    spoil(case / file)
    shutil.copytree(GOLDEN / "substeps", case.parent / "substeps", ignore=shutil.ignore_patterns("[!b]*"))
    assert main([str(case.parent)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"FAIL  {CASE} ")
    assert lines[1].startswith("pass  substeps/bam.npz ")
    assert lines[2:] == ["1 passed, 1 failed"]


@pytest.mark.parametrize("what", ["absent", "a-file", "no-folder-named"])
def test_a_folder_that_is_absent_is_answered_with_the_usage(tmp_path, capsys, what):
    (tmp_path / "a-file").write_text("")
    assert main([] if what == "no-folder-named" else [str(tmp_path / what)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{USAGE}\n"


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_a_device_that_is_not_there_is_named(case, capsys, device):
    assert main([str(case.parent), device]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"there is no device {device!r} here: name one that torch can use, such as cpu or cuda\n"


def test_a_folder_without_a_case_is_no_success(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"no golden case (a folder with meta.json) in {tmp_path}\n"

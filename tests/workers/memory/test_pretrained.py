"""Saved memories: what is written comes back bit by bit, and every bad file is named in one line with the remedy."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from tests.workers.memory.tiny import drive, random_genomes, random_ids, tiny_model, tiny_normalisation, tiny_settings
from workers.memory.errors import MemoryFileError
from workers.memory.namm import Namm
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec, Normalisation

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def example_memory(hidden_size: int = 4, seed: int = 0, **origin: object) -> PretrainedMemory:
    architecture = tiny_settings(hidden_size=hidden_size, heads="ragged", cap=9)
    genome = random_genomes(architecture, 1, seed)[0].numpy()
    return PretrainedMemory(
        NammSpec(settings=architecture, normalisation=tiny_normalisation(architecture)), genome, origin
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved memory."""
    example_memory(run="r1").save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# There and back ------------------------------------------------------------------------------------------------------

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(
    genome=st.lists(floats, min_size=12, max_size=12),
    statistics=st.none() | st.lists(st.floats(0, 1e30), min_size=2, max_size=2),
    origin=st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.lists(st.floats(-9, 9))),
)
def test_what_is_saved_comes_back_bit_by_bit(tmp_path_factory, genome, statistics, origin):
    """Negative zeros and subnormal numbers included; the statistics are float64."""
    architecture = NammSettings(update_every=3, window=2, hop=1, hidden_size=1, recency_size=2, ema=1 / 3)
    assert architecture.genome_size == 36
    values = np.array((genome * 3)[:36], np.float32)
    normalisation = statistics and Normalisation(tuple(statistics), tuple(statistics[::-1]))
    spec, folder = NammSpec(settings=architecture, normalisation=normalisation), tmp_path_factory.mktemp("memory")
    PretrainedMemory(spec, values, origin).save_pretrained(folder)
    again = PretrainedMemory.from_pretrained(folder)
    assert again.spec == spec
    assert again.genome.dtype == np.float32
    assert again.genome.tobytes() == values.tobytes()
    assert again.origin == origin


def test_a_memory_that_was_read_decides_like_the_one_that_was_saved(folder):
    ids, memory = random_ids(1, 40), PretrainedMemory.from_pretrained(folder).build()
    saved = example_memory()
    direct = Namm(saved.spec.settings, torch.from_numpy(saved.genome[None]), saved.spec.normalisation)
    (ours, cache), (theirs, other) = (drive(tiny_model(), each, ids) for each in (memory, direct))
    assert torch.equal(ours, theirs)
    assert cache.held_tokens().tolist() == other.held_tokens().tolist()
    assert cache.held_tokens().max() < 40


def test_saving_again_replaces_the_memory_and_leaves_nothing_else(folder):
    other = example_memory(hidden_size=3, seed=1)
    other.save_pretrained(str(folder))
    assert PretrainedMemory.from_pretrained(str(folder)).genome.tobytes() == other.genome.tobytes()
    assert set(contents(folder)) == {CONFIG, WEIGHTS, CARD}


# Bad files -----------------------------------------------------------------------------------------------------------


def edit(**changes: object) -> Callable[[Path], None]:
    """Changes top-level keys of the configuration; None takes a key out."""

    def apply(folder: Path) -> None:
        document = {**json.loads((folder / CONFIG).read_text()), **changes}
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))

    return apply


def edit_settings(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        edit(settings={**json.loads((folder / CONFIG).read_text())["settings"], **changes})(folder)

    return apply


def edit_version_3(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        edit_settings(**{"layout": None, "offsets": False, "lookahead": 0, "choice": "network", **changes})(folder)
        edit(version=3, threshold=0.0)(folder)

    return apply


def genome(values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: save_file({"genome": values}, folder / WEIGHTS)


SIZE = tiny_settings().genome_size
BINS = tiny_settings().num_bins

BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config-missing": (CONFIG, lambda folder: (folder / CONFIG).unlink()),
    "config-is-a-folder": (CONFIG, lambda folder: [(folder / CONFIG).unlink(), (folder / CONFIG).mkdir()]),
    "config-empty": (CONFIG, lambda folder: (folder / CONFIG).write_text("")),
    "config-not-json": (CONFIG, lambda folder: (folder / CONFIG).write_text("genome: 1\n")),
    "config-not-text": (CONFIG, lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00\x80")),
    "config-a-list": (CONFIG, lambda folder: (folder / CONFIG).write_text("[1, 2]")),
    "config-of-a-model": (CONFIG, lambda folder: (folder / CONFIG).write_text('{"model_type": "llama"}')),
    "another-version": (CONFIG, edit(version=3)),
    "version-in-words": (CONFIG, edit(version="1")),
    "version-a-list": (CONFIG, edit(version=[1])),
    "version-2-without-threshold": (CONFIG, edit(version=2)),
    "version-1-with-threshold": (CONFIG, edit(threshold=0.5)),
    "threshold-in-words": (CONFIG, edit(version=2, threshold="0.5")),
    "threshold-true": (CONFIG, edit(version=2, threshold=True)),
    "threshold-infinite": (CONFIG, edit(version=2, threshold=float("inf"))),
    "threshold-by-genome": (CONFIG, edit(version=2, threshold=[0.5])),
    "no-version": (CONFIG, edit(version=...)),
    "no-settings": (CONFIG, edit(settings=...)),
    "settings-null": (CONFIG, edit(settings=None)),
    "no-normalisation": (CONFIG, edit(normalisation=...)),
    "unknown-key": (CONFIG, edit(normalization=None)),
    "unknown-setting": (CONFIG, edit_settings(hidden_sise=4)),
    "setting-out-of-range": (CONFIG, edit_settings(ema=1.5)),
    "setting-not-a-number": (CONFIG, edit_settings(update_every="8")),
    "setting-not-whole": (CONFIG, edit_settings(hidden_size=4.0)),
    "frequency-nan": (CONFIG, edit_settings(max_frequency=float("nan"))),
    "frequency-infinite": (CONFIG, edit_settings(max_frequency=float("inf"))),
    "cap-nan": (CONFIG, edit_settings(cap=float("nan"))),
    "cap-not-whole": (CONFIG, edit_settings(cap=1.5)),
    "cap-true": (CONFIG, edit_settings(cap=True)),
    "updates-beyond-all-texts": (CONFIG, edit_settings(update_every=8 * 10**30)),
    "layout-not-whole": (CONFIG, edit_version_3(offsets=True, layout=[2.0, 1.0])),
    "layout-empty": (CONFIG, edit_version_3(offsets=True, layout=[])),
    "ema-null": (CONFIG, edit_settings(ema=None)),
    "config-nested-too-deeply": (CONFIG, lambda folder: (folder / CONFIG).write_text("[" * 100_000)),
    "config-with-endless-digits": (CONFIG, lambda folder: (folder / CONFIG).write_text("1" * 5000)),
    "threshold-of-400-digits": (CONFIG, edit(version=2, threshold=10**400)),
    "threshold-beyond-float32": (CONFIG, edit(version=2, threshold=1e300)),
    "mean-of-400-digits": (CONFIG, edit(normalisation={"mean": [10**400] * BINS, "variance": [1.0] * BINS})),
    "mean-beyond-float32": (CONFIG, edit(normalisation={"mean": [1e300] * BINS, "variance": [1.0] * BINS})),
    "origin-not-a-mapping": (CONFIG, edit(origin=[1])),
    "normalisation-empty": (CONFIG, edit(normalisation={})),
    "normalisation-too-short": (CONFIG, edit(normalisation={"mean": [0.0], "variance": [1.0]})),
    "normalisation-of-words": (CONFIG, edit(normalisation={"mean": ["a"] * BINS, "variance": [1.0] * BINS})),
    "normalisation-nan": (CONFIG, edit(normalisation={"mean": [float("nan")] * BINS, "variance": [1.0] * BINS})),
    "variance-negative": (CONFIG, edit(normalisation={"mean": [0.0] * BINS, "variance": [-1.0] * BINS})),
    "weights-missing": (WEIGHTS, lambda folder: (folder / WEIGHTS).unlink()),
    "weights-are-a-folder": (WEIGHTS, lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()]),
    "weights-empty": (WEIGHTS, lambda folder: (folder / WEIGHTS).write_bytes(b"")),
    "weights-cut-short": (WEIGHTS, lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])),
    "weights-pickled": (WEIGHTS, lambda folder: torch.save({"genome": torch.zeros(SIZE)}, folder / WEIGHTS)),
    "weights-of-a-model": (WEIGHTS, lambda folder: save_file({"lm_head": np.zeros(4, np.float32)}, folder / WEIGHTS)),
    "genome-too-short": (WEIGHTS, genome(np.zeros(SIZE - 1, np.float32))),
    "genome-of-other-settings": (WEIGHTS, edit_settings(hidden_size=5)),
    "genome-nan": (WEIGHTS, genome(np.full(SIZE, np.nan, np.float32))),
    "genome-infinite": (WEIGHTS, genome(np.full(SIZE, np.inf, np.float32))),
    "genome-of-8-bits": (
        WEIGHTS,
        lambda folder: save_torch_file({"genome": torch.zeros(SIZE).to(torch.float8_e4m3fn)}, folder / WEIGHTS),
    ),
    "genome-half-precision": (
        WEIGHTS,
        lambda folder: save_torch_file({"genome": torch.zeros(SIZE, dtype=torch.bfloat16)}, folder / WEIGHTS),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_named_in_one_line_with_the_remedy(folder, what):
    file, spoil = BAD[what]
    spoil(folder)
    with pytest.raises(MemoryFileError) as caught:
        PretrainedMemory.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder / file) in message
    assert "\n" not in message
    assert re.search(": (copy|name|use|install|is it) [^:]+$", message), f"no remedy at the end: {message}"


@pytest.mark.parametrize(
    "origin", [{"table": [{"a": 1}]}, {"table": "none"}, {"table": [1]}, {"dial": 0.5}, {"model": ["a"]}], ids=str
)
def test_an_origin_of_somebody_elses_making_can_be_saved_again(folder, origin):
    edit(origin=origin)(folder)
    memory = PretrainedMemory.from_pretrained(folder)
    memory.save_pretrained(folder)
    assert PretrainedMemory.from_pretrained(folder).origin == origin
    assert "None is recorded." in (folder / CARD).read_text()


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(MemoryFileError, match=r"^there is no memory in .*/nowhere.*: .*$"):
        PretrainedMemory.from_pretrained(tmp_path / "nowhere")


def test_a_pickle_is_not_opened(folder, tmp_path, monkeypatch):
    """Reading the file as a pickle would run what is in it."""
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS).write_bytes(b"cbuiltins\nexec\n(S'import pathlib; pathlib.Path(\"ran\").touch()'\ntR.")
    with pytest.raises(MemoryFileError):
        PretrainedMemory.from_pretrained(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("values", [np.zeros(SIZE + 1, np.float32), np.full(SIZE, np.nan, np.float32)])
def test_a_memory_with_a_bad_genome_cannot_even_be_made(values):
    with pytest.raises(MemoryFileError, match="genome"):
        PretrainedMemory(NammSpec(settings=tiny_settings()), values)


# Failed writes -------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("new", "limit"),
    [(example_memory(hidden_size=30), 2000), (example_memory(seed=1, story="x" * 9000), 6000)],
    ids=["weights-do-not-fit", "config-does-not-fit"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_full_disk_leaves_the_folder_as_it_was(folder, tmp_path, new, limit, is_first):
    target = tmp_path / "new" if is_first else folder
    before = {} if is_first else contents(folder)
    with files_of_at_most(limit), pytest.raises(MemoryFileError, match=rf"^cannot write .*{target}.*$"):
        new.save_pretrained(target)
    assert contents(target) == before


def test_an_origin_that_json_cannot_hold_leaves_the_folder_as_it_was(folder):
    before = contents(folder)
    with pytest.raises(TypeError, match="JSON"):
        example_memory(seed=1, path=Path("run")).save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("below", ["", "deeper"])
def test_saving_to_where_a_file_is_says_so_and_leaves_the_file(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(MemoryFileError, match=r"^cannot write .*/file.*: choose another folder.*$"):
        example_memory().save_pretrained(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "precious"

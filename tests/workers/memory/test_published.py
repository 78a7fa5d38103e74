"""Checkpoints of the published implementation: there and back bit by bit; nothing in them is ever run."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.published_cma import Constants
from tests.workers.memory.test_pretrained import example_memory
from workers.memory.errors import MemoryFileError
from workers.memory.pretrained import PretrainedMemory
from workers.memory.published import _search_state, export_checkpoint, import_checkpoint
from workers.memory.specs import NammSettings, NammSpec

PREFIX = "stored_buffers_to_save.token_embedding_0_"
SMALL = NammSettings(hidden_size=2)
"""A published memory in everything but its size: an exported covariance has the square of it."""


def search_state(size: int = SMALL.genome_size) -> dict[str, torch.Tensor]:
    """What the published trainer stores of its search, as far as anybody reads it."""
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict(mean=torch.randn(size, generator=generator), C=torch.eye(3), sigma=torch.tensor(0.06))
    for name in ("online_new_output_", "output_"):
        state[f"{PREFIX}{name}mean"] = torch.rand(17, generator=generator)
        state[f"{PREFIX}{name}var"] = torch.rand(17, generator=generator)
        state[f"{PREFIX}{name}num"] = torch.tensor(1234.0)
    return state


def checkpoint(folder: Path, *, name: str = "ckpt.pt", **changes: object) -> Path:
    torch.save(
        {"evolution_state": search_state(), "iter_num": 70, "best_val_loss": np.float64(0.9), **changes}, folder / name
    )
    return folder / name


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """As the published trainer reads it: the file is ours."""
    return torch.load(path, weights_only=False)["evolution_state"]


def test_the_mean_and_its_statistics_are_read(tmp_path):
    memory, state = import_checkpoint(checkpoint(tmp_path)), search_state()
    assert memory.spec.settings == SMALL
    assert memory.genome.tobytes() == state["mean"].numpy().tobytes()
    assert memory.spec.normalisation.mean == tuple(state[f"{PREFIX}output_mean"].tolist())
    assert memory.spec.normalisation.variance == tuple(state[f"{PREFIX}output_var"].tolist())
    assert memory.origin == {"published": {"iter_num": 70, "feature_count": 1234.0}}


def test_the_published_size_means_the_published_settings(tmp_path):
    path = checkpoint(tmp_path, evolution_state=search_state(4172))
    assert import_checkpoint(path).spec.settings == NammSettings()


def test_there_and_back_is_bit_equal(tmp_path):
    first = checkpoint(tmp_path)
    imported = import_checkpoint(first)
    imported.save_pretrained(tmp_path / "memory")
    export_checkpoint(PretrainedMemory.from_pretrained(tmp_path / "memory"), tmp_path / "back.pt")
    ours, theirs = state_of(tmp_path / "back.pt"), state_of(first)
    for key in ("mean", *(f"{PREFIX}output_{name}" for name in ("mean", "var", "num"))):
        assert torch.equal(ours[key], theirs[key])
        assert ours[key].dtype == theirs[key].dtype
    again = import_checkpoint(tmp_path / "back.pt")
    assert (again.spec, again.genome.tobytes(), again.origin) == (
        *(imported.spec, imported.genome.tobytes(), imported.origin),
    )


def test_an_exported_search_is_whole(tmp_path):
    """The published trainer loads strictly: every name that it has must be there, in its shape (spec 6.3)."""
    size, population = SMALL.genome_size, 32
    export_checkpoint(import_checkpoint(checkpoint(tmp_path)), tmp_path / "out" / "new.pt")
    state = state_of(tmp_path / "out" / "new.pt")
    shapes = {name: tuple(value.shape) for name, value in state.items() if "buffers" not in name}
    assert shapes == {
        **dict.fromkeys(("mean", "best_member", "evo_path_c", "evo_path_sigma", "sample_D"), (size,)),
        **dict.fromkeys(("C", "sample_C", "sample_B"), (size, size)),
        **dict.fromkeys(("x", "y"), (population, size)),
        **dict.fromkeys(("weights", "weights_truncated"), (population,)),
        **dict.fromkeys(("mu_eff", "sigma", "g", "best_fitness"), ()),
    }
    assert state["weights_truncated"].sum().item() == pytest.approx(1.0)
    kinds = [f"{moment}output_{name}" for moment in ("", "online_new_") for name in ("mean", "var", "num")]
    stored = {name for name in state if "buffers" in name}
    assert stored == {f"{prefix}{PREFIX}{kind}" for prefix in ("", "best_") for kind in kinds}
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_weights_of_an_exported_search_are_those_of_ours():
    """The orchestrator has the same formulas, for another purpose, and is checked against golden data."""
    exported, ours = _search_state(torch.zeros(SMALL.genome_size)), Constants.of(SMALL.genome_size, 32)
    assert exported["weights"].tolist() == pytest.approx(ours.weights.tolist(), rel=1e-6)
    assert exported["mu_eff"].item() == pytest.approx(ours.mu_eff)


def test_a_checkpoint_without_statistics_gives_a_memory_without(tmp_path):
    memory = import_checkpoint(checkpoint(tmp_path, evolution_state={"mean": search_state()["mean"]}))
    assert memory.spec.normalisation is None
    export_checkpoint(memory, tmp_path / "new.pt")
    assert not [name for name in state_of(tmp_path / "new.pt") if "buffers" in name]


def test_a_turned_dial_goes_into_the_bias(tmp_path):
    memory = import_checkpoint(checkpoint(tmp_path))
    turned = PretrainedMemory(NammSpec(settings=SMALL, threshold=0.25), memory.genome)
    export_checkpoint(turned, tmp_path / "new.pt")
    mean = state_of(tmp_path / "new.pt")["mean"].numpy()
    assert mean[:-1].tobytes() == memory.genome[:-1].tobytes()
    assert mean[-1] == memory.genome[-1] - np.float32(0.25)


def test_what_the_published_implementation_has_not_is_not_exported(tmp_path):
    with pytest.raises(MemoryFileError, match=r"window 8 \(published: 32\).*heads 'ragged' \(published: 'even'\)"):
        export_checkpoint(example_memory(), tmp_path / "new.pt")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("precious")
    memory = import_checkpoint(checkpoint(tmp_path))
    with pytest.raises(MemoryFileError, match=r"^cannot write .*/file/new.pt.*: choose another place"):
        export_checkpoint(memory, tmp_path / "file" / "new.pt")


# Bad files -----------------------------------------------------------------------------------------------------------


class Payload:
    """Runs a command in whoever unpickles it."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def odd(**changes: object):
    return lambda path: torch.save({"evolution_state": {**search_state(), **changes}, "iter_num": 1}, path)


BAD = {
    "missing": lambda _path: None,
    "a-folder": Path.mkdir,
    "empty": Path.touch,
    "text": lambda path: path.write_text("genome: 1\n"),
    "cut-short": lambda path: path.write_bytes(checkpoint(path.parent, name="whole.pt").read_bytes()[:5000]),
    "bytes-flipped": lambda path: path.write_bytes(checkpoint(path.parent, name="whole.pt").read_bytes()[::-1]),
    "bare-pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR."),
    "payload-beside": lambda path: checkpoint(path.parent, name=path.name, extra=Payload()),
    "payload-as-genome": odd(mean=Payload()),
    "payload-named-after-numpy": lambda path: path.write_bytes(
        b"cnumpy.core.multiarray\nscalar\n(cos\nsystem\n(S'touch ran'\ntRtR."
    ),
    "a-list": lambda path: torch.save([1, 2], path),
    "of-a-model": lambda path: torch.save({"lm_head": torch.zeros(3)}, path),
    "no-mean": lambda path: torch.save({"evolution_state": {"x": torch.zeros(3)}}, path),
    "odd-size": odd(mean=torch.zeros(33)),
    "genome-nan": odd(mean=torch.full((SMALL.genome_size,), float("nan"))),
    "statistics-short": odd(**{f"{PREFIX}output_mean": torch.zeros(3)}),
    "variance-negative": odd(**{f"{PREFIX}output_var": torch.full((17,), -1.0)}),
    "variance-missing": odd(**{f"{PREFIX}output_var": None}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_checkpoint_is_named_in_one_line_and_nothing_is_run(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ckpt.pt"
    BAD[what](path)
    with pytest.raises(MemoryFileError) as caught:
        import_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert ": fetch" in message or ": name" in message
    assert not Path("ran").exists()

"""Memories on the hub, without one: a local cache to fetch from, a folder to push to; and the card that goes along."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from tests.workers.memory.test_pretrained import CARD, CONFIG, WEIGHTS, contents, example_memory
from tests.workers.memory.tiny import random_ids, tiny_model
from workers.memory.errors import MemoryFileError
from workers.memory.hub import FILES, fetch, is_hub_id
from workers.memory.pretrained import PretrainedMemory

REPO = "someone/memory"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

ROW = {
    **{"name": "namm", "length": 256, "exact": 0.9, "exact_low": 0.85, "exact_high": 0.95, "num_examples": 128},
    **{"graded_ratio": 0.98, "graded_ratio_low": 0.96, "graded_ratio_high": 0.99},
    **{"kept_ratio": 0.18, "mean_bytes": 54272.0, "state_bytes": 26624.0},
}


class LocalHub:
    """What ``push_to_hub`` asks of huggingface_hub, with a folder for a hub."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error = folder, error
        self.created: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if self.error:
            raise self.error
        self.created[repo_id] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/{commit_message}"


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """A cache of the hub as huggingface_hub lays it out, with one memory in it, on a machine without network."""
    folder = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    example_memory(run="r1").save_pretrained(folder / "snapshots" / COMMIT, repo_id=REPO)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder / "snapshots" / COMMIT


# Fetching ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_memory_is_loaded_by_its_hub_id(cached, revision):
    memory = PretrainedMemory.from_pretrained(REPO, revision=revision)
    assert memory.genome.tobytes() == example_memory().genome.tobytes()
    assert memory.origin == {"run": "r1"}


def test_a_folder_of_that_name_comes_first(cached, tmp_path):
    example_memory(seed=7).save_pretrained(tmp_path / REPO)
    assert PretrainedMemory.from_pretrained(REPO).genome.tobytes() == example_memory(seed=7).genome.tobytes()


def test_only_numbers_are_fetched(monkeypatch, cached):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _id, **how: asked.update(how) or str(cached))
    assert fetch(REPO, "v1") == cached
    assert asked == {"revision": "v1", "allow_patterns": list(FILES)}
    assert all(name.endswith((".json", ".safetensors")) for name in FILES)


@pytest.mark.parametrize(("repo", "revision"), [("someone/else", None), (REPO, "v9")])
def test_what_the_hub_does_not_give_is_one_line(cached, repo, revision):
    with pytest.raises(
        MemoryFileError, match=f"^there is no folder {repo}, and the hub does not give it .*: name a"
    ) as told:
        PretrainedMemory.from_pretrained(repo, revision=revision)
    assert "\n" not in str(told.value)


def test_a_spoiled_download_is_named(cached):
    (cached / WEIGHTS).write_bytes((cached / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(MemoryFileError, match="damaged"):
        PretrainedMemory.from_pretrained(REPO)


@pytest.mark.parametrize(
    "path", ["memory", "./a/memory", "/a/memory", "~/memory", "a/b/c", "../memory", "s3://a/b", ""]
)
def test_a_path_is_never_looked_up_on_the_hub(path):
    assert not is_hub_id(path)


# Pushing -------------------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_the_memory_its_card_and_a_way_to_use_it(tmp_path):
    hub = LocalHub(tmp_path)
    address = example_memory().push_to_hub(REPO, private=True, message="first", api=hub)
    assert address == f"https://huggingface.co/{REPO}/commit/first"
    assert hub.created == {REPO: True}
    pushed = {str(path.relative_to(tmp_path / REPO)) for path in (tmp_path / REPO).rglob("*") if path.is_file()}
    assert pushed == {CONFIG, WEIGHTS, CARD, "custom_generate/generate.py", "custom_generate/requirements.txt"}
    assert PretrainedMemory.from_pretrained(tmp_path / REPO).spec == example_memory().spec
    assert f'Memory.from_pretrained("{REPO}")' in (tmp_path / REPO / CARD).read_text()


class TransportError(Exception):
    """What huggingface_hub lets through when there is no network is no OSError."""


@pytest.mark.parametrize("kind", [OSError, ValueError, TransportError])
def test_a_refusal_of_the_hub_is_one_line_without_the_token(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = LocalHub(tmp_path, kind("401 Client Error:\n\nInvalid username or password."))
    with pytest.raises(
        MemoryFileError, match=f"^cannot push to {REPO} .401 Client Error .*: look at .*HF_TOKEN$"
    ) as told:
        example_memory().push_to_hub(REPO, api=hub)
    assert "hf_secret" not in str(told.value)


@pytest.mark.parametrize("repo", ["memory", "/abs/path", "a/b/c", "a/b\n", "a/../b", ""])
def test_only_a_hub_id_can_be_pushed_to(repo, tmp_path):
    with pytest.raises(MemoryFileError, match="is no hub id"):
        example_memory().push_to_hub(repo, api=LocalHub(tmp_path))
    assert not list(tmp_path.iterdir())


def test_transformers_decodes_under_a_repository_it_is_told_to_trust(cached, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, ids = tiny_model(), random_ids(1, 30)
    ours = model.generate(ids, past_key_values=example_memory().cache(model), max_new_tokens=5, do_sample=False)
    theirs = model.generate(ids, custom_generate=str(cached), trust_remote_code=True, max_new_tokens=5, do_sample=False)
    assert torch.equal(ours, theirs)
    own = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
    assert own.shape == ours.shape
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(ids, custom_generate=str(cached), trust_remote_code=False)


# The card ------------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_memory_knows(tmp_path):
    memory = example_memory(model="meta/llama", config_hash="abc", code_hash="def", tasks=["qa", "code"], table=[ROW])
    memory.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "namm",
        "tags": ["namm", "kv-cache", "custom_generate"],
        "base_model": "meta/llama",
    }
    assert "| 256 | **namm** | 0.900 (0.850–0.950) | 98.0% (96.0%–99.0%) | 18.0% | 53 | 26 | 128 |" in text
    for told in (
        "| tasks | qa, code |",
        "| config hash | abc |",
        "| code hash | def |",
        "model.generate(",
        "bootstrap",
    ):
        assert told in text


def test_the_card_of_a_memory_that_knows_little_says_so(tmp_path):
    example_memory(model="small-llama").save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert "None is recorded" in text
    assert "base_model" not in text
    assert "bootstrap" not in text


def test_the_card_is_a_function_of_the_memory(tmp_path):
    for name in ("a", "b"):
        example_memory(table=[ROW]).save_pretrained(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("own", [b"# My project\n", b"\xff\xfe"])
def test_a_readme_of_ones_own_is_left_alone(tmp_path, own):
    (tmp_path / CARD).write_bytes(own)
    example_memory().save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_bytes() == own


def test_what_an_origin_says_cannot_break_the_table(tmp_path):
    example_memory(note="a | b\n\n# c").save_pretrained(tmp_path)
    assert "| note | a \\| b # c |" in (tmp_path / CARD).read_text()

"""A finished memory as files: ``config.json`` and ``model.safetensors``, a few kilobytes. Nothing is ever unpickled.

A memory whose dial was turned says so in version 2 of the format, one whose tokens are not chosen as published in
version 3; all others are written as version 1, which programs that know neither read as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from workers.memory import hub
from workers.memory.build import build_memory
from workers.memory.card import MARK, card
from workers.memory.errors import MemoryFileError, UnsupportedUseError
from workers.memory.memory import Memory
from workers.memory.specs import NammSettings, NammSpec, Normalisation

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from transformers import PreTrainedModel

    from workers.memory.cache import MemoryCache
    from workers.memory.dial import Prompts

FORMAT = "namm-memory"

KEYS = {"format", "version", "settings", "normalisation", "origin"}
KEYS_BY_VERSION = {1: KEYS, 2: KEYS | {"threshold"}, 3: KEYS | {"threshold"}}
"""What ``config.json`` holds."""
SETTINGS_SINCE_3: Mapping[str, Any] = MappingProxyType(
    {"layout": None, "offsets": False, "lookahead": 0, "choice": "network"}
)
"""Settings that versions 1 and 2 do not name, and the values that they have there: as published."""
RECOPY = "copy both files of the memory again"


@dataclass(frozen=True, slots=True, eq=False)
class PretrainedMemory:
    """An evolved memory: architecture, statistics and genome, with the story of where it came from."""

    spec: NammSpec
    genome: npt.NDArray[np.float32]
    """``[genome_size]``"""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Free JSON-like facts: run, model, tasks, hashes, scores."""

    def __post_init__(self) -> None:
        expected = self.spec.settings.genome_size
        if self.genome.shape != (expected,):
            raise MemoryFileError(
                f"the genome has {self.genome.size} numbers, its settings need {expected}: "
                "use the settings (hidden_size, window, recency_size) that it was evolved with"
            )
        if not np.isfinite(self.genome).all():
            raise MemoryFileError(f"the genome holds numbers that are not finite: {RECOPY}")
        if isinstance(self.spec.threshold, tuple):
            raise MemoryFileError("a saved memory has one threshold, not one for each genome: give a number")

    def build(self) -> Memory:
        """The memory itself, to attach to a model."""
        return build_memory(self.spec, self.genome[None])

    def cache(self, model: PreTrainedModel) -> MemoryCache:
        """A new cache for one text or one batch, to pass as ``past_key_values`` to the model and to its ``generate``.

        The model uses the memory in calls that are given the cache, and is as it was in all others.
        """
        from workers.memory.hooks import hooked_cache  # reading a memory's files needs no transformers

        return hooked_cache(model, self.build())

    def generate(
        self, model: PreTrainedModel, *inputs: Any, past_key_values: MemoryCache | None = None, **options: Any
    ) -> Any:
        """``model.generate`` under this memory: takes and returns what that does.

        On an accelerator most tokens are replays of a recorded one, which cost the host a launch instead of hundreds.

        >>> memory.generate(model, **tokenizer(text, return_tensors="pt"), max_new_tokens=64)

        Args:
            model: the model.
            inputs: of its ``generate``.
            past_key_values: a memory's cache of this model to go on with; None for a new one.
            options: of its ``generate``.

        Raises:
            UnsupportedUseError: another cache, or a use that no memory can serve.
        """
        from workers.memory.cache import MemoryCache
        from workers.memory.generation import replaying

        cache = self.cache(model) if past_key_values is None else past_key_values
        if not isinstance(cache, MemoryCache):
            raise UnsupportedUseError(
                f"past_key_values is a {type(cache).__name__}, which forgets nothing: give memory.cache(model), or none"
            )
        return replaying(model, cache).generate(*inputs, past_key_values=cache, **options)

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[MemoryCache]:
        """A ``with`` block that yields such a cache, and in which every call of the model must be given it."""
        from workers.memory.attention import memory_attached

        return memory_attached(model, self.build())

    def at(
        self,
        *,
        kept_ratio: float | None = None,
        bytes_per_token: float | None = None,
        cap: int | None = None,
        model: PreTrainedModel | None = None,
        prompts: Prompts = (),
    ) -> PretrainedMemory:
        """The same memory with its dial turned: the threshold that keeps so much of ``prompts`` under ``model``.

        >>> memory.at(kept_ratio=0.25, model=model, prompts=[tokenizer(text).input_ids for text in texts])
        >>> memory.at(cap=512)

        Args:
            kept_ratio: tokens held after a prompt / tokens read, mean over layers, KV heads and prompts.
            bytes_per_token: bytes of keys and values held after a prompt / tokens read, in place of ``kept_ratio``.
            cap: most tokens that a KV head may keep at an update, with or without a target.
            model: to calibrate with; a function of it, its dtype and the prompts.
            prompts: token ids of a few prompts like those that the memory is for; ``[rows, n]`` are read together.

        Raises:
            DialError: something is missing, or no threshold keeps so much.
        """
        from workers.memory.dial import Wish, turn

        wish = Wish(kept_ratio=kept_ratio, bytes_per_token=bytes_per_token, cap=cap)
        return self.turned(*turn(self.spec, self.genome, wish, model, prompts))

    def turned(self, spec: NammSpec, record: Mapping[str, float]) -> PretrainedMemory:
        """The same genome under ``spec``, with a ``record`` of how; scores of the former setting are not its own."""
        origin = {key: value for key, value in self.origin.items() if key != "table"}
        return PretrainedMemory(spec, self.genome, {**origin, "dial": dict(record)})

    def save_pretrained(self, folder: str | os.PathLike[str], *, repo_id: str | None = None) -> None:
        """Write both files and a card; an existing memory in ``folder`` is replaced once all are safely on disk.

        Args:
            folder: made if it is not there. A README.md in it that is not one of our cards is left alone.
            repo_id: id on the hub that the folder is meant for; adds ``custom_generate/``.

        Raises:
            MemoryFileError: they cannot be written there; what was there before is left as it was.
        """
        target = Path(folder)
        contents = {
            target / "model.safetensors": save({"genome": self.genome}),
            target / "config.json": (json.dumps(self._document(), indent=2) + "\n").encode(),
        }
        if _is_ours(target / "README.md"):
            contents[target / "README.md"] = card(self.spec, self.origin, repo_id or "path/to/this/folder").encode()
        if repo_id is not None:
            hub.require_hub_id(repo_id)
            contents |= {target / path: text.encode() for path, text in hub.custom_generate(repo_id).items()}
        try:
            for path in contents:
                path.parent.mkdir(parents=True, exist_ok=True)
            _replace_together(contents)
        except OSError as error:
            reason = error.strerror or error
            raise MemoryFileError(f"cannot write {target} ({reason}): choose another folder, or make room") from error

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, message: str = "A memory", api: HfApi | None = None
    ) -> str:
        """Send the memory to the hub, with its card and ``custom_generate``; returns the address of the commit.

        Args:
            repo_id: ``owner/name``; made if it is not there.
            private: whether a new repository is.
            message: of the commit.
            api: another way to the hub than huggingface_hub's own, which takes the token from ``HF_TOKEN``.

        Raises:
            MemoryFileError: there is no permission, or the hub cannot be reached.
        """
        hub.require_hub_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id)
            return hub.push(Path(folder), repo_id, private=private, message=message, api=api)

    def _document(self) -> dict[str, Any]:
        """What ``config.json`` says."""
        settings = dataclasses.asdict(self.spec.settings)
        is_as_published = all(settings[key] == value for key, value in SETTINGS_SINCE_3.items())
        if is_as_published:
            settings = {key: value for key, value in settings.items() if key not in SETTINGS_SINCE_3}
        is_turned = self.spec.threshold != 0.0
        turned = {"threshold": self.spec.threshold} if is_turned or not is_as_published else {}
        return {
            "format": FORMAT,
            "version": 3 if not is_as_published else 2 if is_turned else 1,
            "settings": settings,
            "normalisation": dataclasses.asdict(self.spec.normalisation) if self.spec.normalisation else None,
            **turned,
            "origin": dict(self.origin),
        }

    @staticmethod
    def from_pretrained(path_or_id: str | os.PathLike[str], *, revision: str | None = None) -> PretrainedMemory:
        """Read a memory, of which nothing is executed.

        Args:
            path_or_id: a folder, or ``owner/name`` on the hub where no such folder is.
            revision: branch, tag or commit on the hub; None for the newest.

        Raises:
            MemoryFileError: a file is missing, damaged, of another format, version or architecture.
        """
        folder = hub.fetch(os.fspath(path_or_id), revision) if hub.is_hub_id(path_or_id) else Path(path_or_id)
        config, weights = folder / "config.json", folder / "model.safetensors"
        document = _read_config(config)
        try:
            settings = _settings(document["settings"])
            normalisation = _normalisation(document["normalisation"], settings.num_bins)
            threshold = _number(document.get("threshold", 0.0))
            spec = NammSpec(settings=settings, normalisation=normalisation, threshold=threshold)
            origin = dict(document["origin"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise MemoryFileError(f"{config} does not describe a memory ({error}): {RECOPY}") from error
        genome = _read_genome(weights)
        try:
            return PretrainedMemory(spec, genome, origin)
        except MemoryFileError as error:
            raise MemoryFileError(f"{weights}: {error}") from error


def _replace_together(contents: Mapping[Path, bytes]) -> None:
    """Write all of the files or none: a full disk must not leave the new genome beside the old settings."""
    written = {path: path.with_name(f"{path.name}.tmp") for path in contents}
    try:
        for path, temporary in written.items():
            temporary.write_bytes(contents[path])
        for path, temporary in written.items():
            os.replace(temporary, path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MemoryFileError(
            f"there is no memory in {path.parent}, because {path} is missing: "
            "name a folder with config.json and model.safetensors"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise MemoryFileError(f"cannot read {path} ({error}): {RECOPY}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not a saved memory (format {FORMAT!r} expected): is it a model's folder?")
    version = document.get("version")
    if type(version) is not int or version not in KEYS_BY_VERSION:
        readable = " and ".join(map(str, KEYS_BY_VERSION))
        raise MemoryFileError(f"{path} has version {version!r}, this program reads {readable}: install a matching one")
    keys = KEYS_BY_VERSION[version]
    if document.keys() != keys:
        missing, unknown = sorted(keys - document.keys()), sorted(document.keys() - keys)
        raise MemoryFileError(f"{path} lacks the keys {missing} and has the unknown {unknown}: {RECOPY}")
    return document


def _is_ours(readme: Path) -> bool:
    """Whether the card may be written: there is none, or one that was made here."""
    try:
        return MARK in readme.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"threshold must be a number, got {value!r}")
    return float(value)


def _settings(values: Mapping[str, Any]) -> NammSettings:
    return NammSettings(**{**values, "layout": tuple(values["layout"])} if values.get("layout") else values)


def _normalisation(values: Mapping[str, Any] | None, num_bins: int) -> Normalisation | None:
    if values is None:
        return None
    mean, variance = (tuple(map(float, values[name])) for name in ("mean", "variance"))
    normalisation = Normalisation(mean, variance)
    if not normalisation.is_sound(num_bins):
        raise ValueError(f"normalisation must have {num_bins} finite means and variances of at least 0, as float32")
    return normalisation


def _read_genome(path: Path) -> npt.NDArray[np.float32]:
    try:
        genome = load_file(path)["genome"]
    except FileNotFoundError as error:
        raise MemoryFileError(f"{path} is missing: copy it beside config.json") from error
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:  # numpy has no bfloat16, no float8
        raise MemoryFileError(f"{path} is damaged or holds no genome ({error}): {RECOPY}") from error
    return np.ascontiguousarray(genome, dtype=np.float32).reshape(-1)

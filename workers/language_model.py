"""A frozen language model from a hub id or a folder, with its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workers.checksum import require_checksum
from workers.errors import ModelError
from workers.memory.support import input_device, layers_and_heads
from workers.placement import placement, require_no_offload
from workers.settings import ModelSettings

SMALL_LLAMA = "small-llama"
"""Name of the model kept in this repository."""


MEANT_FOR_PEOPLE = (OSError, ValueError, RuntimeError, SafetensorError)
"""What is raised by who found something wrong; what other errors say makes no sense without their names."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A frozen model in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def input_device(self) -> torch.device:
        """Where token ids are to be put."""
        return input_device(self.model)

    @property
    def num_layers(self) -> int:
        """Layers of the text model."""
        return layers_and_heads(self.model.config)[0]

    @property
    def num_kv_heads(self) -> int:
        """KV heads of a layer."""
        return layers_and_heads(self.model.config)[1]

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the model was made for."""
        return _max_tokens(self.model.config)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special tokens not counted."""
        return count_tokens(self.tokenizer, text)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens (beginning of sequence) included; may be more than the model reads."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def continuation_ids(self, text: str) -> list[int]:
        """Token ids of text that goes on where other text ended."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text, special tokens not counted; texts may be longer than the model reads."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def ntk_rope_theta(theta: float, head_size: int, factor: float, alpha: float) -> float:
    """The fixed NTK rescale of the rotary base for contexts ``factor`` times as long (spec 1.5)."""
    return float(theta * (alpha * factor - (alpha - 1.0)) ** (head_size / (head_size - 2)))


def model_folder(path_or_id: str) -> Path | None:
    """The local folder that is meant, or None for a hub id.

    Raises:
        ModelError: when it looks like a path but no model is there. Asking the hub for a missing path would retry for
            half a minute first.
    """
    if path_or_id == SMALL_LLAMA:
        return Path(str(files("workers") / "models" / SMALL_LLAMA))
    path = Path(path_or_id).expanduser()
    if (path / "config.json").is_file():
        return path
    looks_like_path = path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1 or path.exists()
    if looks_like_path:
        raise ModelError(
            f"model.path_or_id: no model at {path_or_id!r} (no config.json): give a folder in Hugging Face format, "
            f"a hub id such as 'meta-llama/Llama-3.2-1B', or {SMALL_LLAMA!r}"
        )
    return None


def load_language_model(settings: ModelSettings) -> LanguageModel:
    """Load a model and its tokenizer, frozen, on its device.

    Raises:
        ModelError: for anything that the user can mend.
    """
    source, common = _source(settings)
    require_checksum(settings, model_folder(settings.path_or_id))
    arguments = placement(settings)
    config = _rescaled_config(settings)
    if settings.quantization and getattr(config, "quantization_config", None):
        raise ModelError(f"model.quantization: {settings.path_or_id!r} is quantized already: remove the setting")
    with said_in_one_line(f"cannot load {settings.path_or_id!r}"), without_progress_bars():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
            **common,
        )
    if missing := sorted(report["missing_keys"]):  # transformers has made random ones up, with a mere warning
        raise ModelError(
            f"model.path_or_id: cannot load {settings.path_or_id!r}: {len(missing)} of its weights are in no file, "
            f"{missing[0]} the first of them: fetch the model again"
        )
    require_no_offload(model, settings)
    if not arguments:  # else it is where it belongs, and must not be moved
        model.to(settings.device)
    return LanguageModel(model.eval().requires_grad_(False), load_tokenizer(settings)[0])


def load_tokenizer(settings: ModelSettings) -> tuple[PreTrainedTokenizerBase, int]:
    """A model's tokenizer, and the longest text that the model reads; its weights are not touched.

    Raises:
        ModelError: for anything that the user can mend.
    """
    source, common = _source(settings)
    with said_in_one_line(f"cannot load the tokenizer of {settings.path_or_id!r}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **common)
    with said_in_one_line(f"cannot use the configuration of {settings.path_or_id!r}"):
        return tokenizer, _max_tokens(_rescaled_config(settings))


def cache_layout(settings: ModelSettings) -> tuple[int, int]:
    """Layers of a model and KV heads of each, by its configuration alone.

    Raises:
        ModelError: it cannot be read.
    """
    with said_in_one_line(f"cannot use the configuration of {settings.path_or_id!r}"):
        return layers_and_heads(_rescaled_config(settings))


def _source(settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """What transformers is to load from, and the arguments that say which version, and what it may do for that."""
    folder = model_folder(settings.path_or_id)
    if folder is None and settings.revision is None:
        raise ModelError(
            f"model.revision: pin the commit of hub model {settings.path_or_id!r}, so that the run can be repeated"
        )
    return str(folder) if folder else settings.path_or_id, {
        "revision": None if folder else settings.revision,
        "local_files_only": folder is not None or bool(os.environ.get("HF_HUB_OFFLINE")),
        "trust_remote_code": settings.trust_remote_code,
    }


def _rescaled_config(settings: ModelSettings) -> Any:
    source, common = _source(settings)
    with said_in_one_line(f"cannot load {settings.path_or_id!r}"):
        config = AutoConfig.from_pretrained(source, **common)
        _rescale_rope(config.get_text_config(decoder=True), settings)
    return config


def _max_tokens(config: Any) -> int:
    return int(config.get_text_config(decoder=True).max_position_embeddings)


@contextmanager
def said_in_one_line(what: str) -> Iterator[None]:
    """Turns whatever transformers raises into a ModelError: its reasons and remedies, on one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged configuration breaks its code anywhere, and none of it is our fault
        reason = " ".join(str(error).split())
        if not isinstance(error, MEANT_FOR_PEOPLE) or not reason:
            reason = f"{type(error).__name__} {reason}".strip()
        raise ModelError(f"model.path_or_id: {what}: {reason}") from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Many workers load at once, beside the run's own progress: a bar for each would tear it apart."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


def _rescale_rope(text_config: Any, settings: ModelSettings) -> None:
    if settings.rope_ntk_factor is None:
        return
    parameters = getattr(text_config, "rope_parameters", None)
    if not isinstance(parameters, dict) or parameters.get("rope_type") != "default":
        raise ModelError(
            f"model.rope_ntk_factor: {settings.path_or_id!r} has no plain rotary positions to rescale: "
            "remove the setting"
        )
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    parameters["rope_theta"] = ntk_rope_theta(
        parameters["rope_theta"], head_size, settings.rope_ntk_factor, settings.rope_ntk_alpha
    )
    text_config.max_position_embeddings = round(text_config.max_position_embeddings * settings.rope_ntk_factor)

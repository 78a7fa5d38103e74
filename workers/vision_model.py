"""Vision-language models: frames become tokens in front of a question, and the answer is a letter.

Only the text part is hooked, so that only tokens are forgotten; the vision tower sees every frame. What a processor
does (size, scale, number of placeholders) is done here from its own settings file, because transformers' video
processors need torchvision.

Shapes: B rows, F frames, H and W pixels, n tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tasks.video import LETTERS, ClipQuestion, prompt
from workers.errors import ModelError
from workers.language_model import said_in_one_line, without_progress_bars

PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
VIDEO = "<video>"

PROMPTS: Mapping[str, str] = {
    "llava_next_video": "USER: <video>\n{question} ASSISTANT:",
    "llava_onevision": "<|im_start|>user <video>\n{question}<|im_end|><|im_start|>assistant\n",
}
"""By ``model_type``: how the model was trained to be asked."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """How frames are given to the vision tower."""

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def of(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        """Float32 ``[F, 3, side, side]`` from RGB frames ``[F, H, W, 3]``: shorter side fitted, middle cut out."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        height, width = pixels.shape[2:]
        scale = self.side / min(height, width)
        if scale != 1.0:
            size = [max(self.side, round(height * scale)), max(self.side, round(width * scale))]
            pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        top, left = ((length - self.side) // 2 for length in pixels.shape[2:])
        pixels = pixels[:, :, top : top + self.side, left : left + self.side] / 255
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return (pixels - mean) / deviation


@dataclass(frozen=True, slots=True)
class VisionModel:
    """A frozen model in evaluation mode, its tokenizer and how it takes frames."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pixels: Pixels

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of the text part that a frame becomes."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        if config.model_type == "llava_onevision":
            return int(-(-side // 2)) ** 2
        return int(side // config.spatial_pool_stride) ** 2

    def inputs(self, frames: npt.NDArray[np.uint8], question: ClipQuestion) -> dict[str, Tensor]:
        """What the forward pass takes, one row: ``input_ids [1, n]``, ``pixel_values_videos [1, F, 3, H, W]``."""
        config = self.model.config
        num_tokens = self.tokens_per_frame * len(frames) + (config.model_type == "llava_onevision")  # a line break
        before, after = PROMPTS[config.model_type].format(question=prompt(question)).split(VIDEO)
        ids = [
            *self.tokenizer(before)["input_ids"],
            *[video_token(config)] * num_tokens,
            *self.tokenizer(after, add_special_tokens=False)["input_ids"],
        ]
        device, dtype = self.model.device, self.model.dtype
        pixels = self.pixels.of(frames).to(device, dtype)
        return {"input_ids": torch.tensor([ids], device=device), "pixel_values_videos": pixels[None]}

    def frame_columns(self, input_ids: Tensor) -> Tensor:
        """int64 ``[F, tokens per frame]``: where the tokens of each frame are in one row ``[n]``."""
        places = (input_ids == video_token(self.model.config)).nonzero()[:, 0]
        num_frames = len(places) // self.tokens_per_frame
        return places[: num_frames * self.tokens_per_frame].view(num_frames, -1)

    def letter_ids(self, num_choices: int) -> list[list[int]]:
        """Ids that begin each letter, with and without a blank before it."""
        return [
            sorted({self.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (letter, f" {letter}")})
            for letter in LETTERS[:num_choices]
        ]


def video_token(config: Any) -> int:
    """Id of the placeholder that frames are scattered over."""
    found = getattr(config, "video_token_id", None)
    return int(config.video_token_index if found is None else found)


def letter_probabilities(logits: Tensor, letters: Sequence[Sequence[int]]) -> Tensor:
    """Float64 ``[B, choices]``: probability of each letter among the letters, from logits ``[B, vocabulary]``."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    by_letter = torch.stack([log_p[:, list(ids)].logsumexp(-1) for ids in letters], dim=-1)
    return torch.softmax(by_letter, dim=-1)


def load_vision_model(
    path_or_id: str, revision: str | None = None, *, dtype: str = "float32", device: str = "cpu"
) -> VisionModel:
    """Load a model, frozen; with ``device`` auto, spread over all accelerators that there are.

    Raises:
        ModelError: it cannot be loaded, or is of a kind that is not known here.
    """
    is_local = Path(path_or_id).is_dir()
    common: dict[str, Any] = {"local_files_only": is_local, "revision": None if is_local else revision}
    spread = {"device_map": "balanced"} if device == "auto" else {}
    with said_in_one_line(f"cannot load {path_or_id!r}"), without_progress_bars():
        model = AutoModelForImageTextToText.from_pretrained(path_or_id, dtype=getattr(torch, dtype), **spread, **common)
        tokenizer = AutoTokenizer.from_pretrained(path_or_id, **common)
    require_known(model.config, path_or_id)
    if not spread:
        model.to(device)
    return VisionModel(model.eval().requires_grad_(False), tokenizer, _pixels(path_or_id, common, model.config))


def require_known(config: Any, path_or_id: str) -> None:
    """Make sure that it is known how a model takes frames.

    Raises:
        ModelError: it is not.
    """
    if config.model_type not in PROMPTS:
        raise ModelError(
            f"{path_or_id} is a {config.model_type}: how it takes frames is known here of {', '.join(PROMPTS)} only"
        )


def _pixels(path_or_id: str, common: Mapping[str, Any], config: Any) -> Pixels:
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        path = cached_file(
            path_or_id,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            **common,
        )
        if path is not None:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            values = values.get("video_processor", values)
            return Pixels(config.vision_config.image_size, tuple(values["image_mean"]), tuple(values["image_std"]))
    raise ModelError(f"{path_or_id} has no {' or '.join(PROCESSOR_FILES)}, which says how frames are scaled")

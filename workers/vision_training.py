"""Trains a small vision-language model on made-up clips: a LLaVA-NeXT-Video of 0.3 million parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast

from tasks.video import LETTERS, ClipQuestion, prompt
from tasks.video_shapes import COLOURS, SHAPES, SIDE, Clip, ShapeClips
from workers.curriculum import Curriculum
from workers.language_model import without_progress_bars
from workers.shared_retrieval import SHARED_STEPS_SHARE, keys_shared_among_kv_heads
from workers.training_parts import learning_rate_share
from workers.vision_model import PROMPTS, VIDEO, Pixels, VisionModel

PATCH = 4
PIXELS = Pixels(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HIDDEN = 128
_TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 48,
}
_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "initializer_range": _HIDDEN**-0.5,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WORD = r"<\w+>|\w+|\n|[^\w\s]"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTrainingSettings:
    """How the model is made."""

    levels: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (4, 4), (6, 4), (12, 4), (24, 4), (48, 4))
    """Frames of a clip and shapes in it: the next is taken when one is mastered."""
    num_steps: int = 600
    peak_learning_rate: float = 2e-3
    tokens_per_step: int = 4096
    most_rows: int = 64
    """Of a batch: short clips are many in so many tokens."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class VisionProgress:
    """What one optimiser step did."""

    step: int
    frames: int
    """Of its clips."""
    loss: float
    """Cross entropy per letter, nats."""
    accuracy: float
    """Share of the questions answered rightly."""


def build_vision_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the questions."""
    clips = ShapeClips(num_frames=len(SHAPES), num_shapes=1)
    text = PROMPTS["llava_next_video"].format(question=prompt(clips.clip("train", 0).question))
    words = dict.fromkeys(["<unk>", "<s>", "</s>", VIDEO, *LETTERS, *COLOURS, *SHAPES, *re.findall(WORD, text)])
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def new_vision_model(seed: int) -> VisionModel:
    """A fresh model, a function of ``seed``: four tokens a frame, three layers of text."""
    torch.manual_seed(seed)
    tokenizer = build_vision_tokenizer()
    config = LlavaNextVideoConfig(
        vision_config=_TOWER,
        text_config=_TEXT | {"vocab_size": len(tokenizer)},
        image_token_index=0,
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        spatial_pool_stride=2,
        image_grid_pinpoints=[[SIDE, SIDE]],
        tie_word_embeddings=False,
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    _scale_as_the_small_llama(model)
    return VisionModel(model, tokenizer, PIXELS)


def _scale_as_the_small_llama(model: LlavaNextVideoForConditionalGeneration) -> None:
    """Weights of transformers' own size (deviation 0.02) stay at guessing: words and frames have to stand out."""
    embedding = model.get_input_embeddings().weight.data
    embedding.normal_(std=1.0)
    model.lm_head.weight.data.copy_(0.04 * embedding)
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        linear.weight.data.normal_(std=(2 / linear.in_features) ** 0.5)  # frames come out as large as words


def train_vision(
    vision: VisionModel, settings: VisionTrainingSettings, report: Callable[[VisionProgress], None]
) -> None:
    """Trains in place, on letters of answers only; a function of weights and settings on one thread."""
    run = _Run(vision, settings)
    attentions = [layer.self_attn for layer in vision.model.model.language_model.layers]
    shapes = vision.tokenizer.convert_tokens_to_ids(list(SHAPES))
    num_shared = round(SHARED_STEPS_SHARE * settings.num_steps)
    vision.model.train()
    with keys_shared_among_kv_heads(vision.model, attentions, shapes):
        for step in range(num_shared):
            report(run.step(step))
    for step in range(num_shared, settings.num_steps):
        report(run.step(step))
    vision.model.eval()


class _Run:
    """The state of a training run between steps."""

    def __init__(self, vision: VisionModel, settings: VisionTrainingSettings) -> None:
        self._vision = vision
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._curriculum = Curriculum(num_levels=len(settings.levels))
        self._optimizer = torch.optim.AdamW(
            vision.model.parameters(), lr=settings.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )

    def step(self, step: int) -> VisionProgress:
        settings, model = self._settings, self._vision.model
        for group in self._optimizer.param_groups:
            group["lr"] = settings.peak_learning_rate * learning_rate_share(step, step / settings.num_steps)
        level = self._curriculum.next_level(self._rng)
        frames, shapes = settings.levels[level]
        clips = ShapeClips(num_frames=frames, num_shapes=shapes)
        inputs, places, letters = _batch(self._vision, clips, settings, self._rng)
        logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), letters.flatten())
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()
        accuracy = (logits[:, 0].argmax(-1) == letters[:, 0]).float().mean().item()
        self._curriculum.report(level, accuracy)
        return VisionProgress(step, frames, loss.item(), accuracy)


def save_vision(vision: VisionModel, folder: Path) -> None:
    """Writes weights, configuration, tokenizer and how frames are scaled, in Hugging Face's format."""
    with without_progress_bars():
        vision.model.save_pretrained(folder)
    vision.tokenizer.save_pretrained(folder)
    scale = {"image_mean": vision.pixels.mean, "image_std": vision.pixels.deviation}
    (folder / "preprocessor_config.json").write_text(json.dumps(scale), encoding="utf-8")


def _batch(
    vision: VisionModel, clips: ShapeClips, settings: VisionTrainingSettings, rng: np.random.Generator
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the forward pass takes, the columns that are learned, and their letters ``[rows, columns]``.

    One letter a clip is little to learn from, so behind the answer to the question every shape of the clip is named
    once more, each with its letter behind it.
    """
    row_tokens = vision.inputs(*_asked(clips.draw(rng)))["input_ids"].shape[1] + 1 + 2 * clips.num_shapes
    num_rows = max(1, min(settings.most_rows, settings.tokens_per_step // row_tokens))
    drawn = [clips.draw(rng) for _ in range(num_rows)]
    inputs = [vision.inputs(*_asked(clip)) for clip in drawn]
    batch = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
    answered = torch.tensor([_answer_and_named(vision, clip, rng) for clip in drawn])
    places = batch["input_ids"].shape[1] - 1 + torch.arange(0, answered.shape[1], 2)
    batch["input_ids"] = torch.cat([batch["input_ids"], answered], dim=1)
    return batch, places, answered[:, ::2]


def _asked(clip: Clip) -> tuple[npt.NDArray[np.uint8], ClipQuestion]:
    return clip.frames, clip.question


def _answer_and_named(vision: VisionModel, clip: Clip, rng: np.random.Generator) -> list[int]:
    """Ids of the answer's letter, and of the clip's shapes in any order, each followed by the letter of its colour."""
    words = [clip.question.letter]
    for index in rng.permutation(len(clip.shown)):
        shape, colour = clip.shown[index]
        words += [shape, LETTERS[list(COLOURS).index(colour)]]
    ids: list[int] = vision.tokenizer.convert_tokens_to_ids(words)
    return ids

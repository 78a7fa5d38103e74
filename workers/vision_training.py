"""Trains a small vision-language model on made-up clips: a LLaVA-NeXT-Video of 0.2 million parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast

from tasks.video import LETTERS, prompt
from tasks.video_shapes import COLOURS, SHAPES, SIDE, Clip, ShapeClips
from workers.language_model import without_progress_bars
from workers.vision_model import PROMPTS, VIDEO, Pixels, VisionModel

PATCH = 4
PIXELS = Pixels(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WORD = r"<\w+>|\w+|\n|[^\w\s]"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTrainingSettings:
    """How the model is made."""

    frames: tuple[int, ...] = (6, 12, 24, 48)
    """Length of the clips: the next is taken when a level is mastered."""
    num_steps: int = 900
    batch_size: int = 32
    learning_rate: float = 2e-3
    mastered_accuracy: float = 0.9
    seed: int = 0


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
    """A fresh model, a function of ``seed``: four tokens a frame, two layers of text."""
    torch.manual_seed(seed)
    tokenizer = build_vision_tokenizer()
    config = LlavaNextVideoConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": 48,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=0,
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        spatial_pool_stride=2,
        image_grid_pinpoints=[[SIDE, SIDE]],
        tie_word_embeddings=False,
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    # As in the small Llama: small embeddings stay at guessing.
    model.get_input_embeddings().weight.data.normal_(std=1.0)
    return VisionModel(model, tokenizer, PIXELS)


def train_vision(
    vision: VisionModel, settings: VisionTrainingSettings, report: Callable[[int, int, float, float], None]
) -> None:
    """Trains in place, on letters of answers only; a function of weights and settings on one thread.

    Args:
        vision: a fresh model.
        settings: how.
        report: told step, frames, loss and accuracy after every step.
    """
    model, rng = vision.model.train(), np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    level, recent = 0, [0.0] * 4
    for step in range(settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _share(step, settings.num_steps)
        frames = settings.frames[level]
        size = max(8, settings.batch_size * settings.frames[0] // frames)
        is_whole = step % 2 == 0
        batch, places, wanted = _batch(vision, ShapeClips(num_frames=frames), size, rng, is_whole=is_whole)
        logits = model(**batch, use_cache=False, logits_to_keep=places).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        accuracy = (logits.argmax(-1) == wanted).float().mean().item()
        if is_whole:
            recent = [*recent[1:], accuracy]
        if np.mean(recent) >= settings.mastered_accuracy and level + 1 < len(settings.frames):
            level, recent = level + 1, [0.0] * 4
        report(step, frames, loss.item(), accuracy)
    model.eval()


def save_vision(vision: VisionModel, folder: Path) -> None:
    """Writes weights, configuration, tokenizer and how frames are scaled, in Hugging Face's format."""
    with without_progress_bars():
        vision.model.save_pretrained(folder)
    vision.tokenizer.save_pretrained(folder)
    scale = {"image_mean": vision.pixels.mean, "image_std": vision.pixels.deviation}
    (folder / "preprocessor_config.json").write_text(json.dumps(scale), encoding="utf-8")


def _share(step: int, num_steps: int) -> float:
    return float(min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / num_steps))))


def _batch(
    vision: VisionModel, clips: ShapeClips, size: int, rng: np.random.Generator, *, is_whole: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the forward pass takes, the columns that are learned, and their letters ``[rows, columns]``.

    With whole questions one letter is learned in a row. Retrieval does not appear from so little, so every other batch
    just names the shapes one after the other, each with its letter behind it.
    """
    drawn: list[Clip] = [clips.draw(rng) for _ in range(size)]
    inputs = [vision.inputs(clip.frames, clip.question) for clip in drawn]
    batch = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
    if is_whole:
        letters = vision.tokenizer.convert_tokens_to_ids([clip.question.letter for clip in drawn])
        return batch, torch.tensor([batch["input_ids"].shape[1] - 1]), torch.tensor(letters)[:, None]
    frames_end = int(vision.frame_columns(batch["input_ids"][0]).max()) + 1
    named = torch.tensor([_named(vision, clip, rng) for clip in drawn])
    batch["input_ids"] = torch.cat([batch["input_ids"][:, :frames_end], named], dim=1)
    places = torch.arange(frames_end, frames_end + named.shape[1], 2)
    return batch, places, named[:, 1::2]


def _named(vision: VisionModel, clip: Clip, rng: np.random.Generator) -> list[int]:
    """Ids of the clip's shapes, drawn with replacement, each followed by the letter of its colour."""
    words: list[str] = []
    for index in rng.integers(len(clip.shown), size=2 * len(clip.shown)):
        shape, colour = clip.shown[index]
        words += [shape, LETTERS[list(COLOURS).index(colour)]]
    ids: list[int] = vision.tokenizer.convert_tokens_to_ids(words)
    return ids

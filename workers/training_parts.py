"""What the trainers of the small and of the medium Llama share."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tasks.errors import TaskError
from workers.errors import ModelError
from workers.memory.room import is_lack_of_room

WARM_UP_STEPS = 50
FINAL_LEARNING_RATE_SHARE = 0.05
PREVIOUS_TOKEN_SHARPNESS = 5.0
"""Logit by which the biased head prefers the previous token, per unit of the RoPE frequencies' summed cosines."""


def learning_rate_share(step: int, share: float) -> float:
    """Of the peak learning rate: a linear warm-up, then a cosine to five per cent.

    Args:
        step: number of the optimiser's step, from 0.
        share: of the training that is done, 0 to 1, by steps or by time.
    """
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return warm_up * (FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine)


def look_at_previous_token(model: LlamaForCausalLM) -> None:
    """Biases KV head 0 of layer 0 towards the token before: without it retrieval takes far longer to appear.

    With the key bias (a, 0) in every RoPE plane and the query bias the same turned back by one position, the logit for
    a key at distance d is a² Σ cos(frequency (d - 1)) / √head_dim, which is largest at d = 1.
    """
    attention = model.model.layers[0].self_attn
    frequencies = model.model.rotary_emb.inv_freq
    head_dim = attention.head_dim
    length = math.sqrt(PREVIOUS_TOKEN_SHARPNESS * math.sqrt(head_dim))
    key = torch.cat([torch.ones_like(frequencies), torch.zeros_like(frequencies)])
    query = torch.cat([frequencies.cos(), -frequencies.sin()])
    attention.k_proj.bias.data[:head_dim] = length * key
    num_biased = min(2, attention.num_key_value_groups)  # query heads of KV head 0; others look at what they like
    attention.q_proj.bias.data[: num_biased * head_dim] = length * query.repeat(num_biased)


def at_least(smallest: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``smallest``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"is {text!r}; give a whole number of at least {smallest}")
        return int(text)

    return number


def make_folder(folder: Path) -> None:
    """Makes the folder that a model is to be written to, before it is trained.

    Raises:
        ModelError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ModelError(f"--out: cannot write {folder} ({error.strerror}): choose another folder") from error


def exit_code(command: Callable[[], None]) -> int:
    """Runs a command: 0, or 2 after a line about what people can mend."""
    try:
        command()
    except (ModelError, TaskError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_lack_of_room(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0

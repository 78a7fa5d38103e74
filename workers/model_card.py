"""The model card of the small Llama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.shapes import SHAPES, SMALL_LLAMA


@dataclass(frozen=True, slots=True)
class Measurement:
    """One accuracy figure of a model."""

    kind: str
    length: int
    """Tokens of a document, questions not included."""
    num_facts: int
    num_examples: int
    """Held-out examples with four questions each."""
    exact_match: float
    """Share of questions answered exactly, 0 to 1."""


def model_card(
    name: str, seed: int, length: str, cpu_seconds: float, measurements: Sequence[Measurement], num_parameters: int
) -> str:
    """README.md of a trained model of the shape ``name``, in Hugging Face's format.

    ``length`` is the option that says for how long, as in ``--steps-limit 900``.
    """
    shape = "" if name == SMALL_LLAMA else f" --shape {name}"
    num_shared = SHAPES[name].num_kv_heads
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [llama, retrieval, toy, namm]
---

# {name}

A `LlamaForCausalLM` of {num_parameters:,} parameters ({SHAPES[name]}, 256 words, float32)
that looks facts up in long documents: `captain=amber` somewhere in the text, `ask captain=` at the end. It
exists so that a memory can be evolved on a real transformer within minutes on a laptop. It knows 256 words and nothing
else: it is of no use as a language model.

## Training

    python -m workers.training --out DIR{shape} --seed {seed} {length}

took {cpu_seconds:.0f} CPU-seconds on one thread. Documents are those of `tasks/generated.py` (45 % prose-like, 45 %
code-like, and 10 % lists to copy) of 64 to 1,024 tokens after bare key-value lists of 17 to 65; a level is left when
90 % of its answers are right. Loss on the answers only, AdamW with a cosine to 5 %, 4,096 tokens a step. KV head 0 of
layer 0 starts with a bias towards the previous token. In the first 70 % of the steps a question about key i of the
vocabulary gets its answer through KV head i mod {num_shared} of the last layer only, so that no head does all the work
and "keep one head whole" is not a good memory. The rest is learned. Another processor may give slightly other figures.

## Accuracy

Held-out examples, four questions each, exact match of the model's first choice (earlier answers of the example given
right); documents longer than 1,024 tokens were never trained on.

| documents | tokens | facts | examples | exact match |
|---|---:|---:|---:|---:|
{_rows(measurements)}
"""


def _rows(measurements: Sequence[Measurement]) -> str:
    return "\n".join(
        f"| {row.kind} | {row.length:,} | {row.num_facts} | {row.num_examples} | {row.exact_match:.3f} |"
        for row in measurements
    )

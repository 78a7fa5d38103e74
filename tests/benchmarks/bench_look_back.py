"""What soft heads that look back are worth, and where: ``python -m tests.benchmarks.bench_look_back``.

Trains small Llamas over real text, as the medium one is trained, from the same seed for as many steps: with the two
heads that see a few tokens in the second layer (as it is), in the first, and nowhere. Prints the share of questions
about held-out documents answered exactly. A training takes some 25 minutes of a core; ``--layers 1`` runs one alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from workers import text_curriculum, text_model
from workers.text_command import measure
from workers.text_curriculum import TRAINED_KINDS
from workers.text_model import LOOKS_BACK, TextShape
from workers.text_training import TextTraining, train_text

SHAPE = TextShape(
    hidden=192, layers=4, query_heads=6, kv_heads=3, head_size=32, mlp=256, max_tokens=1024, tokens_per_step=4096
)
KINDS = TRAINED_KINDS[:6]
"""Those that hide facts."""
LATEST_SHARES = (0.2, 0.4, 0.6, 1.0, 1.0, 1.0)
"""So few steps that each level needs its share of them."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=("1", "0", "none"), default=("1", "0", "none"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--examples", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text_curriculum.LATEST_SHARES = LATEST_SHARES
    names = [f"{kind.removeprefix('text_')} {length:,}" for kind in KINDS for length in (512, 1024)]
    print(f"| soft heads in layer | {' | '.join(names)} |", f"|---{'|---:' * len(names)}|", sep="\n", flush=True)
    for layer in options.layers:
        cells = " | ".join(f"{exact:.2f}" for exact in exact_match(layer, options.steps, options.examples))
        print(f"| {layer} | {cells} |", flush=True)


def exact_match(layer: str, steps: int, num_examples: int) -> list[float]:
    """By kind and length, of a model trained with the soft heads in this layer."""
    sharp = tuple(look for look in LOOKS_BACK if look.layer == 0)
    soft = tuple(dataclasses.replace(look, layer=int(layer)) for look in LOOKS_BACK if look.layer and layer != "none")
    text_model.LOOKS_BACK = sharp + soft
    with tempfile.TemporaryDirectory() as folder:
        train_text(Path(folder), TextTraining(shape=SHAPE, steps=steps), lambda _progress: None)
        return [row.exact for row in measure(Path(folder), "cpu", num_examples, kinds=KINDS)]


if __name__ == "__main__":
    main()

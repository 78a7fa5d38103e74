"""On a real accelerator: the same scores as on the CPU, and units that it has no room for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.registry import GeneratedTaskSettings
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.specs import NammSettings, NammSpec, Normalisation
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator"),
]

ARCHITECTURE = NammSettings(update_every=64, window=32, hop=16, hidden_size=16, heads="ragged")
MEMORY = NammSpec(
    settings=ARCHITECTURE,
    normalisation=Normalisation(mean=(0.02,) * ARCHITECTURE.num_bins, variance=(0.001,) * ARCHITECTURE.num_bins),
)
GENOMES = np.random.default_rng(0).normal(0, 0.3, (16, ARCHITECTURE.genome_size)).astype(np.float32)
TASK = GeneratedTaskSettings(kind="facts_prose", length=512)


def evaluator(device: str) -> Evaluator:
    return EvaluatorRecipe(model=ModelSettings(path_or_id="small-llama", device=device), tasks=(TASK,)).build()


def unit(num_examples: int, num_candidates: int) -> Unit:
    candidates = tuple(range(num_candidates))
    return Unit(
        0, "namm", MEMORY, TASK.name, "train", tuple(range(num_examples)), candidates, GENOMES[: len(candidates)]
    )


def require_alike(ours: ScoredUnit, theirs: ScoredUnit, tolerance: float) -> None:
    """Rounding may tip a decision here and there, which costs or spares a token."""
    np.testing.assert_allclose(ours.graded, theirs.graded, atol=tolerance)
    assert np.abs(ours.held_tokens - theirs.held_tokens).mean() < 0.5


def test_scores_are_those_of_the_cpu():
    small = unit(2, 4)
    require_alike(evaluator("cuda").score(small), evaluator("cpu").score(small), 1e-3)


def test_a_unit_that_does_not_fit_is_scored_in_pieces(caplog):
    host, large = evaluator("cuda"), unit(32, 16)
    whole = host.score(large)
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.4 * needed / total)
    try:
        pieces = host.score(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "no room for 512 rows at once; trying 256" in caplog.text
    assert 1 <= host.limits[TASK.name] <= 256
    require_alike(pieces, whole, 1e-3)

"""A genome fitted to the attention that later queries pay: on the small Llama, which really looks facts up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.config import load_config
from orchestrator.journal import read_journal
from orchestrator.run import warm_genome
from orchestrator.storage import LocalFolder
from tasks.registry import GeneratedTaskSettings
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import MemorySpec, NammSettings, NammSpec, RivalSpec
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit
from workers.warm_start import WarmStartSettings, warm_start

TASK = GeneratedTaskSettings(kind="facts_prose", length=256)
MEMORY = NammSettings(update_every=64, hidden_size=8, heads="ragged")
SETTINGS = WarmStartSettings(examples=6, steps=60, kept_ratio=0.25)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return EvaluatorRecipe(model=ModelSettings(path_or_id="small-llama"), tasks=(TASK,)).build()


def scored(evaluator: Evaluator, memory: MemorySpec, genome: np.ndarray) -> ScoredUnit:
    return evaluator.score(
        Unit(
            generation=0,
            memory_name="m",
            memory=memory,
            task=TASK.name,
            split="heldout",
            examples=tuple(range(16)),
            candidates=(0,),
            genomes=genome[None],
        )
    )


def test_the_fitted_genome_keeps_less_and_answers_better_than_a_heuristic(evaluator):
    found = warm_start(evaluator, [TASK.name], MEMORY, SETTINGS, seed=0)
    assert found.genome.shape == (MEMORY.genome_size,)
    assert found.agreement > 0.75  # keeping all or nothing agrees on a quarter, or on three of them

    fitted = scored(evaluator, NammSpec(settings=MEMORY, normalisation=found.normalisation), found.genome)
    held = fitted.held_tokens.mean((0, 2)) / fitted.seen_tokens.mean()
    assert 0.02 < held.mean() < 0.6
    budget = tuple((max(1, round(float(share) * 256)),) * 2 for share in held)
    recent = scored(evaluator, RivalSpec(name="recent", update_every=64, budget=budget), np.zeros(0, np.float32))
    assert fitted.graded.mean() > recent.graded.mean() + 0.1


def test_the_fit_is_a_function_of_its_arguments(evaluator):
    small = dataclasses.replace(SETTINGS, examples=2, steps=5)
    first, again = (warm_start(evaluator, [TASK.name], MEMORY, small, seed=3) for _ in range(2))
    assert np.array_equal(first.genome, again.genome)
    assert not np.array_equal(first.genome, warm_start(evaluator, [TASK.name], MEMORY, small, seed=4).genome)


def test_genes_of_heads_are_fitted_too(evaluator):
    small = dataclasses.replace(SETTINGS, examples=2, steps=5)
    wide = dataclasses.replace(MEMORY, offsets=True, layout=(2, 2), lookahead=8)
    genome = warm_start(evaluator, [TASK.name], wide, small, seed=0).genome
    assert genome[-4:].all()

    heads = dataclasses.replace(MEMORY, choice="snapkv", layout=(2, 2))
    genes = warm_start(evaluator, [TASK.name], heads, small, seed=0).genome
    assert genes.shape == (4,)
    assert (genes <= 0).all()
    assert genes.min() < genes.max(), "heads are looked at to different degrees"


@pytest.mark.parametrize("wrong", [{"examples": 0}, {"steps": 0}, {"kept_ratio": 1.0}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"search.warm_start.{next(iter(wrong))}"):
        WarmStartSettings(**wrong)


def test_prompts_without_an_update_are_refused(evaluator):
    with pytest.raises(ValueError, match=r"search.warm_start found no prompt of at least memory.update_every \(512\)"):
        warm_start(evaluator, [TASK.name], NammSettings(), dataclasses.replace(SETTINGS, examples=1), seed=0)


def test_a_driver_without_an_accelerator_fits_on_its_cpu(tmp_path):
    """It failed with the device of the workers, and only once the journal was there."""
    config = load_config(
        "small",
        ["model.device=cuda", "cluster.accelerators_per_worker=1", "search.warm_start={examples: 1, steps: 1}"],
    )
    assert warm_genome(config, LocalFolder(tmp_path)).shape == (config.memory.genome_size,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.quantization=int8"], "search.warm_start needs a model that the driver can load on its CPU"),
        (
            ["tasks=[{kind: longbench, task: qasper}]"],
            "search.warm_start needs tasks with questions, longbench-qasper has completions",
        ),
    ],
    ids=["quantized", "completions"],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_written(settings, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["evolve", "small", "search.warm_start={}", *settings, "--run", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"namm: error: {message}")
    assert captured.err.count("\n") == 1
    assert not folder.exists()


@pytest.mark.slow
def test_a_run_begins_where_the_fit_ended_and_goes_on_there(tmp_path, capsys):
    arguments = [
        "evolve", "small", "search.warm_start={examples: 2, steps: 5}", "search.generations=2", "search.population=4",
        "examples.pool=4", "examples.per_generation=2", "examples.heldout=2", "units.candidates_per_unit=4",
        "cluster.address=in-process", "tracking.enabled=false", "evaluation.rivals=[recent]", "--quiet", "--json",
    ]  # fmt: skip
    assert main([*arguments, "--run", str(tmp_path / "a")]) == 0
    first = json.loads(capsys.readouterr().out)
    start = PretrainedMemory.from_pretrained(tmp_path / "a" / "warm-start")
    assert start.origin["warm_start"]["agreement"] > 0
    assert first["seconds"]["warm start"] > 0

    assert main([*arguments, "search.generations=3", "--run", str(tmp_path / "a")]) == 0
    assert len(read_journal(tmp_path / "a").generations) == 3
    again = PretrainedMemory.from_pretrained(tmp_path / "a" / "warm-start")
    assert np.array_equal(start.genome, again.genome)
    capsys.readouterr()
    both = ["search.initial_genome=" + str(tmp_path / "a" / "champion"), "--run", str(tmp_path / "b")]
    assert main([*arguments, *both]) == 2
    assert "search.initial_genome must be null with search.warm_start" in capsys.readouterr().err

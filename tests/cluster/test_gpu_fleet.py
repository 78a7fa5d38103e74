"""A fleet of real Ray actors on a real accelerator: what they score, what they share, and that nothing hangs on it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.config import ClusterSettings, UnitSettings
from orchestrator.errors import FleetError
from orchestrator.fleet import InProcessFleet, RayFleet
from orchestrator.units import plan_units
from tasks.registry import GeneratedTaskSettings
from tests.cluster.test_whole_runs import run_to_its_end, started
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.specs import NammSettings, NammSpec, Normalisation
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own log files
]

ARCHITECTURE = NammSettings(update_every=64, window=32, hop=16, hidden_size=16, heads="ragged")
MEMORY = NammSpec(
    settings=ARCHITECTURE,
    normalisation=Normalisation(mean=(0.02,) * ARCHITECTURE.num_bins, variance=(0.001,) * ARCHITECTURE.num_bins),
)
GENOMES = np.random.default_rng(0).normal(0, 0.3, (4, ARCHITECTURE.genome_size)).astype(np.float32)
TASK = GeneratedTaskSettings(kind="facts_prose", length=256)
ROWS = tuple(field.name for field in dataclasses.fields(ScoredUnit) if field.name not in ("seconds", "statistics"))
ON_GPU = ("model.device=cuda", "cluster.accelerators_per_worker=0.5")


@dataclass(frozen=True)
class SignedRecipe:
    """Loads what another recipe does, and leaves a file that says where: named by process id."""

    recipe: EvaluatorRecipe
    folder: Path

    def build(self) -> Evaluator:
        evaluator = self.recipe.build()
        device = evaluator.language_model.input_device
        place = {"seen": os.environ.get("CUDA_VISIBLE_DEVICES"), "device": str(device)}
        place["gpu"] = str(torch.cuda.get_device_properties(device).uuid)
        (self.folder / str(os.getpid())).write_text(json.dumps(place))
        return evaluator


@pytest.fixture(scope="module", autouse=True)
def _travelling() -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are not installed in workers


def recipe(device: str, dtype: str = "float32") -> EvaluatorRecipe:
    model = ModelSettings(path_or_id="small-llama", device=device, dtype=dtype)
    return EvaluatorRecipe(model=model, tasks=(TASK,))


def units() -> list[Unit]:
    return plan_units(
        generation=0,
        memory_name="namm",
        memory=MEMORY,
        genomes=GENOMES,
        examples={TASK.name: tuple(range(16))},
        split="train",
        settings=UnitSettings(candidates_per_unit=4, examples_per_unit=2),
    )


def in_process(device: str) -> dict[str, ScoredUnit]:
    with InProcessFleet(recipe(device)) as fleet:
        return {unit.key: unit for unit in fleet.score(units())}


@pytest.mark.parametrize(("dtype", "worst", "mean"), [("float32", 1e-3, 1e-4), ("bfloat16", 0.5, 0.05)])
def test_two_actors_share_one_gpu_and_score_as_a_cpu_does(tmp_path, dtype, worst, mean):
    """In bfloat16 rounding tips decisions, each of which may cost one answer its fact; on the mean it does not."""
    cluster = ClusterSettings(workers=2, accelerators_per_worker=0.5)
    with RayFleet(SignedRecipe(recipe("cuda", dtype), tmp_path), cluster) as fleet:
        scored = {unit.key: unit for unit in fleet.score(units())}
        while len(fleet.worker_pids()) < 2:
            list(fleet.score(units()))
        pids = set(fleet.worker_pids().values())
    places = [json.loads((tmp_path / str(pid)).read_text()) for pid in pids]
    assert len(places) == 2
    assert all(place["device"].startswith("cuda") for place in places)
    assert places[0] == places[1], "each sees the one accelerator that Ray gave it, and it is the same"
    on_cpu = in_process("cpu")
    assert scored.keys() == on_cpu.keys()
    differences = np.concatenate([np.abs(scored[key].graded - on_cpu[key].graded) for key in on_cpu])
    assert differences.max() < worst
    assert differences.mean() < mean
    tokens = [np.abs(scored[key].held_tokens - on_cpu[key].held_tokens).mean() for key in on_cpu]
    assert np.mean(tokens) < (0.1 if dtype == "float32" else 2.0)


def test_an_actor_gives_the_very_scores_of_a_process_of_its_own():
    with RayFleet(recipe("cuda"), ClusterSettings(workers=2, accelerators_per_worker=0.5)) as fleet:
        scored = {unit.key: unit for unit in fleet.score(units())}
    alone = in_process("cuda")
    assert scored.keys() == alone.keys()
    for key in alone:
        for name in ROWS:
            np.testing.assert_array_equal(
                getattr(scored[key], name), getattr(alone[key], name), err_msg=f"{key} {name}"
            )


def test_more_accelerators_than_there_are_are_refused_by_number():
    there = torch.cuda.device_count()
    asked = ClusterSettings(workers=1, accelerators_per_worker=there + 1)
    message = f"needs 1 CPU and {there + 1} GPU .*has 1 CPU and {there} GPU"
    with pytest.raises(FleetError, match=message), RayFleet(recipe("cuda"), asked):
        pass


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    """The ending of a run on the accelerator without Ray."""
    folder = tmp_path_factory.mktemp("runs") / "in-process"
    return run_to_its_end(folder, *ON_GPU, "cluster.address=in-process")


def test_two_workers_on_one_gpu_give_the_run_of_one_process(alone, tmp_path):
    assert run_to_its_end(tmp_path / "run", *ON_GPU, "cluster.workers=2") == alone


def test_a_driver_killed_on_a_gpu_is_resumed_to_the_same_run(alone, tmp_path):
    folder = tmp_path / "run"
    process = started(folder, 1, 5, *ON_GPU)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    assert run_to_its_end(folder, *ON_GPU, "cluster.workers=2") == alone

"""A memory evolved on the very model that others are carried to: what could be had there with some minutes of search.

The same ask, score, tell as a run, in one process and without its journal: it takes minutes, and is kept in the user's
cache folder once it is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from orchestrator.config import UnitSettings
from orchestrator.evaluation import ScoreUnits
from orchestrator.fitness import FullCacheScores, losses
from orchestrator.search import Search
from orchestrator.transfer import SearchThere, Target, re_estimated
from orchestrator.units import draw_examples, plan_units
from tasks.rows import cache_root
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec, RivalSpec


def memory_there(
    target: Target, memory: NammSettings, settings: SearchThere, score: ScoreUnits, say: Callable[[str], None]
) -> PretrainedMemory:
    """The memory of an earlier call with the same settings, or one that is evolved now.

    Args:
        target: the model and its one task; nothing but training examples is used.
        memory: architecture, that of the memory it is compared with.
        settings: of the search.
        score: on the target's fleet.
        say: told about every generation.
    """
    folder = _folder(target, memory, settings)
    if (folder / "config.json").is_file():
        return PretrainedMemory.from_pretrained(folder)
    evolved = _evolve(target, memory, settings, score, say)
    folder.parent.mkdir(parents=True, exist_ok=True)
    evolved.save_pretrained(folder)
    return evolved


def _evolve(
    target: Target, memory: NammSettings, settings: SearchThere, score: ScoreUnits, say: Callable[[str], None]
) -> PretrainedMemory:
    spec = re_estimated(NammSpec(settings=memory), target, score)
    search = Search(settings.search, memory.genome_size, settings.seed)
    units = UnitSettings(candidates_per_unit=settings.search.population, examples_per_unit=settings.examples_per_unit)
    pool = dict.fromkeys(target.plan.tasks, tuple(range(settings.pool)))
    full = RivalSpec(name="full", update_every=memory.update_every)
    nothing = np.zeros((1, 0), np.float32)
    full_units = plan_units(
        generation=0, memory_name="full", memory=full, genomes=nothing, examples=pool, split="train", settings=units
    )
    full_scores = FullCacheScores.from_units(score(full_units))
    for generation in range(settings.search.generations):
        examples = draw_examples(settings.seed, generation, target.plan.tasks, settings.pool, settings.per_generation)
        asked = plan_units(
            generation=generation,
            memory_name="there",
            memory=spec,
            genomes=search.ask(),
            examples=examples,
            split="train",
            settings=units,
        )
        fitness = losses(score(asked), full_scores, settings.fitness, settings.search.population)
        search.tell(fitness.loss)
        kept = float(fitness.kept_ratio.mean())
        say(
            f"evolving on {target.model}: generation {generation + 1} of {settings.search.generations}, "
            f"best fitness {-fitness.loss.min():.3f}, kept {kept:.0%}"
        )
    return PretrainedMemory(spec, search.mean, {"model": target.model, "tasks": list(target.plan.tasks)})


def _folder(target: Target, memory: NammSettings, settings: SearchThere) -> Path:
    deciding = json.dumps([dict(target.settings), asdict(memory), asdict(settings)], sort_keys=True, default=str)
    digest = hashlib.sha256(deciding.encode()).hexdigest()[:12]
    return cache_root() / "memories" / f"{re.sub('[^A-Za-z0-9_-]+', '-', Path(target.model).name)}-{digest}"

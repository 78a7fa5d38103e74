"""The order of things: full-cache pass, then ask, plan, score, commit, tell. Resume is the same with stored losses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from orchestrator.config import RunConfig
from orchestrator.errors import RunFolderError, UnitQuarantinedError
from orchestrator.fitness import FullCacheScores, GenerationFitness, TaskFitness, losses, merge_statistics
from orchestrator.fleet import Fleet
from orchestrator.full_cache import FullCacheLibrary
from orchestrator.journal import GenerationRecord, Journal
from orchestrator.machine import machine_figures
from orchestrator.search import Search, population_hash
from orchestrator.store import Store
from orchestrator.units import declare, draw_examples, plan_units
from workers.memory.specs import NammSpec, Normalisation
from workers.unit import FULL_CACHE_PASS, Score, ScoredUnit, Unit

MEMORY_NAME = "namm"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the run stands, after every unit and every generation."""

    generation: int
    """``FULL_CACHE_PASS`` during the pass before the first generation."""
    units_done: int
    units_total: int
    record: GenerationRecord | None = None
    """Set when the generation is committed."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; built by the caller, used by the functions below."""

    config: RunConfig
    fleet: Fleet
    store: Store
    journal: Journal
    search: Search
    report: Callable[[Progress], None]
    library: FullCacheLibrary = field(default_factory=FullCacheLibrary)


@dataclass(frozen=True, slots=True)
class FullCachePass:
    """What the frozen model does with its whole cache; what every candidate is compared with."""

    spec: NammSpec
    """The memory to evolve, with the statistics of this pass (spec 3.3)."""
    scores: FullCacheScores
    units: tuple[ScoredUnit, ...]


@dataclass(frozen=True, slots=True)
class Evolved:
    """What came of the search."""

    spec: NammSpec
    genome: npt.NDArray[np.float32]
    """``[genome_size]``: the mean of the search, not its luckiest candidate."""
    population_hash: str
    """SHA-256 of the last population that was scored."""


def evolve(parts: Parts) -> Evolved:
    """Run the search from wherever the journal stands to its last generation."""
    full = full_cache_pass(parts)
    replay(parts.search, parts.journal.generations())
    while parts.search.generation < parts.config.search.generations:
        full = with_joining_tasks(parts, full)
        run_generation(parts, full)
    compact(parts.store, before=parts.search.generation)
    return Evolved(full.spec, parts.search.mean, parts.journal.generations()[-1].population_hash)


def full_cache_pass(parts: Parts) -> FullCachePass:
    """Score the full cache on the whole pool of the first tasks, and gather the feature statistics there (spec 3.3).

    A genome of zeros keeps everything. The statistics are an input to every later unit, never gathered while scoring.
    """
    config = parts.config
    scored = _scored_with_full_cache(parts, config.tasks_at(0), record_statistics=True)
    statistics = merge_statistics(scored)
    normalisation = Normalisation(tuple(statistics.mean.tolist()), tuple(statistics.variance.tolist()))
    spec = NammSpec(settings=config.memory, normalisation=normalisation)
    return FullCachePass(spec, FullCacheScores.from_units(scored), tuple(scored))


def with_joining_tasks(parts: Parts, full: FullCachePass) -> FullCachePass:
    """At the beginning of a stage, or of a run resumed in one: the full cache scored on the tasks that have joined.

    Search and feature statistics go on as they are: a stage is more tasks, and nothing else.
    """
    known = {unit.task for unit in full.units}
    joining = [name for name in parts.config.tasks_at(parts.search.generation) if name not in known]
    if not joining:
        return full
    units = (*full.units, *_scored_with_full_cache(parts, joining))
    return replace(full, scores=FullCacheScores.from_units(units), units=units)


def _scored_with_full_cache(parts: Parts, names: Sequence[str], *, record_statistics: bool = False) -> list[ScoredUnit]:
    config = parts.config
    units = plan_units(
        generation=FULL_CACHE_PASS,
        memory_name="full",
        memory=NammSpec(settings=config.memory),
        genomes=np.zeros((1, config.memory.genome_size), np.float32),
        examples=dict.fromkeys(names, tuple(range(config.examples.pool))),
        split="train",
        settings=config.units,
        score=config.fitness.score,
        record_statistics=record_statistics,
    )
    scored = parts.library.through(
        parts.store, units, lambda: score_units(parts.fleet, parts.store, parts.report, units)
    )
    parts.store.commit_units(FULL_CACHE_PASS)
    return scored


def run_generation(parts: Parts, full: FullCachePass) -> None:
    """One generation. Commit order: Parquet, journal line (the commit point), tell; then listeners.

    Unit files become tables while the next generation is being scored: at paper scale that takes half a second.
    """
    config, search = parts.config, parts.search
    started = time.monotonic()
    generation, genomes = search.generation, search.ask()
    names = config.tasks_at(generation)
    examples = draw_examples(config.seed, generation, names, config.examples.pool, config.examples.per_generation)
    units = plan_units(
        generation=generation,
        memory_name=MEMORY_NAME,
        memory=full.spec,
        genomes=genomes,
        examples=examples,
        split="train",
        settings=config.units,
        score=config.fitness.score,
    )
    asked = time.monotonic()
    scored = _scored_or_declared(parts, units, full)
    scored_at = time.monotonic()
    fitness = losses(scored, full.scores, config.fitness, config.search.population, generation)
    parts.store.commit_generation(generation, genomes, fitness)
    record = GenerationRecord(
        generation=generation,
        losses=fitness.loss.tolist(),
        population_hash=population_hash(genomes),
        examples=examples,
        timestamp_ms=time.time_ns() // 1_000_000,
        metrics=metrics(parts, fitness, scored, scored_at - asked),
        seconds={"ask": asked - started, "score": scored_at - asked, "commit": time.monotonic() - scored_at},
    )
    parts.journal.append(record)
    search.tell(fitness.loss)
    parts.fleet.show(
        {**record.metrics, "cluster/generations": generation + 1.0, "cluster/generation_seconds": scored_at - started}
    )
    parts.report(Progress(generation=generation, units_done=len(units), units_total=len(units), record=record))


def compact(store: Store, before: int) -> None:
    """Turn the unit files of earlier generations into tables, those that a killed driver left included."""
    for generation in store.staged_generations():
        if generation < before:
            store.commit_units(generation)


def score_units(
    fleet: Fleet, store: Store, report: Callable[[Progress], None], units: Sequence[Unit]
) -> list[ScoredUnit]:
    """Score what is not yet on disk, make each result durable as it comes; all results in the order of ``units``."""
    there = store.get_units([unit.key for unit in units])
    results = {unit.key: there.get(unit.key) for unit in units}
    missing = [unit for unit in units if results[unit.key] is None]
    any_scored = False
    for scored in fleet.score(missing):
        store.put_unit(scored)
        if not any_scored:  # by now every worker has something to do
            compact(store, before=scored.generation)
        any_scored = True
        results[scored.key] = scored
        done = sum(result is not None for result in results.values())
        report(Progress(generation=scored.generation, units_done=done, units_total=len(units)))
    return [result for result in results.values() if result is not None]


def _scored_or_declared(parts: Parts, units: Sequence[Unit], full: FullCachePass) -> list[ScoredUnit]:
    """As ``score_units``; units that were set aside get declared scores, so that the search can go on without them."""
    try:
        return score_units(parts.fleet, parts.store, parts.report, units)
    except UnitQuarantinedError as error:
        for unit in units:
            if unit.key in error.stories:
                _logger.warning("unit %s counts as wrong on every example: it was set aside", unit.key)
                parts.store.put_unit(declare(unit, full.units))
        return score_units(parts.fleet, parts.store, parts.report, units)


def replay(search: Search, records: Sequence[GenerationRecord]) -> None:
    """Bring a fresh search to where the journal stands, proving at each generation that it proposes the same genomes.

    Raises:
        RunFolderError: the journal was written by other versions of the libraries, or on another kind of machine.
    """
    for record in records:
        if population_hash(search.ask()) != record.population_hash:
            raise RunFolderError(
                f"generation {record.generation} cannot be repeated: this installation proposes other genomes than the "
                "one that wrote the journal; install the same versions (constraints.txt) or start a new run folder"
            )
        search.tell(np.array(record.losses, np.float64))


def metrics(parts: Parts, fitness: GenerationFitness, scored: Sequence[ScoredUnit], seconds: float) -> dict[str, float]:
    """The figures that dashboards show, grouped by ``/``; fitness is minus the loss, higher is better."""
    best = int(np.argmin(fitness.loss))
    stats = parts.fleet.stats()
    held = np.concatenate([unit.held_tokens for unit in scored])
    kept = (held / np.concatenate([unit.seen_tokens for unit in scored])[:, None, None]).mean(axis=0)
    genomes = parts.search.ask()
    figures = {
        "fitness/best": float(-fitness.loss[best]),
        "fitness/mean": float(-fitness.loss.mean()),
        "fitness/median": float(-np.median(fitness.loss)),
        "fitness/worst": float(-fitness.loss.max()),
        "score/ratio_best": float(fitness.ratio[best]),
        "score/ratio_mean": float(fitness.ratio.mean()),
        "score/graded_mean": float(fitness.graded.mean()),
        "score/exact_mean": float(fitness.exact.mean()),
        "cache/kept_ratio_best": float(fitness.kept_ratio[best]),
        "cache/kept_ratio_mean": float(fitness.kept_ratio.mean()),
        "cache/peak_bytes_mean": float(np.concatenate([unit.peak_bytes for unit in scored]).mean()),
        "cache/mean_bytes_mean": float(np.concatenate([unit.mean_bytes for unit in scored]).mean()),
        "cache/state_bytes_mean": float(np.concatenate([unit.state_bytes for unit in scored]).mean()),
        **{f"cache/kept_ratio_layer_{layer}": float(value) for layer, value in enumerate(kept.mean(axis=1))},
        **({} if parts.search.sigma is None else {"search/sigma": parts.search.sigma}),
        "search/mean_genome_norm": float(np.linalg.norm(parts.search.mean)),
        "search/population_spread": float(genomes.std(axis=0).mean()),
        "cluster/workers": float(stats.workers),
        "cluster/deaths": float(stats.deaths),
        "cluster/retries": float(stats.retries),
        "cluster/units": float(len(scored)),
        "cluster/units_set_aside": float(sum(unit.is_declared for unit in scored)),
        "cluster/units_per_second": len(scored) / max(seconds, 1e-9),
        "cluster/unit_seconds_mean": float(np.mean([unit.seconds for unit in scored])),
        **machine_figures(),
        **{
            f"task/{name}/{figure}": value
            for name, task in fitness.by_task.items()
            for figure, value in _task_figures(task, best, parts.config.fitness.score).items()
        },
    }
    # Of completions only one of the two scores is measured; the other is no number, and no dashboard can show that.
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _task_figures(task: TaskFitness, best: int, score: Score) -> dict[str, float]:
    """Raw means and medians over the candidates beside the ratio, which a small full-cache score makes large."""
    raw = task.exact if score == "exact" else task.graded
    return {
        "score_mean": float(raw.mean()),
        "score_median": float(np.median(raw)),
        "ratio_best": float(task.ratio[best]),
        "ratio_mean": float(task.ratio.mean()),
        "full_cache": task.full_cache,
    }

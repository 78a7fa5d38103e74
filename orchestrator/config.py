"""Everything that a run is made of: typed settings, checked when they are built.

``load_config`` reads a preset or a YAML file; ``config_hash`` names the trajectory that the settings decide.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Discriminator

from orchestrator import presets
from orchestrator.errors import ConfigError
from tasks.registry import SIZED, TaskSettings, task_settings
from workers.memory.specs import NammSettings, RivalName
from workers.settings import ModelSettings, PromptSettings, WarmStartSettings
from workers.unit import Score


def _require(holds: bool, key: str, allowed: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{key} must be {allowed}: got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """How many examples of every task there are, and how many are asked at a time."""

    pool: int
    """Training examples per task that generations draw from."""
    per_generation: int
    """Examples per task that every candidate of a generation answers; at most ``pool``."""
    heldout: int
    """Examples per task and length that are never part of the fitness, only reported."""

    def __post_init__(self) -> None:
        _require(self.pool >= 1, "examples.pool", "at least 1", self.pool)
        allowed = f"from 1 to examples.pool ({self.pool})"
        _require(1 <= self.per_generation <= self.pool, "examples.per_generation", allowed, self.per_generation)
        _require(self.heldout >= 1, "examples.heldout", "at least 1", self.heldout)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How genomes are proposed."""

    optimizer: str = "CMA"
    """``CMA``, another of nevergrad's registry that learns a generation at a time (others are refused by name before
    anything is written), or ``PublishedCMA`` (full covariance, slow)."""
    population: int
    """Candidates in a generation."""
    sigma: float = 0.065
    """Standard deviation of the first generation around the initial genome, in genome units."""
    generations: int
    """Generations to evolve; may be raised later, a finished run then goes on."""
    diagonal: bool = True
    """Whether CMA adapts variances only; full covariance costs quadratic time and space in the genome."""
    initial_genome: str | None = None
    """Folder of a saved memory to start from; None starts from zeros."""
    warm_start: WarmStartSettings | None = None
    """Fits the genome to start from to the attention that later queries pay, before the first generation."""

    def __post_init__(self) -> None:
        _require(bool(self.optimizer), "search.optimizer", "the name of an optimizer", self.optimizer)
        _require(self.population >= 2, "search.population", "at least 2", self.population)
        _require(0.0 < self.sigma < math.inf, "search.sigma", "positive and finite", self.sigma)
        _require(self.generations >= 1, "search.generations", "at least 1", self.generations)
        allowed = "null with search.warm_start, which fits a genome of its own"
        _require(
            self.warm_start is None or self.initial_genome is None,
            "search.initial_genome",
            allowed,
            self.initial_genome,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FitnessSettings:
    """How scores become one loss per candidate."""

    score: Score = "graded"
    """``graded``: probability of the gold answers. ``exact``: share of questions answered exactly, or the task's score
    of what was decoded."""
    kept_price: float = 0.0
    """Fitness paid for keeping the whole cache, in units of the full-cache score; 0 for no price."""
    kept_target: float = 0.0
    """Kept ratio up to which nothing is paid: less is not worth more. 0 pays for every token."""
    price_ramp: int = 0
    """Generations over which the price rises from nothing, evenly, to ``kept_price``; 0 asks all from the first."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a task in the fitness, by its name, from 1e-9 to 1e9; 1 for tasks that are not named."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            _require(1e-9 <= weight <= 1e9, f"fitness.weights.{name}", "from 1e-9 to 1e9", weight)
        _require(0.0 <= self.kept_price < math.inf, "fitness.kept_price", "at least 0 and finite", self.kept_price)
        _require(0.0 <= self.kept_target < 1.0, "fitness.kept_target", "at least 0 and below 1", self.kept_target)
        _require(self.price_ramp >= 0, "fitness.price_ramp", "at least 0", self.price_ramp)
        for name, value in (("kept_target", self.kept_target), ("price_ramp", self.price_ramp)):
            allowed = "0 where fitness.kept_price is 0: without a price there is nothing to shape"
            _require(self.kept_price > 0 or value == 0, f"fitness.{name}", allowed, value)

    def price_at(self, generation: int) -> float:
        """The price that a generation pays."""
        return self.kept_price * min(1.0, (generation + 1) / self.price_ramp) if self.price_ramp else self.kept_price


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """Tasks that join the search after others were evolved on alone (incremental evolution)."""

    from_generation: int
    """First generation that asks them."""
    adds: tuple[str, ...]
    """Their names."""

    def __post_init__(self) -> None:
        _require(self.from_generation >= 1, "stages: from_generation", "at least 1", self.from_generation)
        _require(bool(self.adds), "stages: adds", "a list of at least one task", list(self.adds))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings:
    """How the work of a generation is cut; never depends on the cluster, so that results do not either."""

    candidates_per_unit: int
    """Candidates that share a unit, and with it the prefill before the first update."""
    examples_per_unit: int
    """Examples of one task in a unit."""

    def __post_init__(self) -> None:
        for name in ("candidates_per_unit", "examples_per_unit"):
            _require(getattr(self, name) >= 1, f"units.{name}", "at least 1", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Where the units are scored; decides how fast a run is, never what comes of it."""

    address: str | None = None
    """None starts Ray on this machine, ``auto`` or ``ray://host:port`` joins a cluster, ``in-process`` needs no Ray."""
    workers: int | tuple[int, int] = 2
    """Workers to keep alive, each with its own copy of the model. ``[2, 64]``: at least 2, more while there is room."""
    cpus_per_worker: float = 1.0
    """CPU cores reserved for a worker."""
    accelerators_per_worker: float = 0.0
    """Accelerators reserved for a worker; 0.5 lets two workers share one."""
    attempts_per_unit: int = 2
    """Times that a unit itself may fail before it is set aside; lost workers are not counted."""
    unit_timeout_seconds: float = 3600.0
    """A worker that needs longer for one unit is taken for hung, and replaced."""
    drain_seconds: float = 60.0
    """After SIGTERM, how long what is in flight may take to come back."""

    @property
    def fewest_workers(self) -> int:
        """Workers that are asked for whether the cluster has room or not, so that one that can grow does."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that there are at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def __post_init__(self) -> None:
        _require(self.address != "", "cluster.address", "null, auto, in-process or an address", self.address)
        allowed = "a number of at least 1, or two such in order, as in [2, 64]"
        _require(1 <= self.fewest_workers <= self.most_workers, "cluster.workers", allowed, self.workers)
        _require(self.unit_timeout_seconds > 0, "cluster.unit_timeout_seconds", "above 0", self.unit_timeout_seconds)
        _require(self.drain_seconds >= 0, "cluster.drain_seconds", "at least 0", self.drain_seconds)
        for name in ("cpus_per_worker", "accelerators_per_worker"):
            amount = getattr(self, name)
            _require(0.0 <= amount < math.inf, f"cluster.{name}", "at least 0 and finite", amount)
        _require(self.attempts_per_unit >= 1, "cluster.attempts_per_unit", "at least 1", self.attempts_per_unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingSettings:
    """Where MLflow shows the run."""

    uri: str | None = None
    """Address of the MLflow server; None keeps ``mlflow.db`` in the folder above the run folder."""
    experiment: str = "namm"
    """MLflow experiment that the run is listed under."""
    enabled: bool = True
    """Whether the run is shown in MLflow at all."""

    def __post_init__(self) -> None:
        _require(self.uri != "", "tracking.uri", "an address or null", self.uri)
        _require(bool(self.experiment), "tracking.experiment", "a name", self.experiment)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What the final table compares."""

    lengths: tuple[int, ...]
    """Lengths of the held-out documents, in tokens; every task is asked at each of them."""
    rivals: tuple[RivalName, ...] = ("recent", "h2o", "l2norm", "random", "snapkv", "tova", "truncation")
    """Heuristic memories to compare with at the same budget; the full cache is always in the table."""
    examples_per_unit: int = 16
    """Examples of one task in a unit of the evaluation, which has one candidate at a time."""

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip((0, *self.lengths), self.lengths, strict=False))
        _require(bool(self.lengths) and increasing, "evaluation.lengths", "positive and increasing", self.lengths)
        _require(len(set(self.rivals)) == len(self.rivals), "evaluation.rivals", "named once each", self.rivals)
        _require("full" not in self.rivals, "evaluation.rivals", "without full, which is always there", self.rivals)
        _require(self.examples_per_unit >= 1, "evaluation.examples_per_unit", "at least 1", self.examples_per_unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """The page about a run that is made at its end."""

    enabled: bool = True
    """Whether it is made; ``namm report`` makes it at any time."""
    traced_examples: int = 16
    """Held-out examples of every task whose tokens are followed, to tell what kinds of tokens are forgotten."""

    def __post_init__(self) -> None:
        _require(self.traced_examples >= 1, "report.traced_examples", "at least 1", self.traced_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run."""

    seed: int = 0
    """Decides the search and which examples each generation draws."""
    model: ModelSettings
    memory: NammSettings = field(default_factory=NammSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    tasks: tuple[Annotated[TaskSettings, Discriminator("kind")], ...]
    """Tasks that make up the fitness."""
    stages: tuple[StageSettings, ...] = ()
    """When tasks join; those that no stage adds are asked from the beginning."""
    examples: ExampleSettings
    search: SearchSettings
    fitness: FitnessSettings = field(default_factory=FitnessSettings)
    units: UnitSettings
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    evaluation: EvaluationSettings
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295", self.seed)
        _require(bool(self.tasks), "tasks", "a list of at least one task", list(self.tasks))
        for name, count in Counter(task.name for task in self.tasks).items():
            _require(count == 1, "tasks", "different in kind or length", f"{count} named {name}")
        for index, task in enumerate(self.tasks):
            if isinstance(task, SIZED):
                allowed = f"at least memory.update_every ({self.memory.update_every}), or nothing is ever forgotten"
                _require(task.length >= self.memory.update_every, f"tasks.{index}.length", allowed, task.length)
        self._check_stages()
        reserved = self.cluster.accelerators_per_worker > 0 or self.cluster.address == "in-process"
        allowed = f"above 0 when model.device is {self.model.device}, because Ray hides accelerators not reserved"
        holds = reserved or self.model.device == "cpu"
        _require(holds, "cluster.accelerators_per_worker", allowed, self.cluster.accelerators_per_worker)
        allowed = f"1 at most when model.device is {self.model.device}, which uses one (auto spreads the model)"
        holds = self.cluster.accelerators_per_worker <= 1 or self.model.is_spread
        _require(holds, "cluster.accelerators_per_worker", allowed, self.cluster.accelerators_per_worker)

    def _check_stages(self) -> None:
        names = [task.name for task in self.tasks]
        for key, name in [
            *((f"stages.{i}.adds", name) for i, stage in enumerate(self.stages) for name in stage.adds)
        ] + [("fitness.weights", name) for name in self.fitness.weights]:
            _require(name in names, key, f"names of tasks ({', '.join(names)})", name)
        added = [name for stage in self.stages for name in stage.adds]
        _require(len(set(added)) == len(added), "stages", "lists of tasks that each join once", added)
        _require(len(added) < len(names), "stages", "lists that leave a task to begin with", added)
        starts = [stage.from_generation for stage in self.stages]
        increasing = all(a < b for a, b in itertools.pairwise(starts))
        _require(increasing, "stages", "in order of from_generation", starts)

    def tasks_at(self, generation: int) -> tuple[str, ...]:
        """Names of the tasks that a generation asks, in the order of ``tasks``."""
        later = {name for stage in self.stages if stage.from_generation > generation for name in stage.adds}
        return tuple(task.name for task in self.tasks if task.name not in later)


NOT_DECIDING = (
    *("cluster", "tracking", "evaluation", "report", "search.generations", "model.max_memory", "model.sha256"),
)
"""Settings that leave the trajectory as it is: a run may be resumed with others."""

SINCE: Mapping[str, Any] = MappingProxyType(
    {
        "memory.layout": None,
        "memory.offsets": False,
        "memory.lookahead": 0,
        "memory.choice": "network",
        "search.warm_start": None,
        "fitness.kept_target": 0.0,
        "fitness.price_ramp": 0,
    }
)
"""Settings that came later, with the value that leaves them off: runs of before do not have them, and may go on."""


def load_config(path_or_preset_name: str | PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's settings.

    Args:
        path_or_preset_name: a YAML file, or the bare name of a shipped preset.
        overrides: texts like ``search.population=8`` or ``tasks.0.length=512``; values are YAML.

    Raises:
        ConfigError: a file cannot be read, or a key is unknown, missing, of the wrong type or out of bounds.
    """
    return presets.build(RunConfig, presets.read(path_or_preset_name, overrides))


def config_from_dict(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Build a run's settings from what ``config_to_dict`` returned.

    Args:
        settings: nested dictionaries.
        overrides: as ``load_config`` takes them.

    Raises:
        ConfigError: as ``load_config``.
    """
    document = presets.Document(origin="configuration", values=dict(settings))
    return presets.build(RunConfig, presets.override(document, overrides))


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON has them: nested dictionaries, lists, strings, numbers, booleans and None."""
    # A config built in Python may hold 1 where 1.0 is meant; the trip through the types gives both one JSON, one hash.
    checked = config_from_dict(dataclasses.asdict(config))
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(checked)))
    return settings


def config_hash(config: RunConfig) -> str:
    """SHA-256 (hex) of the settings that decide the trajectory; the model counts by its name, not its weights."""
    deciding = _deciding(config_to_dict(config))
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any], generations: int | None = None) -> list[str]:
    """Dotted keys, sorted, of the settings that decide the trajectory and differ between two ``config_to_dict``.

    Args:
        a: the settings of a run.
        b: other settings.
        generations: count only what decides this many generations from the first, so that a stage to come may be
            added; None counts all.
    """
    a_values, b_values = (
        _deciding(settings if generations is None else _past(settings, generations)) for settings in (a, b)
    )
    absent = object()
    return sorted(
        key for key in a_values.keys() | b_values.keys() if a_values.get(key, absent) != b_values.get(key, absent)
    )


def _past(settings: Mapping[str, Any], generations: int) -> dict[str, Any]:
    """Settings without the stages that begin at ``generations`` or later, and without their tasks and weights."""
    stages = settings.get("stages", ())
    to_come = {name for stage in stages if stage["from_generation"] >= generations for name in stage["adds"]}
    if not to_come:
        return dict(settings)
    weights = settings["fitness"]["weights"]
    return {
        **settings,
        "stages": [stage for stage in stages if stage["from_generation"] < generations],
        "tasks": [task for task in settings["tasks"] if task_settings(task).name not in to_come],
        "fitness": {
            **settings["fitness"],
            "weights": {name: weight for name, weight in weights.items() if name not in to_come},
        },
    }


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value of every setting that decides the trajectory."""
    return {
        key: value
        for key, value in presets.flatten(settings).items()
        if not any(key == excluded or key.startswith(f"{excluded}.") for excluded in NOT_DECIDING)
        and not (key in SINCE and value == SINCE[key])
    }

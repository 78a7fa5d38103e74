"""Proposes genomes and learns from their losses: nevergrad behind ask and tell.

A trajectory is a function of (settings, genome size, seed, initial genome, losses), bit for bit, so a run resumes by
replaying its losses. nevergrad and pycma break that in several silent ways; each guard below names the way it shuts.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config import SearchSettings
from orchestrator.errors import ConfigError, SearchError
from orchestrator.published_cma import PublishedCma

CMA = "CMA"
PUBLISHED_CMA = "PublishedCMA"
"""The published system's own search, for comparing trajectories; not in nevergrad's registry."""
WORKING = "CMA, DE, TBPSA or OnePlusOne"
SMALLEST_CMA_POPULATION = 3
LARGEST_LOSS = 5e20
"""nevergrad silently clips losses from here on, which would make ties of them."""


class Search:
    """One optimizer, asked and told a whole generation at a time.

    Inside, the optimizer works in units of ``settings.sigma`` around the initial genome, starting at zero with step 1:
    what it asks is then what it is told, to the last bit, whatever the initial genome.
    """

    def __init__(
        self,
        settings: SearchSettings,
        genome_size: int,
        seed: int,
        initial: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Prepare generation 0.

        Args:
            settings: optimizer, population and step.
            genome_size: length of a genome, at least 2.
            seed: decides every random draw, 0 to 2**32 - 1; numpy's global generator plays no part.
            initial: ``[genome]`` to search around; None for zeros.

        Raises:
            ConfigError: the optimizer is unknown or cannot work by generations, or the initial genome does not fit.
        """
        self._population_size = settings.population
        self._step = settings.sigma
        self._origin = _origin(initial, genome_size)
        self._optimizer = _build_optimizer(settings, genome_size, seed)
        # nevergrad replaces CMA's inner strategy object when it restarts: holding the first one shows that it did.
        self._strategy: Any = self._optimizer.es if settings.optimizer == CMA else None
        self._generation = 0
        self._candidates: list[Any] = []
        self._population: npt.NDArray[np.float32] | None = None

    @property
    def generation(self) -> int:
        """Generations told so far, which is the number of the one to ask next."""
        return self._generation

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """``[genome]`` where the search stands: CMA's mean; for optimizers without one what nevergrad recommends."""
        centre = self._optimizer.recommend().value if self._strategy is None else self._strategy.mean
        return self._genomes(np.asarray(centre, dtype=np.float64))

    @property
    def sigma(self) -> float | None:
        """CMA's step size in genome units; None for other optimizers."""
        return None if self._strategy is None else self._step * float(self._strategy.sigma)

    def ask(self) -> npt.NDArray[np.float32]:
        """The genomes ``[population, genome]`` of this generation, read-only; the same array until it is told.

        Raises:
            ConfigError: the optimizer cannot even propose a first generation.
            SearchError: it proposes no further one, or numbers that float32 cannot hold.
        """
        if self._population is None:
            self._candidates = self._asked_candidates()
            asked = np.array([candidate.value for candidate in self._candidates], dtype=np.float64)
            self._population = self._genomes(asked)
            self._population.flags.writeable = False
        return self._population

    def tell(self, losses: npt.NDArray[np.float64]) -> None:
        """Learn from the generation that was asked.

        Args:
            losses: ``[population]``, lower is better, in the order of the genomes.

        Raises:
            SearchError: nothing was asked, the losses are not one finite number per candidate, or the optimizer
                refused them or started afresh.
        """
        if self._population is None:
            raise SearchError(f"generation {self._generation} was told before it was asked: call ask() first")
        checked = self._checked(losses)
        # In index order, however the losses arrived: ties are broken by order, and TPA would read the first two.
        for candidate, loss in zip(self._candidates, checked, strict=True):
            self._optimizer.tell(candidate, float(loss))
        self._generation += 1
        self._candidates, self._population = [], None
        if self._strategy is not None:
            self._require_same_strategy()

    def _asked_candidates(self) -> list[Any]:
        """One generation and no more: CMA fails when asked for more before every loss is in (nevergrad#1690)."""
        try:
            return [self._optimizer.ask() for _ in range(self._population_size)]
        except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            kind = SearchError if self._generation else ConfigError
            raise kind(
                f"the optimizer cannot propose generation {self._generation}: {error!r}; those that plan with a "
                f"budget cannot serve a search that may be extended: set search.optimizer to {WORKING}"
            ) from error

    def _genomes(self, standard: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """From the optimizer's units to genomes: computed in float64, given as float32."""
        with np.errstate(over="ignore"):
            genomes = (self._origin + self._step * standard).astype(np.float32)
        if not np.isfinite(genomes).all():
            raise SearchError(
                f"the search diverged in generation {self._generation}: its genomes are not finite float32 numbers; "
                "lower search.sigma or choose another search.optimizer"
            )
        return genomes

    def _checked(self, losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The losses, fit for nevergrad, which would accept duplicates, NaN and infinity and go astray."""
        checked = np.asarray(losses, dtype=np.float64)
        if checked.shape != (self._population_size,):
            raise SearchError(
                f"generation {self._generation} was told losses of shape {list(checked.shape)}: "
                f"expected one per candidate, [{self._population_size}]"
            )
        # Written so that NaN fails the comparison.
        astray = np.flatnonzero(~(np.abs(checked) < LARGEST_LOSS))
        if astray.size:
            raise SearchError(
                f"candidate {astray[0]} of generation {self._generation} has the loss {checked[astray[0]]}: "
                f"losses must be finite and smaller than {LARGEST_LOSS:g}"
            )
        return checked

    def _require_same_strategy(self) -> None:
        """Fail when CMA started afresh or ignored the generation: nevergrad does both without a word."""
        if self._optimizer.es is not self._strategy:
            reasons = ", ".join(sorted(self._strategy.stop())) or "no reason given"
            raise SearchError(
                f"CMA can make no further step after generation {self._generation - 1} ({reasons}) and would start "
                "again from its initial genome; the journal up to here is valid: start a new run from the best memory"
            )
        if self._strategy.countiter != self._generation:
            raise SearchError(
                f"CMA ignored the losses of generation {self._generation - 1}: it counts {self._strategy.countiter} "
                f"generations, expected {self._generation}; check the installed versions of nevergrad and cma"
            )


def population_hash(population: npt.NDArray[np.float32]) -> str:
    """SHA-256 (hex) of the genomes' float32 little-endian bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(population, dtype="<f4").tobytes()).hexdigest()


def _origin(initial: npt.NDArray[np.floating] | None, genome_size: int) -> npt.NDArray[np.float64]:
    """The initial genome ``[genome]`` in float64."""
    if genome_size < 2:
        raise ConfigError(f"the genome must have at least 2 numbers: got {genome_size}")
    if initial is None:
        return np.zeros(genome_size)
    origin = np.array(initial, dtype=np.float64)
    if origin.shape != (genome_size,) or not np.isfinite(origin).all():
        raise ConfigError(
            f"search.initial_genome must hold {genome_size} finite numbers: got shape {list(origin.shape)}, "
            f"{int(np.isfinite(origin).sum())} of them finite; is it a memory of other settings?"
        )
    return origin


def _build_optimizer(settings: SearchSettings, genome_size: int, seed: int) -> Any:
    """A nevergrad optimizer over an unbounded array: bounds would scale CMA's first step by 0.15."""
    if settings.optimizer == PUBLISHED_CMA:
        return PublishedCma(genome_size, settings.population, np.random.RandomState(seed))
    import nevergrad as ng  # here, because importing it takes 3 s, which `namm --help` should not

    parametrization = ng.p.Array(shape=(genome_size,))
    # Without a state of its own nevergrad draws its seed from numpy's global generator.
    parametrization.random_state = np.random.RandomState(seed)
    factory = _guarded_cma(settings) if settings.optimizer == CMA else _registered(settings.optimizer)
    try:
        # No budget is passed: it would make the trajectory depend on how many generations are planned.
        optimizer = factory(parametrization, num_workers=settings.population)
    except (ArithmeticError, AssertionError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"search.optimizer {settings.optimizer!r} cannot be built for {genome_size} numbers and a population of "
            f"{settings.population}: {error!r}"
        ) from error
    if settings.optimizer == CMA:
        # CMA never reads nevergrad's archive of told candidates, which would grow to a quarter of a gigabyte.
        optimizer.pruning = ng.optimization.utils.Pruning(min_len=1, max_len=settings.population)
    return optimizer


def _guarded_cma(settings: SearchSettings) -> Any:
    """CMA without restarts, independent of anything but its seed and losses."""
    import nevergrad as ng
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

    if settings.population < SMALLEST_CMA_POPULATION:
        raise ConfigError(
            f"search.population must be at least {SMALLEST_CMA_POPULATION} for {CMA}: got {settings.population}"
        )
    options = {
        # TPA, pycma's choice from 300 dimensions on, depends on which candidates are told first (CMA-ES/pycma#134) …
        "AdaptSigma": CMAAdaptSigmaCSA,
        # … and so do the mirrored candidates that it adds to populations below 6.
        "CMA_mirrors": 0,
        # nevergrad answers every stop condition with a silent restart from the initial genome: none may be met.
        "tolflatfitness": math.inf,
        "tolfun": -1,
        "tolfunhist": -1,
        "tolfunrel": -1,
        "tolx": 0,
        "tolxstagnation": False,
        "tolstagnation": math.inf,
        "tolfacupx": math.inf,
        "tolupsigma": math.inf,
        "tolconditioncov": math.inf,
        "maxiter": math.inf,
        # pycma would take options, a stop among them, from a file of this name in the working directory.
        "signals_filename": "",
    }
    return ng.families.ParametrizedCMA(
        scale=1.0, popsize=settings.population, diagonal=settings.diagonal, inopts=options
    )


def _registered(name: str) -> Any:
    """The factory of this name in nevergrad's registry, if it can work by generations."""
    import nevergrad as ng

    registry = ng.optimizers.registry
    if name not in registry:
        close = difflib.get_close_matches(name, [CMA, PUBLISHED_CMA, *registry], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see nevergrad.optimizers.registry for their names"
        raise ConfigError(f"search.optimizer {name!r} is not an optimizer of nevergrad: {hint}")
    factory = registry[name]
    if isinstance(factory, ng.families.ParametrizedCMA):
        raise ConfigError(
            f"search.optimizer {name!r} is a CMA without this project's guards against silent restarts: "
            f"use {CMA} with search.diagonal true or false"
        )
    if any(getattr(factory, trait, False) for trait in ("no_parallelization", "one_shot", "recast")):
        raise ConfigError(
            f"search.optimizer {name!r} cannot learn from one generation at a time (it is sequential or one-shot): "
            f"use {WORKING}, for example"
        )
    return factory

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config import SearchSettings
from orchestrator.errors import ConfigError, SearchError
from orchestrator.search import Search, _build_optimizer, population_hash

SETTINGS = SearchSettings(population=6, sigma=0.1, generations=8)
OTHERS = ["OnePlusOne", "DE", "TwoPointsDE", "TBPSA", "EDA", "ES"]
SIZE = 20


def shifted_sphere(population):
    return ((population.astype(np.float64) - 1.0) ** 2).sum(axis=1)


def evolve(search, generations, losses_of=shifted_sphere):
    """Run the search on; gives the hashes of the populations asked and the losses told."""
    hashes, told = [], []
    for _ in range(generations):
        population = search.ask()
        hashes.append(population_hash(population))
        told.append(losses_of(population))
        search.tell(told[-1])
    return hashes, told


@pytest.mark.parametrize("optimizer", ["CMA", *OTHERS])
def test_replaying_the_losses_reproduces_every_population_bit_for_bit(optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    first = Search(settings, SIZE, seed=3)
    _, told = evolve(first, 5)
    resumed = Search(settings, SIZE, seed=3)
    stored = iter(told)
    evolve(resumed, 5, lambda _: next(stored))
    assert resumed.generation == 5
    np.testing.assert_array_equal(resumed.mean, first.mean)
    assert evolve(resumed, 3)[0] == evolve(first, 3)[0]


@pytest.mark.parametrize("optimizer", ["CMA", *OTHERS])
def test_a_trajectory_depends_on_its_seed_and_not_on_numpys_global_generator(optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    hashes = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        np.random.seed(global_seed)
        hashes.append(evolve(Search(settings, SIZE, seed=seed), 4)[0])
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


@pytest.mark.parametrize("optimizer", ["CMA", *OTHERS])
def test_looking_at_a_search_leaves_its_trajectory_as_it_is(optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)

    def losses_while_looking(population):
        assert watched.mean.dtype == np.float32
        assert watched.ask() is population
        assert watched.sigma is None or watched.sigma > 0
        return shifted_sphere(population)

    watched = Search(settings, SIZE, seed=0)
    assert evolve(watched, 4, losses_while_looking)[0] == evolve(Search(settings, SIZE, seed=0), 4)[0]


@pytest.mark.parametrize("genome_size", [SIZE, 400], ids=["below-300", "where-pycma-would-take-TPA"])
@pytest.mark.parametrize("population", [3, 4, 5, 6, 16])
def test_the_order_in_which_cma_is_told_distinct_losses_does_not_matter(population, genome_size):
    """Guards AdaptSigma and CMA_mirrors: with pycma's own choices small populations and long genomes fail here."""
    settings = dataclasses.replace(SETTINGS, population=population)
    asked = []
    for order in (slice(None), slice(None, None, -1)):
        optimizer = _build_optimizer(settings, genome_size, seed=0)
        for _ in range(6):
            candidates = [optimizer.ask() for _ in range(population)]
            values = np.array([candidate.value for candidate in candidates])
            for candidate, loss in list(zip(candidates, shifted_sphere(values), strict=True))[order]:
                optimizer.tell(candidate, float(loss))
        asked.append(values)
    np.testing.assert_array_equal(*asked)


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
def test_flat_fitness_for_many_generations_does_not_send_cma_back_to_its_start(diagonal):
    """With pycma's stop conditions two generations of equal losses made nevergrad start again from zero."""
    search = Search(dataclasses.replace(SETTINGS, sigma=0.5, diagonal=diagonal), SIZE, seed=0)
    evolve(search, 30)
    reached = np.linalg.norm(search.mean)
    assert reached > 2.0
    evolve(search, 30, lambda population: np.ones(len(population)))
    assert np.linalg.norm(search.mean) > 0.5 * reached


def test_cma_improves_on_a_sphere():
    search = Search(dataclasses.replace(SETTINGS, population=12, sigma=0.3), SIZE, seed=0)
    _, told = evolve(search, 80)
    assert told[-1].min() < 0.02 * told[0].min()


def test_a_restart_of_cma_is_an_error_and_not_a_fresh_start():
    search = Search(SETTINGS, SIZE, seed=0)
    evolve(search, 2)
    search._strategy.opts["maxiter"] = 0
    search.ask()
    with pytest.raises(SearchError, match=r"no further step after generation 2 \(maxiter\)"):
        search.tell(np.arange(6.0))


def test_a_generation_that_cma_swallows_is_an_error(monkeypatch):
    """nevergrad catches what pycma's tell raises and goes on as if nothing had happened."""
    search = Search(SETTINGS, SIZE, seed=0)
    search.ask()

    def broken(solutions, losses):
        raise RuntimeError("an error inside pycma")

    monkeypatch.setattr(search._strategy, "tell", broken)
    with pytest.raises(SearchError, match="CMA ignored the losses of generation 0"):
        search.tell(np.arange(6.0))


def test_a_signals_file_in_the_working_directory_changes_nothing(tmp_path: Path, monkeypatch):
    """pycma reads options, stop conditions among them, from a file called cma_signals.in."""
    expected = evolve(Search(SETTINGS, SIZE, seed=0), 3)[0]
    (tmp_path / "cma_signals.in").write_text("{'maxfevals': 0}")
    monkeypatch.chdir(tmp_path)
    assert evolve(Search(SETTINGS, SIZE, seed=0), 3)[0] == expected


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (np.arange(5.0), r"shape \[5\]: expected one per candidate, \[6\]"),
        (np.arange(7.0), r"shape \[7\]"),
        (np.ones((6, 1)), r"shape \[6, 1\]"),
        (np.array([0, 1, np.nan, 3, 4, 5]), "candidate 2 of generation 0 has the loss nan"),
        (np.array([0, np.inf, 2, 3, 4, 5]), "candidate 1 of generation 0 has the loss inf"),
        (np.array([-np.inf, 1, 2, 3, 4, 5]), "candidate 0 of generation 0 has the loss -inf"),
        (np.array([0, 1, 2, 3, 4, 1e21]), "candidate 5 of generation 0 has the loss 1e"),
    ],
    ids=["one-missing", "one-too-many", "a-column", "nan", "inf", "minus-inf", "would-be-clipped"],
)
def test_losses_that_nevergrad_would_quietly_accept_are_refused(losses, message):
    search = Search(SETTINGS, SIZE, seed=0)
    population = search.ask()
    with pytest.raises(SearchError, match=message):
        search.tell(losses)
    assert search.generation == 0
    assert search.ask() is population


def test_a_generation_is_told_once_and_only_after_it_was_asked():
    search = Search(SETTINGS, SIZE, seed=0)
    with pytest.raises(SearchError, match="told before it was asked"):
        search.tell(np.arange(6.0))
    search.ask()
    search.tell(np.arange(6.0))
    with pytest.raises(SearchError, match="generation 1 was told before it was asked"):
        search.tell(np.arange(6.0))


@pytest.mark.parametrize("optimizer", ["CMA", *OTHERS])
def test_a_search_stands_at_its_initial_genome_before_the_first_generation(optimizer):
    initial = np.linspace(-1, 1, SIZE, dtype=np.float32)
    search = Search(dataclasses.replace(SETTINGS, optimizer=optimizer), SIZE, seed=0, initial=initial)
    np.testing.assert_array_equal(search.mean, initial)


def test_candidates_spread_around_the_initial_genome_by_sigma():
    initial = np.linspace(-100, 100, 1000, dtype=np.float32)
    search = Search(dataclasses.replace(SETTINGS, sigma=0.065), 1000, seed=0, initial=initial)
    population = search.ask()
    assert population.shape == (6, 1000)
    assert population.dtype == np.float32
    assert (population - initial).std() == pytest.approx(0.065, rel=0.05)
    assert search.sigma == pytest.approx(0.065)


def test_the_mean_is_computed_in_float64_and_given_as_float32():
    search = Search(SETTINGS, SIZE, seed=0, initial=np.full(SIZE, 1 / 3))
    evolve(search, 3)
    assert search.mean.dtype == np.float32
    assert search._strategy.mean.dtype == np.float64
    expected = np.full(SIZE, 1 / 3) + SETTINGS.sigma * search._strategy.mean
    np.testing.assert_array_equal(search.mean, expected.astype(np.float32))


def test_an_asked_population_cannot_be_overwritten():
    with pytest.raises(ValueError, match="read-only"):
        Search(SETTINGS, SIZE, seed=0).ask()[0, 0] = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "TBSPA"}, "'TBSPA' is not an optimizer of nevergrad: did you mean TBPSA"),
        ({"optimizer": "qqqqqqqq"}, "see nevergrad.optimizers.registry"),
        ({"optimizer": "DiagonalCMA"}, "use CMA with search.diagonal"),
        ({"optimizer": "NelderMead"}, "sequential or one-shot"),
        ({"optimizer": "HaltonSearch"}, "sequential or one-shot"),
        ({"optimizer": "MultiCMA"}, "budget"),
        ({"optimizer": "BAR4"}, "cannot be built"),
        ({"population": 2}, "at least 3 for CMA: got 2"),
    ],
    ids=["typo", "nonsense", "unguarded-cma", "sequential", "one-shot", "wants-a-budget", "divides-it", "too-few"],
)
def test_an_optimizer_that_cannot_serve_is_refused_with_a_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        Search(dataclasses.replace(SETTINGS, **changes), SIZE, seed=0)


@pytest.mark.parametrize("initial", [np.zeros(SIZE + 1), np.full(SIZE, np.nan)], ids=["of-another-size", "not-finite"])
def test_an_initial_genome_that_does_not_fit_is_refused(initial):
    with pytest.raises(ConfigError, match=r"search\.initial_genome must hold 20 finite numbers"):
        Search(SETTINGS, SIZE, seed=0, initial=initial)


def test_an_optimizer_that_turns_out_to_need_a_budget_says_so():
    with pytest.raises(ConfigError, match="cannot propose generation 0"):
        Search(dataclasses.replace(SETTINGS, optimizer="NGOpt"), SIZE, seed=0).ask()


def test_a_search_that_leaves_float32_says_so():
    search = Search(dataclasses.replace(SETTINGS, sigma=1e300), SIZE, seed=0)
    with pytest.raises(SearchError, match="diverged in generation 0"):
        search.ask()


def test_a_population_hash_is_that_of_its_float32_little_endian_bytes():
    population = np.array([[1.0, -2.5]], dtype=np.float32)
    expected = hashlib.sha256(bytes.fromhex("0000803f000020c0")).hexdigest()
    assert population_hash(population) == expected
    assert population_hash(np.asfortranarray(population)) == expected
    assert population_hash(population[:, ::-1]) != expected


@pytest.mark.slow
def test_benchmark_of_a_generation_at_the_published_size(capsys):
    search = Search(dataclasses.replace(SETTINGS, population=32), 4172, seed=0)
    seconds = {"ask": [], "tell": []}
    for _ in range(20):
        start = time.perf_counter()
        losses = shifted_sphere(search.ask())
        asked = time.perf_counter()
        search.tell(losses)
        seconds["ask"].append(asked - start)
        seconds["tell"].append(time.perf_counter() - asked)
    with capsys.disabled():
        for name, values in seconds.items():
            print(f"\nsearch.{name}, 32 x 4172, diagonal: {1e3 * np.median(values):.1f} ms")

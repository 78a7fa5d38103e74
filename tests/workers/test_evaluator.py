"""The evaluator on the real small Llama: scores are the plain model's, and a function of the unit alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.registry import GeneratedTaskSettings, build_task
from tasks.task import Example, Split
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.language_model import load_language_model
from workers.memory.specs import NammSettings, NammSpec, Normalisation, RivalSpec
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit

ARCHITECTURE = NammSettings(update_every=16, window=8, hop=4, hidden_size=4, heads="ragged")
NAMM = NammSpec(
    settings=ARCHITECTURE,
    normalisation=Normalisation(mean=(0.02,) * ARCHITECTURE.num_bins, variance=(0.001,) * ARCHITECTURE.num_bins),
)
FULL, NO_GENOME = RivalSpec(name="full"), np.zeros((1, 0), np.float32)
GENOMES = np.random.default_rng(0).normal(0, 0.3, (6, ARCHITECTURE.genome_size)).astype(np.float32)
TOKEN_BYTES = 2 * 32 * 4
"""Keys and values of one token in one KV head of the small Llama, float32."""
ROW_ARRAYS = ("exact", "graded", "seen_tokens", "held_tokens", "mean_bytes", "peak_bytes", "state_bytes")


@dataclass(frozen=True)
class MixedLengths:
    """Documents of three lengths by turns, so that the examples of a unit do not fit into one batch."""

    name: str = "mixed"

    def example(self, split: Split, index: int) -> Example:
        length, kind = (60, 75, 90)[index % 3], ("facts_prose", "facts_code")[index % 2]
        return build_task(GeneratedTaskSettings(kind=kind, length=length, num_facts=4, num_questions=3)).example(
            split, index
        )


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(load_language_model(ModelSettings(path_or_id="small-llama")), {"mixed": MixedLengths()})


def unit(examples: Sequence[int] = (0, 1, 2, 3), candidates: Sequence[int] = (0,), memory=NAMM, **changes) -> Unit:
    """A unit on the mixed task; candidates are rows of ``GENOMES``."""
    genomes = GENOMES[list(candidates)] if memory is NAMM else NO_GENOME
    unit = Unit(3, "memory", memory, "mixed", "heldout", tuple(examples), tuple(candidates), genomes)
    return dataclasses.replace(unit, **changes)


def by_identity(*scored: ScoredUnit) -> dict[tuple[int, int], list]:
    """What is said about each (candidate, example), whichever unit says it."""
    rows: dict[tuple[int, int], list] = {}
    for result in scored:
        for row, identity in enumerate(zip(result.candidate.tolist(), result.example.tolist(), strict=True)):
            assert identity not in rows
            rows[identity] = [getattr(result, name)[row] for name in ROW_ARRAYS]
    return rows


def require_same_rows(ours: dict, theirs: dict) -> None:
    """The graded score to 1e-5, everything else exactly."""
    assert ours.keys() == theirs.keys()
    for identity in ours:
        for name, one, other in zip(ROW_ARRAYS, ours[identity], theirs[identity], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 if name == "graded" else 0, err_msg=name)


# Scores --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_score(evaluator: Evaluator, example: Example) -> tuple[float, float]:
    """Exact and graded, by the plain model, question by question, with right answers to the earlier ones."""
    model, tokenizer = evaluator.language_model.model, evaluator.language_model.tokenizer
    text, exact, graded = example.prompt, [], []
    for question in example.questions:
        text += question.text
        logits = model(**tokenizer(text, return_tensors="pt"), use_cache=False).logits[0, -1].double()
        (answer,) = tokenizer(
            question.answer, add_special_tokens=False
        ).input_ids  # the small Llama's answers are words
        exact.append(float(logits.argmax() == answer))
        graded.append(float(logits.softmax(-1)[answer]))
        text += question.answer
    return float(np.mean(exact)), float(np.mean(graded))


@pytest.mark.parametrize("memory", ["full", "zero-genomes"])
def test_with_everything_kept_scores_are_the_plain_models(evaluator, memory):
    examples, candidates = range(6), (0,) if memory == "full" else (4, 5)
    asked = unit(examples, candidates, NAMM if memory != "full" else FULL)
    asked = dataclasses.replace(asked, genomes=np.zeros_like(asked.genomes))
    scored = evaluator.score(asked)
    exact, graded = zip(*(plain_score(evaluator, MixedLengths().example("heldout", i)) for i in examples), strict=True)
    np.testing.assert_allclose(scored.exact, exact * len(candidates), rtol=0, atol=0)
    np.testing.assert_allclose(scored.graded, graded * len(candidates), rtol=0, atol=1e-5)
    assert 0.5 < np.mean(graded) < 1.0


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_do_not_depend_on_how_the_work_is_cut_nor_on_who_shares_the_block(evaluator, data):
    """Any candidates with any others, in any order, on any shards of the examples, scored in any order."""
    units = []
    examples = data.draw(st.permutations(range(5)))
    cut = data.draw(st.integers(0, 4))
    for shard in filter(None, (examples[:cut], examples[cut:])):
        candidates = data.draw(st.permutations(range(4)))
        split = data.draw(st.integers(0, 3))
        units += [unit(shard, block) for block in (candidates[:split], candidates[split:]) if block]
    scored = [evaluator.score(each) for each in data.draw(st.permutations(units))]
    require_same_rows(by_identity(*scored), whole_block(evaluator))


def whole_block(evaluator: Evaluator) -> dict[tuple[int, int], list]:
    return by_identity(evaluator.score(unit(range(5), range(4))))


def test_candidates_and_examples_differ_so_that_the_comparison_above_can_fail(evaluator):
    rows = whole_block(evaluator)
    assert len({float(row[1]) for row in rows.values()}) == len(rows)
    kept = [row[3].mean() / row[2] for row in rows.values()]
    assert min(kept) < 0.3 < 0.6 < max(kept)
    swapped = {(candidate ^ 1, example): row for (candidate, example), row in rows.items()}
    with pytest.raises(AssertionError):
        require_same_rows(swapped, rows)


def test_a_unit_scores_the_same_again_whatever_was_scored_in_between(evaluator):
    first = evaluator.score(unit(candidates=(0, 1)))
    evaluator.score(unit(memory=RivalSpec(name="h2o", update_every=8, budget=((3, 3), (3, 3)))))
    with pytest.raises(ValueError, match="unknown task"):
        evaluator.score(unit(task="nothing"))
    again = evaluator.score(unit(candidates=(0, 1)))
    for name in ROW_ARRAYS:
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


# What a row says -----------------------------------------------------------------------------------------------------


def lengths(evaluator: Evaluator, examples: Sequence[int]) -> list[int]:
    task = MixedLengths()
    return [len(evaluator.prompts.questions(task.example("heldout", index)).ids) for index in examples]


def test_rows_come_candidate_by_candidate_as_plain_arrays(evaluator):
    asked = unit(examples=(7, 2, 3), candidates=(5, 1))
    scored = evaluator.score(asked)
    assert scored.candidate.tolist() == [5, 5, 5, 1, 1, 1]
    assert scored.example.tolist() == [7, 2, 3, 7, 2, 3]
    assert scored.seen_tokens.tolist() == lengths(evaluator, (7, 2, 3)) * 2
    identity = ("key", "generation", "memory_name", "task", "split")
    assert [getattr(scored, name) for name in identity] == [getattr(asked, name) for name in identity]
    kinds = {"exact": "f8", "graded": "f8", "mean_bytes": "f8", "peak_bytes": "i8", "state_bytes": "i8"}
    for name, kind in {**kinds, "candidate": "i4", "example": "i4", "seen_tokens": "i4"}.items():
        array = getattr(scored, name)
        assert (array.shape, array.dtype) == ((6,), np.dtype(kind)), name
    assert (scored.held_tokens.shape, scored.held_tokens.dtype) == ((6, 2, 2), np.dtype("i4"))  # layers, KV heads
    assert scored.seconds > 0


def test_the_full_cache_holds_what_it_has_seen_and_grows_by_a_token_at_a_time(evaluator):
    scored = evaluator.score(unit(memory=FULL))
    seen = scored.seen_tokens
    assert scored.held_tokens.tolist() == [[[n, n], [n, n]] for n in seen.tolist()]
    assert scored.peak_bytes.tolist() == (4 * seen * TOKEN_BYTES).tolist()
    assert scored.mean_bytes.tolist() == (4 * (seen + 1) / 2 * TOKEN_BYTES).tolist()
    assert scored.state_bytes.tolist() == (4 * seen * 4).tolist()  # an int32 position for each token


def test_an_evicting_memory_holds_its_budget_and_what_came_after_the_last_update(evaluator):
    """Whole by layer and KV head: the numbers must not be mixed up among them."""
    budget = np.array([[3, 17], [9, 5]])
    scored = evaluator.score(unit(memory=RivalSpec(name="recent", update_every=16, budget=tuple(map(tuple, budget)))))
    since = scored.seen_tokens % 16
    assert scored.held_tokens.tolist() == (budget + since[:, None, None]).tolist()
    held_bytes = scored.held_tokens.sum((1, 2)) * TOKEN_BYTES
    assert (held_bytes <= scored.peak_bytes).all()
    assert (scored.mean_bytes < scored.peak_bytes).all()
    assert (scored.peak_bytes < 4 * scored.seen_tokens * TOKEN_BYTES).all()


def test_truncation_reads_as_many_tokens_as_an_evicting_memory_would_hold(evaluator):
    seen = np.array(lengths(evaluator, range(4)))
    scored = evaluator.score(unit(memory=RivalSpec(name="truncation", update_every=16, budget=((40, 40), (40, 40)))))
    assert scored.seen_tokens.tolist() == (40 + seen % 16).tolist()
    assert scored.held_tokens.tolist() == [[[n, n], [n, n]] for n in scored.seen_tokens.tolist()]


def test_statistics_come_only_when_asked_for_and_change_no_score(evaluator):
    plain = evaluator.score(unit(memory=FULL))
    asked = evaluator.score(unit(record_statistics=True, genomes=NO_GENOME))
    assert plain.statistics is evaluator.score(unit()).statistics is None
    assert asked.statistics.count == 4 * sum(sum(range(16, n + 1, 16)) for n in asked.seen_tokens)  # layers, KV heads
    assert asked.statistics.mean.shape == asked.statistics.variance.shape == (ARCHITECTURE.num_bins,)
    assert (asked.statistics.mean > 0).all()  # of magnitudes
    assert (asked.statistics.variance > 0).all()
    np.testing.assert_allclose(asked.graded, plain.graded, rtol=0, atol=1e-5)
    assert asked.held_tokens.tolist() == plain.held_tokens.tolist()


def test_statistics_of_the_whole_do_not_depend_on_the_cut_into_units(evaluator):
    whole = evaluator.score(unit(range(4), record_statistics=True)).statistics
    parts = [evaluator.score(unit((i,), record_statistics=True)).statistics for i in range(4)]
    counts = np.array([part.count for part in parts])
    assert counts.sum() == whole.count
    np.testing.assert_allclose(np.average([p.mean for p in parts], axis=0, weights=counts), whole.mean, rtol=1e-6)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "qasper"}, "unknown task 'qasper': this worker has mixed"),
        (
            {"genomes": GENOMES[:1, :-1]},
            r"the genome has \d+ numbers, but this memory needs \d+ .*: use the settings .*",
        ),
        ({"genomes": NO_GENOME}, "the genome has 0 numbers, but this memory needs .*"),
        ({"genomes": GENOMES[:2]}, r"the unit .* has 1 candidates, but 2 genomes: .*"),
        ({"memory": FULL, "record_statistics": True}, "statistics are gathered for an evolved memory, not for 'full'"),
    ],
    ids=["unknown-task", "genome-too-short", "no-genome", "too-many-genomes", "statistics-of-a-rival"],
)
def test_a_unit_that_cannot_be_scored_is_refused_in_one_line(evaluator, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        evaluator.score(unit(**changes))


def test_an_example_too_long_for_the_model_is_named(evaluator):
    tasks = {"mixed": build_task(GeneratedTaskSettings(kind="facts_prose", length=4090))}
    with pytest.raises(
        ValueError, match=r"^example 0 of .* has \d+ tokens, and needs \d+ more .* room for 4096: set .*$"
    ):
        Evaluator(evaluator.language_model, tasks).score(unit(examples=(0,)))


def test_a_recipe_builds_an_evaluator_of_its_tasks_on_its_number_of_threads():
    threads = torch.get_num_threads()
    tasks = tuple(GeneratedTaskSettings(kind=kind, length=64, num_facts=4) for kind in ("facts_prose", "facts_code"))
    try:
        evaluator = EvaluatorRecipe(model=ModelSettings(path_or_id="small-llama"), tasks=tasks, num_threads=2).build()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(evaluator.tasks) == {"facts_prose-64", "facts_code-64"}
    assert evaluator.score(unit(task="facts_code-64")).task == "facts_code-64"


# No room -------------------------------------------------------------------------------------------------------------


class SmallAccelerator(Evaluator):
    """Has room for so many rows at once."""

    def __init__(self, evaluator: Evaluator, room: int) -> None:
        super().__init__(evaluator.language_model, evaluator.tasks)
        self.room, self.sizes = room, []

    def _score(self, unit: Unit) -> ScoredUnit:
        self.sizes.append(len(unit.candidates) * len(unit.examples))
        if self.sizes[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._score(unit)


@pytest.mark.parametrize("room", [1, 3, 4, 7])
def test_a_unit_without_room_is_scored_in_pieces_with_the_same_rows(evaluator, room, caplog):
    whole = unit(candidates=(0, 1, 2))
    small = SmallAccelerator(evaluator, room)
    result = small.score(whole)
    assert result.key == whole.key
    require_same_rows(by_identity(result), by_identity(evaluator.score(whole)))
    assert result.candidate.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert "no room for 12 rows at once; trying 6" in caplog.text


def test_the_size_that_fits_is_remembered_and_can_be_handed_on(evaluator):
    small = SmallAccelerator(evaluator, 4)
    small.score(unit(candidates=(0, 1)))
    assert small.limits == {"mixed": 4}
    small.sizes.clear()
    small.score(unit(candidates=(2, 3)))
    assert small.sizes == [4, 4]
    new = SmallAccelerator(evaluator, 4)
    new.limits.update(small.limits)
    new.score(unit(candidates=(2, 3)))
    assert new.sizes == [4, 4]


def test_one_row_without_room_is_an_error(evaluator):
    with pytest.raises(torch.OutOfMemoryError, match="a single example under a single candidate: use shorter examples"):
        SmallAccelerator(evaluator, 0).score(unit())


def test_statistics_are_gathered_of_a_whole_unit_or_not_at_all(evaluator):
    gathering = unit(record_statistics=True)
    with pytest.raises(torch.OutOfMemoryError, match=r"lower units\.examples_per_unit"):
        SmallAccelerator(evaluator, 3).score(gathering)

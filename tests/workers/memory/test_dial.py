"""The dial: a threshold found by measuring, as near as its steps allow; refusals say what is missing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.memory.test_pretrained import example_memory
from tests.workers.memory.tiny import drive, random_genomes, random_ids, tiny_model, tiny_namm, tiny_settings
from workers.memory.build import build_memory
from workers.memory.dial import TOLERANCE, find_threshold
from workers.memory.errors import DialError, MemoryFileError
from workers.memory.namm import Namm
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSpec, for_candidates


def wide_memory(**changes) -> PretrainedMemory:
    """Without a cap."""
    settings = tiny_settings(heads="ragged", **changes)
    return PretrainedMemory(
        NammSpec(settings=settings), random_genomes(settings, 1)[0].numpy(), {"table": [1], "run": 1}
    )


def prompts(count: int = 3, tokens: int = 60) -> list[torch.Tensor]:
    return [random_ids(1, tokens + number, seed=number)[0] for number in range(count)]


def held_share(memory, ids) -> float:
    _, cache = drive(tiny_model(), memory.build(), ids)
    return float(cache.held_tokens().double().mean() / ids.shape[1])


# Bisection -----------------------------------------------------------------------------------------------------------


@given(
    importances=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300),
    wanted=st.floats(0.01, 1.0),
)
def test_no_threshold_keeps_a_share_nearer_to_the_one_wanted(importances, wanted):
    """A memory without history: what is kept is just the share of importances at or above the threshold."""
    values = np.array(importances, np.float32)

    def kept_at(threshold: float) -> float:
        return float((values >= np.float32(threshold)).mean())

    possible = {kept_at(threshold) for threshold in [*values.tolist(), 200.0]}
    found = find_threshold(kept_at, wanted)
    assert found.kept == kept_at(found.threshold)
    assert found == find_threshold(kept_at, wanted)
    assert abs(found.kept - wanted) <= max(
        min(abs(share - wanted) for share in possible), TOLERANCE * max(wanted, found.kept)
    )


def test_the_published_threshold_is_left_alone_when_it_keeps_what_is_wanted():
    assert find_threshold(lambda threshold: 0.25 - threshold, 0.25).threshold == 0.0


@pytest.mark.parametrize(("wanted", "told"), [(0.05, "least is 0.1"), (0.95, "most is 0.9")])
def test_what_no_threshold_keeps_is_said(wanted, told):
    with pytest.raises(DialError, match=rf"no threshold keeps .*{told}.*: ask for"):
        find_threshold(lambda threshold: 0.1 if threshold > 0 else 0.9, wanted)


# A memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["ragged", "even"])
@pytest.mark.parametrize("wanted", [0.25, 0.5, 0.8, 1.0])
def test_the_dial_keeps_what_it_is_turned_to(wanted, heads):
    texts = [random_ids(2, 59, seed=1)]
    settings = tiny_settings(heads=heads)
    memory = PretrainedMemory(NammSpec(settings=settings), random_genomes(settings, 1)[0].numpy())
    turned = memory.at(kept_ratio=wanted, model=tiny_model(), prompts=texts)
    reached = held_share(turned, texts[0])
    assert reached == pytest.approx(turned.origin["dial"]["reached"])
    assert reached == pytest.approx(wanted, abs=0.03)  # sixty tokens in four heads: no finer steps
    again = memory.at(kept_ratio=wanted, model=tiny_model(), prompts=texts)
    assert again.spec == turned.spec


def test_prompts_of_several_lengths_and_kinds_count_by_row():
    model, memory, rows = tiny_model(), wide_memory(), random_ids(2, 60)
    one_by_one = memory.at(kept_ratio=0.4, model=model, prompts=[row.tolist() for row in rows])
    assert memory.at(kept_ratio=0.4, model=model, prompts=[rows]).spec == one_by_one.spec
    mixed = memory.at(kept_ratio=0.4, model=model, prompts=[rows, *prompts()])
    shares = [held_share(mixed, text) for text in (rows[:1], rows[1:], *(prompt[None] for prompt in prompts()))]
    assert mixed.origin["dial"]["reached"] == pytest.approx(sum(shares) / len(shares))


def test_bytes_per_token_turn_the_same_dial():
    model, memory = tiny_model(), wide_memory()
    full = 2 * 2 * (8 + 8) * 4  # layers, KV heads, keys and values of 8 float32 numbers
    by_bytes = memory.at(bytes_per_token=0.5 * full, model=model, prompts=prompts())
    by_share = memory.at(kept_ratio=0.5, model=model, prompts=prompts())
    assert by_bytes.spec == by_share.spec
    assert by_bytes.origin["dial"]["bytes_per_token"] == 128.0


def test_scores_of_the_former_setting_are_not_handed_on():
    turned = wide_memory().at(kept_ratio=0.5, model=tiny_model(), prompts=prompts())
    assert set(turned.origin) == {"run", "dial"}


def test_a_cap_needs_no_model_and_goes_with_the_dial():
    capped = wide_memory().at(cap=5)
    assert (capped.spec.settings.cap, capped.spec.threshold) == (5, 0.0)
    both = wide_memory().at(cap=12, kept_ratio=0.2, model=tiny_model(), prompts=prompts())
    assert both.spec.settings.cap == 12
    assert both.origin["dial"]["reached"] == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({}, "nothing to turn the dial to"),
        ({"kept_ratio": 0.5, "bytes_per_token": 9.0}, "give one of them"),
        ({"kept_ratio": 1.5}, "at most 1: got 1.5"),
        ({"bytes_per_token": -1.0}, "above 0: got -1.0"),
        ({"kept_ratio": 0.5}, "give model=… and prompts="),
        ({"kept_ratio": 0.5, "model": tiny_model()}, "give model=… and prompts="),
        ({"kept_ratio": 0.5, "model": tiny_model(), "prompts": [[3, 4, 5]]}, "has 3 tokens, .* before it has read 8"),
        ({"kept_ratio": 0.001, "model": tiny_model(), "prompts": prompts()}, "no threshold keeps 0.001: least is"),
    ],
)
def test_bad_wishes_are_one_line(wish, told):
    with pytest.raises(DialError, match=told) as caught:
        wide_memory().at(**wish)
    assert "\n" not in str(caught.value)


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    wide_memory().at(kept_ratio=0.5, model=model, prompts=prompts())
    assert model.config._attn_implementation == "eager"


# Saved ---------------------------------------------------------------------------------------------------------------


def test_a_turned_memory_is_saved_as_version_2_and_comes_back(tmp_path):
    turned = wide_memory().at(kept_ratio=0.5, model=tiny_model(), prompts=prompts())
    turned.save_pretrained(tmp_path)
    assert '"version": 2' in (tmp_path / "config.json").read_text()
    assert PretrainedMemory.from_pretrained(tmp_path).spec == turned.spec


def test_a_memory_as_evolved_is_saved_as_ever(tmp_path):
    """Older programs read version 1, and know no dial."""
    example_memory().save_pretrained(tmp_path)
    assert '"version": 1' in (tmp_path / "config.json").read_text()
    assert "threshold" not in (tmp_path / "config.json").read_text()


def test_a_saved_memory_has_one_threshold():
    memory = example_memory()
    spec = NammSpec(settings=memory.spec.settings, threshold=(0.0,))
    with pytest.raises(MemoryFileError, match="one threshold"):
        PretrainedMemory(spec, memory.genome)


# Blocks of genomes ---------------------------------------------------------------------------------------------------


def test_each_genome_of_a_block_may_have_a_threshold_of_its_own():
    settings, ids, thresholds = tiny_settings(heads="ragged"), random_ids(2, 50), (-0.5, 0.0, 0.4)
    genomes = random_genomes(settings, 3)
    _, block = drive(tiny_model(), Namm(settings, genomes, None, thresholds), ids.repeat(3, 1))
    for number, threshold in enumerate(thresholds):
        spec = NammSpec(settings=settings, threshold=threshold)
        alone = build_memory(spec, genomes[number : number + 1].numpy())
        _, cache = drive(tiny_model(), alone, ids)
        assert torch.equal(cache.held_tokens(), block.held_tokens()[2 * number : 2 * number + 2])
    with pytest.raises(ValueError, match="2 thresholds for 3 genomes"):
        Namm(settings, genomes, None, (0.0, 1.0))


def test_a_threshold_goes_with_the_memory_to_other_genomes():
    settings = tiny_settings()
    memory = Namm(settings, random_genomes(settings, 1), None, 0.7)
    assert memory.with_genome(random_genomes(settings, 2)).threshold == 0.7
    assert tiny_namm(settings).threshold == 0.0


def test_a_block_that_is_cut_takes_its_thresholds_along():
    spec = NammSpec(settings=tiny_settings(), threshold=(1.0, 2.0, 3.0))
    assert for_candidates(spec, slice(1, 3)) == NammSpec(settings=tiny_settings(), threshold=(2.0, 3.0))
    one = NammSpec(settings=tiny_settings(), threshold=1.0)
    assert for_candidates(one, slice(1, 3)) is one


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), (0.0, float("-inf"))])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    with pytest.raises(ValueError, match="finite"):
        NammSpec(settings=tiny_settings(), threshold=threshold)


@pytest.mark.parametrize("cap", [0, -1, 1.5, float("nan"), 2**31, "9"])
def test_a_cap_that_is_no_number_of_tokens_is_refused(cap):
    with pytest.raises(DialError, match=rf"^cap must be a whole number of tokens, at least 1: got {cap}$"):
        wide_memory().at(cap=cap)


def test_a_cap_of_another_library_can_be_saved(tmp_path):
    memory = example_memory().at(cap=np.int64(5))
    memory.save_pretrained(tmp_path)
    assert PretrainedMemory.from_pretrained(tmp_path).spec.settings.cap == 5


@pytest.mark.parametrize(
    "wrong",
    [[], "a text", [1.5, 2.0], [[1, 2], [3]], 7, None, torch.zeros(1, 1, 9, dtype=torch.int64)],
    ids=["empty", "text", "fractions", "rows-of-unequal-length", "an-id", "nothing", "3-d"],
)
def test_a_prompt_that_is_no_token_ids_is_named(wrong):
    with pytest.raises(DialError, match=r"^prompts\[1\] must be the token ids of a text, .*: got .*; give prompts="):
        wide_memory().at(kept_ratio=0.3, model=tiny_model(), prompts=[prompts()[0], wrong])
    with pytest.raises(DialError, match=r"^prompts\[0\] must be the token ids of a text, .*: got 5; give prompts="):
        wide_memory().at(kept_ratio=0.3, model=tiny_model(), prompts=[5, 6, 7])

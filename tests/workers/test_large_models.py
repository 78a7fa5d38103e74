"""A model that lies on several devices, or partly on the disk, or in fewer bits: what a memory does stays the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from namm import Memory
from tasks.registry import GeneratedTaskSettings, build_task
from tests.workers.memory.test_architectures import evicting
from tests.workers.memory.tiny import drive, held_positions, random_ids
from tests.workers.memory.zoo import ARCHITECTURES, zoo_model
from workers.errors import ModelError
from workers.evaluator import Evaluator
from workers.language_model import LanguageModel, load_language_model
from workers.memory.specs import NammSettings, NammSpec, Normalisation
from workers.memory.support import input_device
from workers.placement import require_no_offload
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit

TASK = GeneratedTaskSettings(kind="facts_prose", length=512)
HALF = {"cpu": "1MiB"}
"""Room for the small Llama's embeddings and its first layer."""


def with_accelerators(count: int) -> list[pytest.MarkDecorator]:
    """Marks of a test that needs so many."""
    found = torch.cuda.device_count()
    return [pytest.mark.gpu, pytest.mark.skipif(found < count, reason=f"{count} accelerators needed, {found} found")]


def load(**changes: object) -> LanguageModel:
    return load_language_model(ModelSettings(**{"path_or_id": "small-llama", **changes}))


@cache
def plain() -> LanguageModel:
    return load()


def spec(heads: str = "ragged") -> NammSpec:
    settings = NammSettings(update_every=64, window=32, hop=16, hidden_size=16, heads=heads)
    statistics = Normalisation(mean=(0.02,) * settings.num_bins, variance=(0.001,) * settings.num_bins)
    return NammSpec(settings=settings, normalisation=statistics)


def genomes(count: int) -> np.ndarray:
    """They keep some tokens and drop some."""
    size = spec().settings.genome_size
    return np.random.default_rng(0).normal(0, 0.3, (count, size)).astype(np.float32)


def scored(language_model: LanguageModel, *, heads: str = "ragged", record_statistics: bool = False) -> ScoredUnit:
    candidates = (0,) if record_statistics else (0, 1, 2)
    unit = Unit(
        0, "namm", spec(heads), TASK.name, "train", (0, 1), candidates, genomes(len(candidates)),
        record_statistics=record_statistics,
    )  # fmt: skip
    return Evaluator(language_model, {TASK.name: build_task(TASK)}).score(unit)


def prompt(language_model: LanguageModel) -> torch.Tensor:
    text = build_task(TASK).example("train", 0).prompt
    return torch.tensor([language_model.prompt_ids(text)], device=language_model.input_device)


def require_same_scores(ours: ScoredUnit, theirs: ScoredUnit) -> None:
    assert (theirs.held_tokens < theirs.seen_tokens[:, None, None]).any()
    for name in ("exact", "graded", "held_tokens", "seen_tokens", "mean_bytes", "peak_bytes", "state_bytes"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


# Over several places -------------------------------------------------------------------------------------------------


def dispatched(places: dict[str, int | str], folder: Path) -> LanguageModel:
    """The small Llama, laid out by hand as an application engineer would."""
    from accelerate import dispatch_model

    names = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    # Without an accelerator what lies on the CPU is computed there; weights on the disk are read for each call.
    device_map = {name: places.get(name, "cpu") for name in names}
    model = dispatch_model(copy.deepcopy(plain().model), device_map, main_device="cpu", offload_dir=str(folder))
    return LanguageModel(model, plain().tokenizer)


SPLITS: dict[str, Callable[[Path], LanguageModel]] = {
    "second-layer-on-disk-by-settings": lambda _: load(device="auto", max_memory=HALF),
    "all-on-disk-by-settings": lambda _: load(device="balanced", max_memory={"cpu": "1KB"}),
    "first-layer-on-disk-by-hand": lambda folder: dispatched({"model.layers.0": "disk"}, folder),
    "embeddings-on-disk-by-hand": lambda folder: dispatched({"model.embed_tokens": "disk", "lm_head": "disk"}, folder),
}


@pytest.fixture(params=SPLITS)
def split(request, tmp_path) -> LanguageModel:
    """The small Llama, of which some weights are on the disk."""
    language_model = SPLITS[request.param](tmp_path / "offload")
    assert "disk" in language_model.model.hf_device_map.values()
    assert any(parameter.is_meta for parameter in language_model.model.parameters())
    return language_model


@pytest.mark.parametrize("heads", ["ragged", "even"])
def test_scores_under_an_evicting_memory_are_those_of_the_plain_model(split, heads):
    require_same_scores(scored(split, heads=heads), scored(plain(), heads=heads))


def test_feature_statistics_are_those_of_the_plain_model(split):
    ours, theirs = (scored(one, record_statistics=True).statistics for one in (split, plain()))
    assert ours.count == theirs.count > 0
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.variance, theirs.variance)


def test_the_three_lines_give_the_text_and_the_bytes_of_the_plain_model(split):
    memory = Memory(spec(), genomes(1)[0])
    seen = []
    for language_model in (plain(), split):
        cache = memory.cache(language_model.model)
        ids = language_model.model.generate(prompt(language_model), past_key_values=cache, max_new_tokens=8)
        held_bytes = cache.cache_bytes - cache.spare_bytes
        seen.append((ids.tolist(), cache.held_tokens().tolist(), held_bytes, cache.peak_bytes))
    assert seen[0] == seen[1]
    assert seen[0][2] < seen[0][3]


def test_the_dial_turns_as_on_the_plain_model(split):
    memory = Memory(spec(), genomes(1)[0])
    at = [memory.at(kept_ratio=0.4, model=m.model, prompts=prompt(m)[None]) for m in (plain(), split)]
    assert at[0].spec == at[1].spec


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_evicts_alike_when_its_weights_are_offloaded(name, tmp_path):
    """Hooks of accelerate stand between the layers then, and copy what they pass."""
    from accelerate import disk_offload

    model, ids = zoo_model(name), random_ids(2, 45)
    logits, whole = drive(model, evicting(model, "namm-ragged"), ids, (5, 6, 30))
    disk_offload(model, tmp_path, offload_buffers=True)
    assert input_device(model) == torch.device("cpu")
    ours, split_cache = drive(model, evicting(model, "namm-ragged"), ids, (5, 6, 30))
    assert torch.equal(ours, logits)
    assert held_positions(split_cache) == held_positions(whole)


def test_auto_on_a_machine_without_accelerators_is_the_plain_model():
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    require_same_scores(scored(load(device="auto")), scored(plain()))


def require_alike(ours: ScoredUnit, theirs: ScoredUnit) -> None:
    """Between kinds of device rounding may tip a decision here and there, which costs or spares a token."""
    np.testing.assert_allclose(ours.graded, theirs.graded, atol=1e-3)
    assert np.abs(ours.held_tokens.astype(int) - theirs.held_tokens).mean() < 0.5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("cpu", "cuda:0", marks=with_accelerators(1), id="cpu-and-accelerator"),
        pytest.param("cuda:0", "cpu", marks=with_accelerators(1), id="accelerator-and-cpu"),
        pytest.param("cuda:0", "cuda:1", marks=with_accelerators(2), id="two-accelerators"),
    ],
)
def test_caches_and_states_live_on_the_device_of_their_layer(first, second, tmp_path):
    places = {"model.embed_tokens": first, "model.layers.0": first, "model.layers.1": second, "lm_head": second}
    language_model = dispatched({**places, "model.norm": second, "model.rotary_emb": first}, tmp_path)
    memory, ids = Memory(spec(), genomes(1)[0]), prompt(language_model)
    with memory.attached(language_model.model) as layers, torch.no_grad():
        language_model.model(ids.repeat(2, 1), attention_mask=left_padded(ids), past_key_values=layers)
    homes = [
        {str(part.device) for held in layer.cohorts.values() for part in (held.keys, held.values, held.trace)}
        for layer in layers.layers
    ]
    assert homes == [{first}, {second}]
    require_alike(scored(language_model), scored(plain()))
    ours, theirs = (scored(one, record_statistics=True).statistics for one in (language_model, plain()))
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-3)


def left_padded(ids: torch.Tensor) -> torch.Tensor:
    """The mask of two rows, of which the second begins three tokens later."""
    mask = torch.ones(2, ids.shape[1], dtype=torch.long, device=ids.device)
    mask[1, :3] = 0
    return mask


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two accelerators")
def test_auto_spreads_the_layers_over_two_accelerators():
    language_model = load(device="auto")
    assert {str(place) for place in language_model.model.hf_device_map.values()} == {"0", "1"}
    require_alike(scored(language_model), scored(load(device="cuda:0")))


# What can go wrong ---------------------------------------------------------------------------------------------------


class Placed:
    """All that is asked of a model that was placed."""

    def __init__(self, **places: int | str) -> None:
        self.hf_device_map = places


@pytest.mark.parametrize(
    ("places", "fits"),
    [
        ({"a": 0, "b": 1}, True),
        ({"a": "cpu", "b": "cpu"}, True),
        ({"a": 0, "b": "cpu"}, False),
        ({"a": "cuda:0", "b": "disk"}, False),
        ({"a": "cpu", "b": "disk"}, False),
    ],
    ids=str,
)
def test_a_model_without_room_is_refused_unless_offloading_was_asked_for(places, fits):
    model, asked_for = Placed(**places), ModelSettings(path_or_id="big", device="auto", max_memory={"cpu": "9GiB"})
    require_no_offload(model, asked_for)
    if fits:
        require_no_offload(model, ModelSettings(path_or_id="big", device="auto"))
        return
    message = r"^model\.device: there is no room for 'big' .*: 1 of its 2 parts, 'b' the first .*model\.quantization"
    with pytest.raises(ModelError, match=message):
        require_no_offload(model, ModelSettings(path_or_id="big", device="auto"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "int2"}, "model.quantization must be int8, int4 or null: got 'int2'"),
        ({"max_memory": {"cpu": "9GiB"}}, "model.max_memory needs model.device auto"),
        ({"device": "auto", "max_memory": {}}, "model.max_memory must name devices"),
        ({"device": "auto", "max_memory": {"gpu": "9GiB"}}, "got gpu: '9GiB'"),
        ({"device": "auto", "max_memory": {"0": "lots"}}, "got 0: 'lots'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelSettings(path_or_id="small-llama", **changes)


@pytest.mark.parametrize(
    ("changes", "missing", "extra"),
    [
        ({"device": "auto"}, "accelerate", "large"),
        ({"quantization": "int8"}, "bitsandbytes", "quantized"),
        ({"quantization": "int4"}, "accelerate", "large"),
    ],
    ids=str,
)
def test_a_missing_library_is_named_with_its_extra(changes, missing, extra, monkeypatch):
    monkeypatch.setattr("workers.placement.find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(ModelError, match=rf"needs {missing}, .*: pip install 'namm-orchestrator\[{extra}\]'$"):
        load(**changes)


# Fewer bits ----------------------------------------------------------------------------------------------------------


@cache
def quantized(quantization: str) -> LanguageModel:
    return load(quantization=quantization)


def linear_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights of the layers' linear maps."""
    return sum(p.nbytes for name, p in model.model.layers.named_parameters() if "proj.weight" in name)


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_the_weights_of_linear_layers_take_so_many_bits_and_the_cache_is_as_before(quantization, bits):
    ours = quantized(quantization)
    assert linear_bytes(ours.model) * 32 == linear_bytes(plain().model) * bits
    assert not ours.model.training
    assert not any(parameter.requires_grad for parameter in ours.model.parameters())
    memory, seen = Memory(spec(), genomes(1)[0]), prompt(ours)
    with torch.no_grad(), memory.attached(ours.model) as cache:
        ours.model(seen, past_key_values=cache)
    assert {layer.held.keys.dtype for layer in cache.layers} == {torch.float32}


@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.01), ("int4", 0.2)])
def test_scores_are_close_to_those_of_the_plain_model(quantization, tolerance):
    ours, theirs = scored(quantized(quantization)), scored(plain())
    assert np.abs(ours.graded - theirs.graded).mean() < tolerance


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_row_depends_neither_on_its_batch_mates_nor_on_chunks(quantization):
    """With the usual threshold of 6 the outliers of the whole batch would be computed apart."""
    model, ids = quantized(quantization).model, prompt(plain())[:, :160]
    other = ids.flip(1)
    with torch.no_grad():
        assert torch.equal(model(torch.cat([ids, other])).logits[:1], model(ids).logits)
        assert torch.equal(model(ids).logits[:, :40], model(ids[:, :40]).logits)


def test_a_model_that_is_quantized_already_is_named(tmp_path):
    quantized("int8").model.save_pretrained(tmp_path)
    plain().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^model\.quantization: .* is quantized already: remove the setting$"):
        load(path_or_id=str(tmp_path), quantization="int8")


# Rotary positions in few bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [None, 8.0], ids=["plain", "ntk"])
@pytest.mark.parametrize("device", ["cpu", "auto", pytest.param("cuda", marks=with_accelerators(1))])
def test_rotary_positions_are_computed_in_float32_whatever_the_weights_are(factor, device):
    """At position 32,000 frequencies rounded to bfloat16 would be off by whole turns."""
    positions = torch.tensor([[0, 1, 4_095, 31_999, 32_767]])
    precise = load(rope_ntk_factor=factor).model.model.rotary_emb
    rounded = load(rope_ntk_factor=factor, dtype="bfloat16", device=device).model.model.rotary_emb
    assert rounded.inv_freq.dtype == torch.float32
    anything = torch.zeros(1)
    expected, found = (
        torch.stack(rotary(anything.to(rotary.inv_freq.device), positions.to(rotary.inv_freq.device)))
        for rotary in (precise, rounded)
    )
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)

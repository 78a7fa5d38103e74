"""The Triton kernels compute what the portable path computes: on the device where one is, else in Triton's interpreter.

The interpreter (``conftest.py``) knows no rounding of products, so bounds on the device are looser.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.workers.memory.test_replay import Counted, decoded, require_equal
from tests.workers.memory.tiny import drive, held_positions, largest_difference, random_ids, rival
from workers.memory import ahead, features, token_attention
from workers.memory.attention import memory_attached
from workers.memory.features import SpectralSums
from workers.memory.heuristics import HEURISTICS
from workers.memory.memory import LayerView
from workers.memory.namm import Namm
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, at_rest, packed
from workers.memory.padding import Cohort
from workers.memory.recording import cuda_graph
from workers.memory.scorer import importances
from workers.memory.selection import select_wanted
from workers.memory.slots import Aligned, Slots
from workers.memory.specs import NammSettings, Normalisation
from workers.memory.tiled_attention import attend

HAS_DEVICE = torch.cuda.is_available()
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from workers.memory import fused_attention, fused_scorer, fused_selection, fused_token  # noqa: E402

DEVICE = torch.device("cuda" if HAS_DEVICE else "cpu")
pytestmark = [pytest.mark.gpu] if HAS_DEVICE else []
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if HAS_DEVICE else [torch.float32]
SETTINGS = NammSettings(update_every=64)
CASES = {
    "first-block": {"rows": 1, "heads": 2, "group": 2, "held": 0, "new": 64, "size": 16},
    "after-an-eviction": {"rows": 2, "heads": 2, "group": 4, "held": 45, "new": 48, "size": 32},
    "one-head-a-group": {"rows": 1, "heads": 3, "group": 1, "held": 130, "new": 144, "size": 16},
    "three-heads-a-group": {"rows": 1, "heads": 2, "group": 3, "held": 40, "new": 80, "size": 16},
    "six-heads-a-group": {"rows": 1, "heads": 1, "group": 6, "held": 20, "new": 32, "size": 16},
    "ragged": {"rows": 2, "heads": 2, "group": 2, "held": 70, "new": 32, "size": 16, "ragged": True},
    "wide-heads": {"rows": 1, "heads": 2, "group": 2, "held": 150, "new": 16, "size": 256, "ragged": True},
    "very-ragged": {"rows": 2, "heads": 2, "group": 2, "held": 300, "new": 160, "size": 16, "ragged": True},
}


def some_slots(rows, heads, held, new, size, dtype, ragged=False, **_):
    """Slots with traces, evicted from where ``ragged``, then with the tokens of a block, which have no traces yet."""
    generator = torch.Generator().manual_seed(held + new)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    channels = SETTINGS.num_bins + SETTINGS.hop
    slots = Slots.nothing(normal(rows, heads, 0, size), normal(rows, heads, 0, size), channels)
    if held:
        slots = slots.append(normal(rows, heads, held, size), normal(rows, heads, held, size), 0)
        slots = slots.with_trace(torch.rand(rows, heads, held, channels, generator=generator).to(DEVICE))
        if ragged:
            keep = torch.rand(rows, heads, held, generator=generator) < torch.rand(rows, heads, 1, generator=generator)
            keep[..., -1] = True
            slots = slots.select(keep.to(DEVICE))
    return slots.append(normal(rows, heads, new, size), normal(rows, heads, new, size), held)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """By norm, relative."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("many_programs", [0, 10_000], ids=["many-programs", "few"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_spectrum(case, many_programs, dtype, monkeypatch):
    monkeypatch.setattr(fused_attention, "MANY_PROGRAMS", many_programs)
    shape = CASES[case]
    slots = some_slots(dtype=dtype, **shape)
    options = AttentionOptions(scaling=1.3 * shape["size"] ** -0.5)
    generator = torch.Generator().manual_seed(1)
    query_heads = shape["heads"] * shape["group"]
    query = torch.randn(shape["rows"], query_heads, shape["new"], shape["size"], generator=generator)
    query = query.to(DEVICE, dtype)
    assert fused_attention.can_serve(query, slots, options, SETTINGS)
    output, trace = fused_attention.attend_and_observe(query, slots, options, SETTINGS)
    exact = Slots(slots.keys.float(), slots.values.float(), slots.positions, slots.full_trace(), slots.empty)
    sums = SpectralSums(exact.trace, shape["new"], SETTINGS)
    expected = attend(query.float(), exact, shape["held"], options, sums)
    vacant = (slots.positions < 0)[..., None]
    limit = 1e-2 if dtype != torch.float32 else 1e-4 if HAS_DEVICE else 1e-5
    assert apart(output, expected) < limit
    assert apart(trace.masked_fill(vacant, 0), sums.trace.masked_fill(vacant, 0)) < limit


@torch.no_grad()
@pytest.mark.parametrize("num_queries", [16, 48])
@pytest.mark.parametrize("is_by_channel", [False, True])
def test_attention_that_is_given_is_observed(num_queries, is_by_channel):
    generator = torch.Generator().manual_seed(4)
    trace = torch.rand(2, 3, 150, SETTINGS.num_bins + SETTINGS.hop, generator=generator).to(DEVICE)
    attention = torch.rand(2, 3, num_queries, 170, generator=generator).to(DEVICE)[..., :150]
    trace = trace.transpose(2, 3).contiguous().transpose(2, 3) if is_by_channel else trace
    sums = SpectralSums(trace, num_queries, SETTINGS)
    sums.room(slice(0, 6), slice(0, num_queries), slice(0, 150)).copy_(attention.flatten(0, 1))
    sums.take_in()
    assert fused_attention.can_observe(trace, attention, SETTINGS)
    assert not fused_attention.can_observe(trace, attention[:, :, 1:], SETTINGS)
    assert apart(fused_attention.observe(trace, attention, SETTINGS), sums.trace) < 1e-6


@torch.no_grad()
def test_the_packed_tokens_of_a_layer_may_be_millions(monkeypatch):
    """They are slots of one lane: CUDA's limit of 65,535 is on the second side of a grid."""
    grids = []

    class Noted:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_given, **_named: None

    monkeypatch.setattr(fused_attention, "_observe_rows", Noted())
    monkeypatch.setattr(fused_attention, "_basis", lambda *_: None)
    trace = torch.zeros(1, 1, 1, SETTINGS.num_bins + SETTINGS.hop, device="meta").expand(-1, -1, 5_000_000, -1)
    fused_attention.observe(trace, torch.zeros(1, 1, 16, 1, device="meta").expand(-1, -1, -1, 5_000_000), SETTINGS)
    assert grids == [(78_125, 1)]


def test_what_is_given_is_observed_by_the_kernel_where_it_serves(monkeypatch):
    seen, observe = [], fused_attention.observe
    monkeypatch.setattr("workers.memory.kernels.can_run", lambda _: True)
    monkeypatch.setattr(fused_attention, "observe", lambda *given: seen.append(1) or observe(*given))
    trace = torch.zeros(1, 1, 5, SETTINGS.num_bins + SETTINGS.hop, device=DEVICE)
    with torch.no_grad():
        for num_queries in (16, 7):
            features.observe(trace, torch.zeros(1, 1, num_queries, 5, device=DEVICE), SETTINGS)
    assert len(seen) == 1


def plain_token(query: Tensor, slots: Slots, scaling: float, hidden: int) -> tuple[Tensor, Tensor]:
    """Output and attention ``[B, H, 1, K]`` in double precision; the last slots are ``hidden``."""
    heads = slots.keys.shape[1]
    products = query.double().unflatten(1, (heads, -1))[:, :, :, 0] @ slots.keys.double().mT
    unseen = slots.positions < 0
    unseen[..., slots.num_slots - hidden :] = True
    weights = (scaling * products).masked_fill(unseen[:, :, None], -torch.inf).softmax(-1)
    return (weights @ slots.values.double()).flatten(1, 2)[:, :, None], weights.mean(2, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("case", CASES)
def test_a_token_attends(case, hidden, dtype):
    """To slots or, where heads hold different numbers, to packed tokens and later ones; to several tiles of them."""
    shape, generator = CASES[case], torch.Generator().manual_seed(3)
    held = some_slots(dtype=dtype, **{**shape, "new": 0})
    key, value = torch.randn(2, shape["rows"], shape["heads"], shape["new"], shape["size"], generator=generator)
    new = key.to(DEVICE, dtype), value.to(DEVICE, dtype), shape["held"]
    query = 4 * torch.randn(shape["rows"], shape["heads"] * shape["group"], 1, shape["size"], generator=generator)
    query, scaling = query.to(DEVICE, dtype), 0.3
    output, paid = plain_token(query, held.append(*new), scaling, hidden)
    is_hidden = torch.ones(hidden, dtype=torch.bool, device=DEVICE) if hidden else None
    slots = held.append(*new)
    limit = 1e-2 if dtype != torch.float32 else 1e-5
    assert fused_token.can_serve(slots.keys, slots.values, AttentionOptions(scaling))
    if held.is_even:
        ours, told = fused_token.attend_token(query, slots.keys, slots.values, scaling, is_hidden)
        assert apart(told, paid) < limit
    else:
        lying = at_rest(held)
        for token in range(shape["new"]):
            lying = lying.append(new[0][:, :, token : token + 1], new[1][:, :, token : token + 1], new[2] + token)
        ours, told = fused_token.attend_packed(query, lying, scaling, is_hidden)
        assert apart(told, lying.apart(paid)) < limit
    assert apart(ours, output) < limit


@torch.no_grad()
def test_many_packed_tokens_are_served(monkeypatch):
    """Lanes are what there can be too many of, not tokens."""
    monkeypatch.setattr("workers.memory.kernels.can_run", lambda _: True)
    tokens = torch.zeros(1, 2, 40_000, 16)
    slots = Slots(tokens, tokens, torch.zeros(1, 2, 40_000, dtype=torch.int32), tokens[..., :0], (39_000, 0))
    served: list[int] = []
    monkeypatch.setattr(fused_token, "attend_packed", lambda *given: served.append(1) or (given[0], given[0]))
    query = torch.zeros(1, 2, 1, 16)
    token_attention.attend_packed(query, packed(slots), 0, AttentionOptions(1.0))
    assert served


@torch.no_grad()
@pytest.mark.parametrize("options", [AttentionOptions(1.0, softcap=2.0), AttentionOptions(1.0, sliding_window=9)])
def test_only_plain_attention_of_a_token_is_served(options):
    keys = torch.zeros(1, 1, 4, 16)
    assert not fused_token.can_serve(keys, keys, options)
    assert not fused_token.can_serve(keys[..., :9], keys, AttentionOptions(1.0))


@torch.no_grad()
@pytest.mark.parametrize("case", ["after-an-eviction", "very-ragged"])
def test_a_trace_may_lie_elsewhere(case):
    """Where the tokens lay before they moved: told by a list."""
    shape = CASES[case]
    slots = some_slots(dtype=torch.float32, **shape)
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(
        shape["rows"], shape["heads"] * shape["group"], shape["new"], shape["size"], generator=generator
    )
    told = torch.rand(*slots.trace.shape[:2], slots.trace.shape[2] + 9, slots.trace.shape[3], generator=generator)
    places = slots.positions[..., : slots.trace.shape[2]]
    sources = torch.rand(*told.shape[:3], generator=generator).argsort(-1)[..., : places.shape[2]].int().to(DEVICE)
    sources[places < 0] = -1
    moved = Aligned(slots.keys, slots.values, slots.positions, told.to(DEVICE), sources, sources)
    observed = partial(fused_attention.attend_and_observe, query.to(DEVICE))
    options = AttentionOptions(scaling=shape["size"] ** -0.5)
    _, expected = observed(slots.with_trace(fused_selection.own_trace(moved)), options, SETTINGS)
    _, ours = observed(slots.with_trace(moved.trace), options, SETTINGS, sources=sources)
    occupied = slots.positions >= 0
    assert torch.equal(ours[occupied], expected[occupied])


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize(
    ("held", "hidden", "lookahead"), [(1, 32, 0), (63, 32, 16), (64, 32, 0), (200, 32, 16), (300, 32, 0), (150, 128, 0)]
)
def test_importances(held, hidden, lookahead, dtype, limit):
    settings = NammSettings(update_every=64, hidden_size=hidden, lookahead=lookahead)
    generator = torch.Generator().manual_seed(held)
    size = 0.5 * (32 / hidden) ** 0.5  # so that scores are as large, whatever they are sums of
    genomes = size * torch.randn(2, settings.genome_size, generator=generator).to(DEVICE)
    normalisation = Normalisation((0.4,) * settings.num_bins, (0.1,) * settings.num_bins)
    memory = Namm(settings, genomes, normalisation)
    shape = (4, 3, held)  # two rows of each genome
    trace = torch.rand(*shape, settings.num_bins + settings.hop, generator=generator).to(DEVICE)
    positions = torch.rand(shape, generator=generator).mul(900).int().sort(-1).values.to(DEVICE)
    positions[..., -1] = 999
    positions[1, 1, : held // 3] = -1
    nothing = trace[..., :0].to(dtype)
    view = LayerView(0, 1_000, nothing, nothing, positions, trace.transpose(2, 3).contiguous().transpose(2, 3))
    here = memory._at(DEVICE)
    assert fused_scorer.can_serve(settings)
    ours = fused_scorer.importances(
        view, memory._extra_features(view), here.scorer, here.mean, here.deviation, settings
    )
    expected = importances(memory.features(view), here.scorer)
    assert apart(ours[view.occupied], expected[view.occupied]) < limit


def importances_with_ties(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of 3 rows and 4 heads, with equal ones, infinite ones and zeros of both signs; positions; thresholds."""
    generator = torch.Generator().manual_seed(seed)
    num_slots = [1, 2, 17, 64, 300, 1_025][seed % 6]
    importance = torch.randn(3, 4, num_slots, generator=generator)
    if seed % 2:
        importance = (2 * importance).round() / 2  # many ties, -0.0 among them
        importance[0, :, : num_slots // 3] = -torch.inf
        importance[1, :, : num_slots // 4] = torch.inf
    empty = torch.randint(0, num_slots, (3, 4, 1), generator=generator)
    positions = torch.arange(num_slots, dtype=torch.int32).where(torch.arange(num_slots) >= empty, -1)
    return importance.to(DEVICE), positions.to(DEVICE), torch.randn(3, 1, 1, generator=generator).to(DEVICE)


@pytest.mark.parametrize("cap", [None, 1, 7])
@pytest.mark.parametrize("heads", ["even", "ragged"])
@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_very_same(seed, heads, cap, monkeypatch):
    monkeypatch.setattr("workers.memory.selection.kernels_for", lambda *_: None)
    importance, positions, thresholds = importances_with_ties(seed)
    for threshold in (0.0, 0.5, thresholds):
        expected = select_wanted(importance, positions, heads, cap, threshold)
        ours = fused_selection.chosen(importance, positions, threshold, cap, is_even=heads == "even")
        assert torch.equal(ours, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_moved_together(seed, dtype, monkeypatch):
    monkeypatch.setattr("workers.memory.slots.kernels_for", lambda *_: None)
    slots = some_slots(2, 3, [0, 5, 70, 300][seed], 100, 32, dtype, ragged=True)
    slots = slots.with_trace(slots.full_trace())
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(slots.positions.shape, generator=generator).to(DEVICE) < 0.5
    keep &= slots.positions >= 0
    keep[..., -1] = True
    expected = slots.select(keep)
    places = expected.num_slots + [0, 3, 1, 64][seed]
    assert fused_selection.can_move(slots.keys, slots.values)
    new = torch.randn(2, 2, 3, seed, 32, generator=generator).to(DEVICE, dtype)
    moved = fused_selection.moved(
        keep, places, slots.keys, slots.values, slots.positions, slots.trace,
        new[0].transpose(1, 2).contiguous().transpose(1, 2), new[1],
    )  # fmt: skip
    surplus = places - expected.num_slots
    assert [empty - surplus for empty in moved.empty.tolist()] == list(expected.empty)
    assert [buffer.shape[2] for buffer in moved[:3]] == [places + seed] * 3
    assert torch.equal(moved.keys[:, :, places:], new[0])
    assert torch.equal(moved.values[:, :, places:], new[1])
    later = moved.positions[..., places:] - slots.positions[..., -1:]
    assert torch.equal(later, torch.arange(1, seed + 1, device=DEVICE).expand(2, 3, -1))
    keys, values, positions = (buffer[:, :, surplus:places] for buffer in moved[:3])
    assert torch.equal(positions, expected.positions)
    assert bool((moved.positions[..., :surplus] == -1).all())
    trace = fused_selection.own_trace(moved)
    assert torch.equal(trace[:, :, surplus:], expected.trace)
    assert not trace[:, :, :surplus].any()
    occupied = positions >= 0
    assert torch.equal(keys[occupied], expected.keys[occupied])
    assert torch.equal(values[occupied], expected.values[occupied])
    assert bool(moved.values.isfinite().all())


def wide_model() -> PreTrainedModel:
    """A random Llama whose heads are wide enough for the kernels."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.25, bos_token_id=1, eos_token_id=2,
        attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(DEVICE)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_DEVICE, reason="an accelerator is waited for, a processor is not")
@pytest.mark.parametrize("is_recorded", [False, True], ids=["launched", "recorded"])
def test_a_sweep_waits_for_nothing(is_recorded, monkeypatch):
    """Nor does what lies around it: the host may be several layers ahead of the device."""
    memory = Namm(SETTINGS, torch.zeros(1, SETTINGS.genome_size, device=DEVICE), None)
    monkeypatch.setattr(ahead, "_is_worth_recording", lambda _: is_recorded)
    model, ids = wide_model(), random_ids(1, 256).to(DEVICE)
    with torch.inference_mode(), memory_attached(model, memory) as cache:
        for _ in range(2):  # kernels are compiled, and the sweep is recorded
            model(input_ids=ids, past_key_values=cache)
        cache.settle()
        held = cache.layers[0].held
        assert isinstance(held, Slots)
        query = torch.randn(1, 4, 256, 16, device=DEVICE)
        key = torch.randn(1, 2, 256, 16, device=DEVICE)
        everyone, options = Cohort(0, None), AttentionOptions(scaling=0.25)
        sweep_ahead = partial(ahead.sweep_ahead, cache.layers[0], everyone, held, 512, query, key, key, options)
        for _ in range(3):
            sweep_ahead()
        with warnings.catch_warnings(action="ignore"):  # it warns of being a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            _, settle = sweep_ahead()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert settle().num_slots


def as_a_graph(call: Callable[[], ahead.Swept]) -> Callable[[], ahead.Swept]:
    """Whose results, like those of a graph, lie in one place."""
    first: list[ahead.Swept] = []

    def again() -> ahead.Swept:
        swept = call()
        first.append(swept)
        for place, tensor in zip(first[0].held, swept.held, strict=True):
            place.copy_(tensor)
        first[0].output.copy_(swept.output)
        first[0].keep.copy_(swept.keep)
        first[0].empty.copy_(swept.empty)
        return first[0]

    return again


@pytest.mark.parametrize("is_recorded", [False, True], ids=["launched", "recorded"])
@pytest.mark.parametrize(
    ("heads", "cap", "count", "updates"), [("even", None, 1, 2), ("even", 40, 2, 4), ("ragged", None, 1, 2)]
)
def test_a_prompt_is_read_as_without_kernels(heads, cap, count, updates, is_recorded, monkeypatch):
    """Through every seam, several updates in a call, so that the host goes on without the counts of most of them."""
    settings = NammSettings(update_every=32, heads=heads, cap=cap)
    genomes = 0.5 * torch.randn(count, settings.genome_size, generator=torch.Generator().manual_seed(2))
    memory = Namm(
        settings, genomes.to(DEVICE), Normalisation((0.02,) * settings.num_bins, (0.001,) * settings.num_bins)
    )
    model, ids = wide_model(), random_ids(2, 150).to(DEVICE)
    swept: list[list[list[int]]] = []
    account = ahead._account
    monkeypatch.setattr(ahead, "_account", lambda *given: swept.append(given[-1]) or account(*given))
    monkeypatch.setattr(ahead, "PLACES_STEP", 8)
    monkeypatch.setattr(ahead, "_is_worth_recording", lambda _: is_recorded)
    monkeypatch.setattr(ahead, "AHEAD_TOKENS", 32 * updates)
    if not HAS_DEVICE:
        monkeypatch.setattr(ahead, "cuda_graph", as_a_graph)
    found = []
    for has_kernels in (False, True):
        monkeypatch.setattr("workers.memory.kernels.can_run", lambda _, has_kernels=has_kernels: has_kernels)
        found.append(drive(model, memory, ids, cuts=(128, 129, 130, 131)))
    (expected, theirs), (logits, ours) = found
    assert largest_difference(logits, expected) < 1e-4
    assert held_positions(ours) == held_positions(theirs)
    assert torch.equal(ours.held_tokens(), theirs.held_tokens())
    assert torch.equal(ours.meter.area, theirs.meter.area)
    assert torch.equal(ours.meter.peak, theirs.meter.peak)
    assert ours.meter.highest == theirs.meter.highest
    assert torch.equal(ours.row_state_bytes(), theirs.row_state_bytes())
    assert [len(empty) for empty in swept] == [updates] * (
        8 // updates
    )  # four updates in the first call, in each layer
    assert any(min(counts) < max(counts) for empty in swept for counts in empty) or heads == "even"


@pytest.mark.parametrize("heads", ["even", "ragged"])
def test_tokens_are_decoded_as_without_kernels(heads, monkeypatch):
    """Recorded, across an update."""
    settings = NammSettings(update_every=32, heads=heads)
    genome = 0.5 * torch.randn(1, settings.genome_size, generator=torch.Generator().manual_seed(2))
    memory = Namm(settings, genome.to(DEVICE), Normalisation((0.02,) * settings.num_bins, (0.001,) * settings.num_bins))
    model, ids = wide_model(), random_ids(1, 82).to(DEVICE)
    counted = Counted(cuda_graph if HAS_DEVICE else lambda call: call)
    monkeypatch.setattr("workers.memory.kernels.can_run", lambda _: False)
    expected = decoded(model, memory, ids, 46, None)
    monkeypatch.setattr("workers.memory.kernels.can_run", lambda _: True)
    require_equal(decoded(model, memory, ids, 46, counted), expected, 1e-4)
    assert counted.calls > 30
    assert isinstance(expected[1].layers[0].held, PackedSlots) or heads == "even"


@pytest.mark.parametrize("name", HEURISTICS)
def test_a_rival_keeps_what_it_keeps_without_kernels(name, monkeypatch):
    model, ids = wide_model(), random_ids(2, 100).to(DEVICE)
    found = []
    for has_kernels in (False, True):
        monkeypatch.setattr("workers.memory.kernels.can_run", lambda _, has_kernels=has_kernels: has_kernels)
        found.append(held_positions(drive(model, rival(name, 24, 16), ids, cuts=(40,))[1]))
    assert found[0] == found[1]


def test_layers_may_be_kept_without_their_cache(monkeypatch):
    """What the last one holds has not been asked yet when the call ends."""
    monkeypatch.setattr("workers.memory.kernels.can_run", lambda _: True)
    memory = Namm(NammSettings(update_every=32), torch.zeros(1, SETTINGS.genome_size, device=DEVICE), None)
    model, ids = wide_model(), random_ids(1, 64).to(DEVICE)
    with torch.inference_mode(), memory_attached(model, memory) as cache:
        model(input_ids=ids, past_key_values=cache)
        assert cache.owing is cache.layers[-1]
        layers = cache.layers
    del cache
    assert all(layer.held is not None and layer.held.num_slots for layer in layers)


def test_a_gradient_is_taken_as_without_kernels(monkeypatch):
    """Kernels know none: where one is wanted, none of them may stand in the way."""
    settings = NammSettings(update_every=32, cap=20)
    genome = 0.5 * torch.randn(1, settings.genome_size, generator=torch.Generator().manual_seed(2))
    memory = Namm(settings, genome.to(DEVICE), Normalisation((0.02,) * settings.num_bins, (0.001,) * settings.num_bins))
    model, ids = wide_model(), random_ids(1, 80).to(DEVICE)
    found = []
    for has_kernels in (False, True):
        monkeypatch.setattr("workers.memory.kernels.can_run", lambda _, has_kernels=has_kernels: has_kernels)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        with memory_attached(model, memory) as cache:
            logits = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).logits
        found.append(torch.autograd.grad(logits[:, -1].square().sum(), embedded)[0])
    expected, ours = found
    assert float(expected[:, :32].abs().max()) > 0  # tokens that outlived an eviction have their share in it
    assert largest_difference(ours, expected) < 1e-4

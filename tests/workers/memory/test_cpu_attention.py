"""The loop that a processor takes through attention and spectrogram equals the portable path, tile by tile."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.memory import cpu_attention, watching
from workers.memory.features import SpectralSums
from workers.memory.namm import Namm
from workers.memory.options import AttentionOptions
from workers.memory.quick_softmax import LEAST_SCORES
from workers.memory.slots import Slots, vacant_slots
from workers.memory.specs import NammSettings
from workers.memory.tiled_attention import WholeRows, attend

SIZE, VALUES_SIZE = 8, 12
OPTIONS = AttentionOptions(SIZE**-0.5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A block of queries, and what the lanes hold before."""

    heads: int
    group: int
    hop: int
    pending: int
    new: int
    held: tuple[int, ...]
    """By lane; some may be nothing."""
    largest: float
    """Of the scores, about."""

    @property
    def spectrum(self) -> NammSettings:
        return NammSettings(hop=self.hop, window=2 * self.hop, update_every=16 * self.hop)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    heads, hop = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 16]))
    lanes = heads * draw(st.integers(1, 2))
    return Case(
        heads=heads,
        group=draw(st.integers(1, 4)),
        hop=hop,
        pending=draw(st.integers(hop, 2 * hop - 1)),
        new=draw(st.integers(1, 150)),
        held=tuple(draw(st.lists(st.integers(0, 60), min_size=lanes, max_size=lanes))),
        largest=draw(st.sampled_from([1.0, 8.0, 60.0, 400.0])),
    )


def some_slots(case: Case, generator: torch.Generator) -> Slots:
    """As they are when the block was appended: the trace is of the older slots only."""
    rows, longest = len(case.held) // case.heads, max(case.held)

    def normal(tokens: int, size: int) -> Tensor:
        return torch.randn(rows, case.heads, tokens, size, generator=generator)

    empty = tuple(longest - count for count in case.held)
    vacant = vacant_slots(empty, longest, torch.device("cpu")).view(rows, case.heads, longest)
    trace = torch.rand(rows, case.heads, longest, case.hop + 1 + case.pending, generator=generator)
    slots = Slots(
        keys=normal(longest, SIZE),
        values=normal(longest, VALUES_SIZE),
        positions=torch.arange(longest, dtype=torch.int32).expand(rows, case.heads, -1).masked_fill(vacant, -1),
        trace=trace.masked_fill(vacant[..., None], 0),
        empty=empty,
    )
    return slots.append(normal(case.new, SIZE), normal(case.new, VALUES_SIZE), longest)


def asked(case: Case) -> tuple[Tensor, Slots]:
    """Queries, and the slots. The scores of one head in the midst are large."""
    generator = torch.Generator().manual_seed(0)
    slots = some_slots(case, generator)
    rows, query_heads = slots.keys.shape[0], case.heads * case.group
    query = torch.randn(rows, case.new, query_heads, SIZE, generator=generator).transpose(1, 2)
    query[:, query_heads // 2, case.new // 2 :] *= case.largest
    return query, slots


def portable(case: Case, query: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """The steps one by one, in float64."""
    exact = Slots(slots.keys.double(), slots.values.double(), slots.positions, slots.full_trace().double(), slots.empty)
    gathered = WholeRows(exact, case.new)
    output = attend(query.double(), exact, max(case.held), OPTIONS, gathered)
    sums = SpectralSums(slots.full_trace(), case.new, case.spectrum)
    lanes, columns = len(case.held), slots.num_slots
    room = sums.room(slice(0, lanes), slice(0, case.new), slice(0, columns))
    room.copy_(gathered.attention.flatten(0, 1))
    sums.take_in()
    return output, sums.trace


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "TILE_SCORES", {"cpu": 1})
    monkeypatch.setattr(cpu_attention, "SMALLEST_TILE", 16)


def check(case: Case) -> None:
    query, slots = asked(case)
    with torch.no_grad():
        output, trace = cpu_attention.attend_and_observe(query, slots, OPTIONS, case.spectrum)
        exact_output, exact_trace = portable(case, query, slots)
    vacant = (slots.positions < 0)[..., None]
    limit = 1e-5 * max(1.0, case.largest / 10)  # float32 knows a score of 400 to 4e-5
    torch.testing.assert_close(output.double(), exact_output, rtol=limit, atol=limit)
    torch.testing.assert_close(trace, exact_trace.masked_fill(vacant, 0), rtol=limit, atol=limit)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_blocks_of_any_shape_are_as_the_portable_path_has_them(case):
    check(case)


@pytest.mark.usefixtures("small_tiles")
def test_so_are_many_tiles():
    @settings(max_examples=150, deadline=None)
    @given(case=cases())
    def tiled(case: Case) -> None:
        check(case)

    tiled()


@torch.no_grad()
def test_what_lies_in_vacant_slots_is_never_read():
    case = Case(heads=2, group=2, hop=16, pending=16, new=64, held=(40, 3), largest=1.0)
    query, slots = asked(case)
    vacant = (slots.positions < 0)[..., None]
    spoilt = dataclasses.replace(
        slots, keys=slots.keys.masked_fill(vacant, torch.nan), values=slots.values.masked_fill(vacant, torch.nan)
    )
    ours, theirs = (
        cpu_attention.attend_and_observe(query, either, OPTIONS, case.spectrum) for either in (slots, spoilt)
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@torch.no_grad()
def test_work_memory_waits_for_no_garbage_collector():
    """It once did, in a cycle: forty megabytes of it where two are needed."""
    case = Case(heads=1, group=2, hop=16, pending=16, new=64, held=(40,), largest=1.0)
    query, slots = asked(case)
    gc.collect()
    gc.disable()
    try:
        cpu_attention.attend_and_observe(query, slots, OPTIONS, case.spectrum)
        assert not [found for found in gc.get_objects() if isinstance(found, cpu_attention._Work | cpu_attention._Tile)]
    finally:
        gc.enable()


@torch.no_grad()
def test_a_head_of_tiny_exponentials_is_not_lost_beside_one_of_huge_ones():
    """Sums of e^-40 and e^60 are each within bounds, their ratio is not."""
    case = Case(heads=1, group=2, hop=4, pending=4, new=16, held=(20,), largest=1.0)
    _, slots = asked(case)
    slots.keys[..., 0] = 1.0
    query = torch.zeros(1, 2, 16, SIZE)
    query[:, 0, :, 0], query[:, 1, :, 0] = 60.0 / OPTIONS.scaling, -40.0 / OPTIONS.scaling
    query[..., 1:] = 0.1 * torch.randn(1, 2, 16, SIZE - 1, generator=torch.Generator().manual_seed(0))
    output, trace = cpu_attention.attend_and_observe(query, slots, OPTIONS, case.spectrum)
    exact_output, exact_trace = portable(case, query, slots)
    torch.testing.assert_close(output.double(), exact_output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trace, exact_trace, rtol=1e-4, atol=1e-5)


def test_what_it_serves():
    heads, tokens = 2, 512
    keys = torch.zeros(1, heads, tokens, 16)
    slots = Slots.nothing(keys, keys, 33).append(keys, keys, 0)
    query = torch.zeros(1, 2 * heads, LEAST_SCORES // (2 * tokens), 16)
    spectrum = NammSettings()

    def serves(query: Tensor = query, options: AttentionOptions = OPTIONS) -> bool:
        return cpu_attention.can_serve(query, slots, options, spectrum)

    assert not serves(), "a gradient is wanted"
    with torch.no_grad():
        assert serves()
        assert not serves(query[:, :, 1:]), "too few scores"
        assert not serves(query.bfloat16())
        for asked_too in ({"sliding_window": 100}, {"softcap": 30.0}, {"sinks": torch.zeros(4)}):
            assert not serves(options=dataclasses.replace(OPTIONS, **asked_too))


@torch.no_grad()
def test_a_long_block_is_watched_by_it(monkeypatch):
    """And by the portable path where it serves not; a memory is told the same."""
    case = Case(heads=2, group=2, hop=16, pending=20, new=256, held=(300, 200), largest=2.0)
    query, slots = asked(case)
    memory = Namm(case.spectrum, torch.zeros(1, case.spectrum.genome_size), None)
    served: list[bool] = []

    def counted(*arguments: object) -> bool:
        served.append(can_serve(*arguments))  # type: ignore[arg-type]
        return served[-1]

    can_serve = cpu_attention.can_serve
    monkeypatch.setattr(cpu_attention, "can_serve", counted)
    output, told = watching.watch(query, slots, 300, OPTIONS, memory)
    monkeypatch.setattr(cpu_attention, "can_serve", lambda *_: False)
    expected, told_too = watching.watch(query, slots, 300, OPTIONS, memory)
    assert served == [True]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    occupied = slots.positions >= 0
    torch.testing.assert_close(told.trace[occupied], told_too.trace[occupied], rtol=1e-5, atol=1e-6)

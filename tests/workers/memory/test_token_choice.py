"""Settings that the published memory leaves off: offsets of heads, a look ahead, and the allocation of heads alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.workers.memory.tiny import (
    NUM_KV_HEADS,
    NUM_LAYERS,
    drive,
    held_positions,
    random_genomes,
    random_ids,
    rival,
    tiny_model,
    tiny_normalisation,
    tiny_settings,
)
from workers.memory.allocation import SHARE_SCALE, HeadAllocation
from workers.memory.build import build_memory
from workers.memory.errors import MemoryFileError, UnsupportedUseError
from workers.memory.heads import OFFSET_SCALE
from workers.memory.lookahead import FLOOR, SCALE
from workers.memory.memory import KeepAll, LayerView
from workers.memory.namm import Namm
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec

LAYOUT = (NUM_LAYERS, NUM_KV_HEADS)
ALL = {"offsets": True, "layout": LAYOUT, "lookahead": 4}


def tiny(**changes) -> NammSettings:
    return tiny_settings(heads="ragged", **changes)


def held(memory, ids=None):
    return held_positions(drive(tiny_model(), memory, random_ids(2, 50) if ids is None else ids)[1])


# Sizes and mistakes --------------------------------------------------------------------------------------------------


def test_the_genome_grows_by_what_is_on_and_by_nothing_else():
    published = NammSettings()
    assert published.genome_size == 4172
    assert dataclasses.replace(published, offsets=True, layout=(6, 3)).genome_size == 4172 + 18
    assert dataclasses.replace(published, choice="snapkv", layout=(6, 3)).genome_size == 18
    wider = dataclasses.replace(published, lookahead=16)
    assert wider.num_features == published.num_features + 2
    assert wider.genome_size == 4172 + 2 * (3 * 32 + 2 * 32 + 2 + 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"offsets": True}, "memory.layout must be the model's layers and KV heads, as in [6, 3], with memory.offsets"),
        (
            {"choice": "h2o"},
            "memory.layout must be the model's layers and KV heads, as in [6, 3], with memory.choice",
        ),
        ({"choice": "tova", "layout": (1, 1)}, "memory.choice must be one of network, snapkv, h2o: got 'tova'"),
        ({"choice": "h2o", "layout": (1, 1), "lookahead": 1}, "memory.choice h2o has no network: leave memory.offsets"),
        ({"lookahead": 17}, "memory.lookahead must be from 0 to memory.hop (16): got 17"),
        ({"layout": (6, 3)}, "memory.layout must be null without memory.offsets: the network does not read it"),
        ({"offsets": True, "layout": (6, 0)}, "memory.layout must be layers and KV heads, as in [6, 3], or null: got"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong, message):
    with pytest.raises(ValueError, match="memory") as error:
        NammSettings(**wrong)
    assert str(error.value).startswith(message)


# Off means as before -------------------------------------------------------------------------------------------------


def test_genes_of_zero_choose_as_the_published_memory_does():
    plain = tiny()
    genome = random_genomes(plain, 1)
    offsets = tiny(offsets=True, layout=LAYOUT)
    padded = torch.cat([genome, torch.zeros(1, NUM_LAYERS * NUM_KV_HEADS)], dim=1)

    kept = held(Namm(plain, genome, tiny_normalisation(plain)))
    assert held(Namm(offsets, padded, tiny_normalisation(offsets))) == kept
    assert any(len(head) < 50 for layer in kept for row in layer for head in row)


@pytest.mark.parametrize("more", [{**ALL}, {"choice": "snapkv", "layout": LAYOUT}, {"choice": "h2o", "layout": LAYOUT}])
def test_a_genome_of_zeros_keeps_everything(more):
    settings = tiny(**more)
    spec = NammSpec(settings=settings, normalisation=tiny_normalisation(settings))
    memory = build_memory(spec, np.zeros((1, settings.genome_size), np.float32))
    ids = random_ids(2, 50)

    logits, cache = drive(tiny_model(), memory, ids)
    plain, _ = drive(tiny_model(), KeepAll(), ids)
    torch.testing.assert_close(logits, plain)
    assert held_positions(cache) == [[[list(range(50))] * NUM_KV_HEADS] * 2] * NUM_LAYERS


# What each does ------------------------------------------------------------------------------------------------------


def test_an_offset_raises_the_importances_of_its_head_alone():
    settings = tiny(offsets=True, layout=LAYOUT)
    genome = torch.zeros(1, settings.genome_size)
    genome[0, settings.network_size + 1 * NUM_KV_HEADS + 0] = -0.5  # layer 1, KV head 0
    importances = {}

    def note(view, decision):
        importances[view.layer] = decision.importance

    drive(tiny_model(), Namm(settings, genome, None), random_ids(2, 8), listener=note)
    assert not importances[0].any()
    assert torch.equal(importances[1][:, 0], torch.full_like(importances[1][:, 0], -0.5 * OFFSET_SCALE))
    assert not importances[1][:, 1].any()
    kept = held(Namm(settings, genome, None))
    assert [[len(head) for head in row] for row in kept[1]] == [[3, 50]] * 2  # one of the update at 48, two since


def test_the_rows_of_a_block_read_the_genes_of_their_own_genome():
    settings = tiny(**ALL)
    genomes = random_genomes(settings, 3)
    normalisation = tiny_normalisation(settings)
    ids = random_ids(2, 50)
    together = held(Namm(settings, genomes, normalisation), ids.repeat(3, 1))
    for index in range(3):
        alone = held(Namm(settings, genomes[index : index + 1], normalisation), ids)
        assert [layer[2 * index : 2 * index + 2] for layer in together] == alone


def test_the_look_ahead_is_the_attention_of_the_newest_queries():
    settings = tiny(lookahead=4)
    memory = Namm(settings, torch.zeros(1, settings.genome_size), None)
    model, ids = tiny_model(), random_ids(2, 16)
    seen = {}

    def note(view, _decision):
        seen[view.seen_tokens, view.layer] = memory.features(view)

    drive(model, memory, ids, listener=note)
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    for layer in range(NUM_LAYERS):
        grouped = attentions[layer].unflatten(1, (NUM_KV_HEADS, -1)).mean(2)  # [B, H, n, K]
        mean = grouped[:, :, -4:].mean(2)
        expected = (mean * 16).clamp(min=FLOOR).log() / SCALE
        torch.testing.assert_close(seen[16, layer][..., -2], expected, atol=1e-4, rtol=1e-4)
        middle = (mean[..., 4:9].mean(-1) * 16).clamp(min=FLOOR).log() / SCALE
        torch.testing.assert_close(seen[16, layer][..., 6, -1], middle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cuts", [(), (8, 16, 41), tuple(range(1, 50))])
def test_any_chunking_keeps_the_same(cuts):
    ids = random_ids(2, 50)
    for more in (ALL, {"choice": "snapkv", "layout": LAYOUT}, {"choice": "h2o", "layout": LAYOUT}):
        settings = tiny(**more)
        genomes = random_genomes(settings, 1) if settings.choice == "network" else -torch.rand(1, 4) / SHARE_SCALE
        memory = build_memory(NammSpec(settings=settings), genomes.numpy())
        whole = held_positions(drive(tiny_model(), memory, ids)[1])
        assert held_positions(drive(tiny_model(), memory, ids, cuts)[1]) == whole


@pytest.mark.parametrize("choice", ["snapkv", "h2o"])
def test_an_allocation_keeps_what_the_heuristic_would_with_the_same_budgets(choice):
    settings = tiny(choice=choice, layout=LAYOUT)
    shares = torch.tensor([[0.25, 1.0, 0.5, 0.125]])
    memory = HeadAllocation(settings, shares.log() / SHARE_SCALE)
    budgets = [[round(float(share) * 8) for share in layer] for layer in shares.view(LAYOUT)]
    ids = random_ids(2, 8)  # one update: later ones find other tokens, because a share is of all tokens seen
    assert held(memory, ids) == held(rival(choice, budgets), ids)


def test_a_share_is_of_the_tokens_seen_and_the_dial_turns_it():
    settings = tiny(choice="snapkv", layout=LAYOUT)
    genes = torch.full((1, 4), float(np.log(0.5) / SHARE_SCALE))
    ids = random_ids(1, 48)
    assert all(len(head) == 24 for layer in held(HeadAllocation(settings, genes), ids) for row in layer for head in row)
    turned = HeadAllocation(settings, genes, threshold=float(np.log(2.0)))
    assert all(len(head) == 12 for layer in held(turned, ids) for row in layer for head in row)


@pytest.mark.parametrize("seen", [179, 2864, 3280, 46592])
def test_a_gene_of_zero_keeps_the_whole_head_whatever_its_length(seen):
    """The last token of some lengths was dropped: two logarithms of a length were not the same in float32."""
    memory = HeadAllocation(tiny(choice="h2o", layout=LAYOUT), torch.zeros(1, 4))
    positions = torch.arange(seen, dtype=torch.int32).expand(1, 2, -1)
    nothing = torch.zeros(1, 2, seen, 0)
    view = LayerView(0, seen, nothing, nothing, positions, torch.zeros(1, 2, seen, 1))
    assert memory.decide(view).keep.all()
    assert memory.importance(view).min() == 0


# Files and models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [ALL, {"lookahead": 2}, {"choice": "h2o", "layout": LAYOUT}])
def test_a_saved_memory_carries_how_it_chooses(tmp_path, more):
    settings = tiny(**more)
    memory = PretrainedMemory(NammSpec(settings=settings), random_genomes(settings, 1)[0].numpy())
    memory.save_pretrained(tmp_path)
    again = PretrainedMemory.from_pretrained(tmp_path)
    assert again.spec == memory.spec
    assert np.array_equal(again.genome, memory.genome)
    assert json.loads((tmp_path / "config.json").read_text())["version"] == 3


def test_a_memory_as_published_is_written_as_before(tmp_path):
    settings = tiny()
    PretrainedMemory(NammSpec(settings=settings), random_genomes(settings, 1)[0].numpy()).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["version"] == 1
    assert not {"layout", "offsets", "lookahead", "choice"} & document["settings"].keys()


@pytest.mark.parametrize(("key", "value"), [("offsets", 1), ("lookahead", True), ("choice", "best"), ("layout", [2])])
def test_a_damaged_description_is_named(tmp_path, key, value):
    settings = tiny(**ALL)
    PretrainedMemory(NammSpec(settings=settings), random_genomes(settings, 1)[0].numpy()).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    document["settings"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(MemoryFileError, match="does not describe a memory"):
        PretrainedMemory.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", [(4, 2), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("more", [{"offsets": True}, {"choice": "snapkv"}], ids=["offsets", "snapkv"])
def test_a_model_of_another_shape_is_refused_before_it_is_called(more, layout):
    settings = tiny(**more, layout=layout)
    memory = PretrainedMemory(NammSpec(settings=settings), np.zeros(settings.genome_size, np.float32))
    model = tiny_model()
    layers, heads = layout
    told = f"layout is {layers} layers of {heads} KV heads, but LlamaForCausalLM has 2 of 2: take the model"
    with pytest.raises(UnsupportedUseError, match=told):
        memory.cache(model)
    with pytest.raises(UnsupportedUseError, match=told), memory.attached(model):
        pass
    with pytest.raises(UnsupportedUseError, match=told):
        held(KeepAll(memory.build()))
    assert model.config._attn_implementation == "eager"

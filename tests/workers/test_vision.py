"""Vision-language models: only the text part forgets, a memory that keeps all is the plain model, letters count."""

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tasks.video_shapes import SHAPES, ShapeClips
from workers.errors import ModelError
from workers.local_models import local_model
from workers.local_vision import heldout_accuracy, vision_recipe
from workers.memory.attention import memory_attached
from workers.memory.build import build_memory
from workers.memory.memory import KeepAll
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.unit import Unit
from workers.vision_evaluator import VisionEvaluator
from workers.vision_model import Pixels, VisionModel, letter_probabilities, load_vision_model
from workers.vision_training import (
    VisionTrainingSettings,
    _batch,
    build_vision_tokenizer,
    new_vision_model,
    save_vision,
    train_vision,
)

CLIPS = ShapeClips(num_frames=12)


def frozen(vision):
    vision.model.eval().requires_grad_(False)
    return vision


def onevision():
    """A tiny LLaVA-OneVision with random weights: SigLIP and Qwen2."""
    torch.manual_seed(0)
    tokenizer = build_vision_tokenizer()
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=0,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[24, 24]],
        tie_word_embeddings=False,
    )
    pixels = Pixels(24, (0.5,) * 3, (0.5,) * 3)
    return frozen(VisionModel(LlavaOnevisionForConditionalGeneration(config), tokenizer, pixels))


MODELS = {"llava_next_video": lambda: frozen(new_vision_model(0)), "llava_onevision": onevision}


@pytest.fixture(scope="module", params=MODELS)
def vision(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def small():
    return frozen(new_vision_model(0))


def batch(vision, indices=(0, 1)):
    inputs = [vision.inputs(clip.frames, clip.question) for clip in (CLIPS.clip("train", index) for index in indices)]
    return {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}


def test_a_memory_that_keeps_everything_is_the_plain_model(vision):
    with torch.inference_mode():
        plain = vision.model(**batch(vision), logits_to_keep=1).logits[:, -1]
    logits, held = VisionEvaluator(vision, {}).read(KeepAll(), batch(vision))
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
    assert (held.held == held.seen[:, None, None]).all()


def test_only_the_text_part_is_hooked(vision):
    config = vision.model.config
    with memory_attached(vision.model, KeepAll()):
        assert config.get_text_config()._attn_implementation == "namm"
        assert config.vision_config._attn_implementation != "namm"


def test_frames_become_as_many_placeholders_as_the_model_makes_tokens(vision):
    inputs = batch(vision, (0,))
    columns = vision.frame_columns(inputs["input_ids"][0])
    assert columns.shape == (12, vision.tokens_per_frame)
    assert vision.tokens_per_frame == 4
    assert (inputs["input_ids"][0, columns] == inputs["input_ids"][0, columns[0, 0]]).all()


def test_a_memory_evicts_while_the_frames_are_read_as_a_dense_mask_would_hide_them(small):
    """One forward call evicts three times: the question must find only what is held."""
    spec = RivalSpec(name="recent", update_every=16, budget=((8, 8),) * 3)
    memory = build_memory(spec, np.zeros((1, 0), np.float32))
    inputs = batch(small, (0,))
    _, held = VisionEvaluator(small, {}).read(memory, inputs)
    num_tokens = inputs["input_ids"].shape[1]
    assert held.held.tolist() == [[[8 + num_tokens % 16] * 2] * 3]


def unit(memory, genomes=None, examples=(0, 1, 2), **values):
    genomes = np.zeros((1, 0), np.float32) if genomes is None else genomes
    return Unit(
        generation=0,
        memory_name="m",
        memory=memory,
        task=CLIPS.name,
        examples=examples,
        candidates=tuple(range(len(genomes))),
        genomes=genomes,
        **{"split": "heldout", **values},
    )


def test_letters_are_scored_and_a_row_does_not_depend_on_its_batch_mates(small):
    evaluator = VisionEvaluator(small, {CLIPS.name: CLIPS})
    full = RivalSpec(name="full", update_every=16)
    together, alone = (evaluator.score(unit(full, examples=examples)) for examples in ((0, 1, 2), (1,)))
    assert together.graded[1] == pytest.approx(alone.graded[0], abs=1e-6)
    assert set(together.exact.tolist()) <= {0.0, 1.0}
    assert (together.graded > 0).all()
    assert (together.graded < 1).all()


def test_a_block_of_genomes_answers_every_question(small):
    settings = NammSettings(update_every=32, hidden_size=4, heads="ragged")
    genomes = np.zeros((2, settings.genome_size), np.float32)
    genomes[1, -1] = -1.0  # forgets all that it may
    evaluator = VisionEvaluator(small, {CLIPS.name: CLIPS})
    scored = evaluator.score(unit(NammSpec(settings=settings), genomes))
    full = evaluator.score(unit(RivalSpec(name="full", update_every=32)))
    np.testing.assert_allclose(scored.graded[:3], full.graded, atol=1e-6)
    assert scored.held_tokens[:3].min() == scored.seen_tokens[0]
    assert scored.held_tokens[3:].max() == 1 + scored.seen_tokens[0] % 32


def test_statistics_are_gathered_with_the_full_cache(small):
    evaluator = VisionEvaluator(small, {CLIPS.name: CLIPS})
    spec = NammSpec(settings=NammSettings(update_every=32, hidden_size=4))
    scored = evaluator.score(unit(spec, record_statistics=True))
    assert scored.statistics is not None
    assert scored.statistics.count == 3 * 2 * 3 * sum(range(32, int(scored.seen_tokens[0]) + 1, 32))


def test_forgotten_frames_are_counted_by_what_they_show(small):
    evaluator = VisionEvaluator(small, {})
    assert evaluator.frames_kept(KeepAll(), CLIPS, "train", (0, 1)) == (1.0, 1.0)
    spec = RivalSpec(name="recent", update_every=16, budget=((4, 4),) * 3)
    redundant, shown = evaluator.frames_kept(build_memory(spec, np.zeros((1, 0), np.float32)), CLIPS, "train", (0, 1))
    assert 0.0 <= redundant < 0.3
    assert 0.0 <= shown < 0.5


@pytest.mark.parametrize("budget", [1, 24, 60, 63, 64, 65, 80, 1000])
def test_a_truncated_clip_has_fewer_frames_in_as_many_bytes(small, budget):
    spec = RivalSpec(name="truncation", update_every=16, budget=((budget,) * 2,) * 3)
    scored = VisionEvaluator(small, {CLIPS.name: CLIPS}).score(unit(spec, examples=(0,)))
    whole = batch(small, (0,))["input_ids"].shape[1]
    words = whole - 12 * 4
    assert scored.seen_tokens.tolist() == [words + 4 * frames_of(budget, whole, words)]
    assert (scored.held_tokens == scored.seen_tokens[0]).all()


def frames_of(budget, whole, words):
    """The most frames whose tokens, with the words, are no more than budget and what comes after the last update."""
    return max(1, *(n for n in range(13) if n == 0 or words + 4 * n <= budget + whole % 16))


def test_units_of_another_task_are_refused(small):
    with pytest.raises(ValueError, match="this worker has nothing"):
        VisionEvaluator(small, {"nothing": CLIPS}).score(unit(RivalSpec(name="full")))


def test_a_letter_counts_with_and_without_a_blank_before_it():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    torch.testing.assert_close(
        letter_probabilities(logits, [[0, 1], [2]]), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    )


def test_frames_of_any_size_are_fitted_and_scaled():
    pixels = Pixels(8, (0.5,) * 3, (0.25,) * 3).of(np.full((2, 16, 32, 3), 255, np.uint8))
    assert pixels.shape == (2, 3, 8, 8)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.0))


def test_a_few_steps_of_training_reduce_the_loss():
    vision, losses = new_vision_model(1), []
    settings = VisionTrainingSettings(levels=((1, 1),), num_steps=40, most_rows=16)
    train_vision(vision, settings, lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert not vision.model.training
    assert not any(module._forward_pre_hooks for module in vision.model.modules())


def test_training_is_a_function_of_its_settings():
    trained = []
    for seed in (3, 3, 4):
        vision = new_vision_model(3)
        settings = VisionTrainingSettings(levels=((2, 2),), num_steps=2, most_rows=4, seed=seed)
        train_vision(vision, settings, lambda _: None)
        trained.append(vision.model.lm_head.weight.detach())
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_what_is_learned_is_the_answer_and_every_shape_once_more(small):
    clips, rng = ShapeClips(num_frames=6, num_shapes=3), np.random.default_rng(5)
    settings = VisionTrainingSettings(tokens_per_step=4 * 90)
    inputs, places, letters = _batch(small, clips, settings, rng)
    ids = inputs["input_ids"]
    assert letters.shape == (4, 1 + 3)
    assert torch.equal(letters, ids[:, places + 1])
    shapes = small.tokenizer.convert_tokens_to_ids(list(SHAPES))
    named = ids[:, places[1:]]
    assert set(named.flatten().tolist()) <= set(shapes)
    assert all(len(set(row)) == 3 for row in named.tolist())
    for row, answer in enumerate(letters[:, 0].tolist()):  # the shape that was asked for has the same letter again
        asked = next(token for token in ids[row, : places[0]].tolist() if token in shapes)
        assert letters[row, 1 + named[row].tolist().index(asked)] == answer


@pytest.mark.slow
def test_a_short_training_learns_to_answer_about_short_clips():
    vision = new_vision_model(0)
    settings = VisionTrainingSettings(levels=((1, 1), (2, 2), (4, 4), (12, 4)), num_steps=300)
    train_vision(vision, settings, lambda _: None)
    assert heldout_accuracy(frozen(vision), 12) > 0.9


def test_a_saved_model_is_loaded_as_it_was(tmp_path, small):
    save_vision(small, tmp_path)
    again = load_vision_model(str(tmp_path))
    assert again.pixels == small.pixels
    torch.testing.assert_close(
        again.inputs(*_example())["pixel_values_videos"], batch(small, (0,))["pixel_values_videos"]
    )
    logits = [VisionEvaluator(each, {}).read(KeepAll(), batch(small))[0] for each in (small, again)]
    torch.testing.assert_close(*logits)


def _example():
    clip = CLIPS.clip("train", 0)
    return clip.frames, clip.question


def test_a_model_whose_frames_are_not_known_is_refused(tmp_path):
    from workers.training import new_model, save

    save(new_model(0), tmp_path)
    with pytest.raises(ModelError):
        load_vision_model(str(tmp_path))


def test_a_model_without_the_scale_of_its_frames_says_so(tmp_path, small):
    save_vision(small, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="which says how frames are scaled"):
        load_vision_model(str(tmp_path))


def test_a_model_that_guesses_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path))
    recipe = vision_recipe("toy", VisionTrainingSettings(levels=((4, 4),), num_steps=1, most_rows=4))
    with pytest.raises(ModelError, match=r"toy has not learned to answer: \d+% of held-out questions are right"):
        local_model(recipe, lambda _line: None)
    assert list((tmp_path / "models").iterdir()) == []

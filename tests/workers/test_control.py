"""Decision Transformers: cached steps equal the recomputed window, memories evict, episodes are scored."""

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from tasks.control import ENVIRONMENTS, Episodes, environment_named, episode_seed
from tasks.control_data import Episode, Recording
from workers.control_evaluator import ControlEvaluator
from workers.control_model import CachedController, ControlSettings, WindowController, load_controller
from workers.control_training import TrainingSettings, new_controller, save_controller, train_controller
from workers.errors import ModelError
from workers.memory.attention import memory_attached
from workers.memory.build import build_memory
from workers.memory.memory import KeepAll
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.unit import Unit

SMALL = TrainingSettings(num_steps=3, hidden_size=16, batch_size=4, window_steps=5)
CHEETAH = ControlSettings(
    environment="HalfCheetah-v5",
    state_mean=(0.0,) * 17,
    state_deviation=(1.0,) * 17,
    return_scale=1000.0,
    target_return=1000.0,
    window_steps=5,
)


@pytest.fixture(scope="module")
def model():
    return new_controller(SMALL, 17, 6).eval().requires_grad_(False)


def driven(controller, steps, rows=3):
    """Actions on made-up states, fed back as they are."""
    rng = torch.Generator().manual_seed(0)
    actions = []
    with torch.inference_mode():
        for step in range(steps):
            states = torch.randn(rows, 17, generator=rng)
            action = controller.act(states, torch.full((rows,), 1.0 - step / 100), step)
            controller.took(action, step)
            actions.append(action)
    return torch.stack(actions, dim=1)


def test_cached_steps_under_a_memory_that_keeps_everything_are_the_plain_model(model):
    """transformers' own forward pass over all steps at once is the plain model."""
    plain = driven(WindowController(model, window_steps=40), 40)
    with memory_attached(model.encoder, KeepAll()) as cache:
        cached = driven(CachedController(model, cache), 40)
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=0)
    assert cache.held_tokens().tolist() == [[[120] * 2] * 2] * 3


def test_window_and_cache_part_when_the_window_is_full(model):
    plain = driven(WindowController(model, window_steps=5), 12)
    with memory_attached(model.encoder, KeepAll()) as cache:
        cached = driven(CachedController(model, cache), 12)
    torch.testing.assert_close(cached[:, :5], plain[:, :5], atol=1e-5, rtol=0)
    assert (cached[:, 6:] - plain[:, 6:]).abs().max() > 1e-4


def test_a_memory_evicts_in_the_middle_of_a_step(model):
    spec = RivalSpec(name="recent", update_every=16, budget=((8, 8), (8, 8)))
    with memory_attached(model.encoder, build_memory(spec, np.zeros((1, 0), np.float32))) as cache:
        driven(CachedController(model, cache), 30)
    assert cache.held_tokens().tolist() == [[[8 + 90 % 16] * 2] * 2] * 3


def unit(memory, examples=(0, 1), genomes=None, **values):
    genomes = np.zeros((1, 0), np.float32) if genomes is None else genomes
    values = {"split": "heldout", "task": "HalfCheetah-v5"} | values
    return Unit(
        generation=0,
        memory_name="m",
        memory=memory,
        examples=examples,
        candidates=tuple(range(len(genomes))),
        genomes=genomes,
        **values,
    )


@pytest.fixture(scope="module")
def evaluator(model):
    return ControlEvaluator(model, CHEETAH, "HalfCheetah-v5", max_steps=30)


def test_an_episode_is_scored_alone_as_beside_others(evaluator):
    full = RivalSpec(name="full", update_every=16)
    together, alone = (evaluator.score(unit(full, examples)) for examples in ((0, 1, 2), (1,)))
    assert together.exact[1] == pytest.approx(alone.exact[0], abs=1e-6)
    assert len(set(together.exact.tolist())) == 3
    assert together.seen_tokens.tolist() == [90, 90, 90]
    assert (together.held_tokens == 90).all()
    assert (together.peak_bytes == 90 * 2 * 2 * 16 * 4).all()  # tokens x layers x (key and value) x hidden x 4 bytes


def test_a_block_of_genomes_plays_every_episode(evaluator):
    settings = NammSettings(update_every=32, hidden_size=4, heads="ragged")
    spec = NammSpec(settings=settings)
    genomes = np.zeros((2, settings.genome_size), np.float32)
    genomes[1, -1] = -1.0  # forgets all that it may
    scored = evaluator.score(unit(spec, genomes=genomes))
    assert scored.candidate.tolist() == [0, 0, 1, 1]
    assert scored.held_tokens[:2].min() == 90
    assert scored.held_tokens[2:].max() == 1 + 90 % 32
    full = evaluator.score(unit(RivalSpec(name="full", update_every=32)))
    np.testing.assert_allclose(scored.exact[:2], full.exact, atol=1e-5)


def test_the_window_is_a_baseline_with_the_steps_of_its_budget(evaluator):
    scored = evaluator.score(unit(RivalSpec(name="truncation", budget=((15,),))))
    assert (scored.held_tokens == 15).all()
    assert scored.held_tokens.shape == (2, 2, 2)
    assert (scored.mean_bytes < scored.peak_bytes).all()


def test_statistics_are_gathered_with_the_full_cache(evaluator):
    spec = NammSpec(settings=NammSettings(update_every=32, hidden_size=4))
    scored = evaluator.score(unit(spec, record_statistics=True, split="train"))
    assert scored.statistics is not None
    assert scored.statistics.count == 2 * 2 * 2 * (32 + 64)  # episodes, layers, heads, tokens at two updates
    assert (scored.statistics.variance > 0).all()


def test_units_of_another_environment_are_refused(evaluator):
    with pytest.raises(ValueError, match="this worker plays HalfCheetah-v5"):
        evaluator.score(unit(RivalSpec(name="full"), task="Hopper-v5"))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_runs_without_a_display(name):
    with Episodes(f"{name}-v5", [1, 2]) as episodes:
        observations = episodes.reset()
        actions = np.zeros((2, {"HalfCheetah": 6, "Hopper": 3, "Walker2d": 6}[name]))
        after, rewards = episodes.step(actions)
    assert observations.shape == after.shape
    assert episodes.returns == pytest.approx(rewards)


def test_an_episode_that_has_ended_stands_still():
    with Episodes("Hopper-v5", [1, 2]) as episodes:
        episodes.reset()
        while episodes.is_running.all():
            episodes.step(np.array([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]))
        (ended,) = np.flatnonzero(~episodes.is_running)[:1]
        before = episodes.returns[ended]
        observations, rewards = episodes.step(np.zeros((2, 3)))
        again, _ = episodes.step(np.zeros((2, 3)))
    assert rewards[ended] == 0.0
    assert episodes.returns[ended] == before
    np.testing.assert_array_equal(observations[ended], again[ended])


def test_scores_are_normalised_as_in_d4rl():
    environment, version = environment_named("Hopper-v5")
    assert version == "v5"
    np.testing.assert_allclose(environment.normalised(np.array([-20.272305, 3234.3])), [0.0, 1.0])
    assert environment.raw(1.0) == pytest.approx(3234.3)
    assert episode_seed("train", 3) != episode_seed("heldout", 3)


def recording(num_episodes=6, steps=30, environment="HalfCheetah-v5"):
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(num_episodes):
        observations = rng.standard_normal((steps, 17)).astype(np.float32)
        actions = np.tanh(observations[:, :6])
        episodes.append(Episode(observations, actions, np.ones(steps, np.float32)))
    return Recording(environment, tuple(episodes))


def test_training_learns_to_act_as_in_the_episodes(tmp_path):
    losses = []
    settings = TrainingSettings(num_steps=150, hidden_size=32, batch_size=16, window_steps=5)
    model, told = train_controller(recording(), settings, lambda _step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert (told.environment, told.target_return, told.window_steps) == ("HalfCheetah-v5", 30.0, 5)
    save_controller(model, told, tmp_path)
    assert ControlSettings.load(tmp_path) == told
    again = load_controller(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_model_without_its_scales_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"control.json is missing, .* --data"):
        ControlSettings.load(tmp_path)
    (tmp_path / "control.json").write_text('{"environment": 3}')
    with pytest.raises(ModelError, match="does not say how states and returns are scaled"):
        ControlSettings.load(tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="cannot load the Decision Transformer"):
        load_controller(tmp_path)

"""Golden sub-steps: spectrogram and moving average, scorer, selection, recency, rotary base, fitness, search.

Each takes the device that it computes on; fitness and search are the driver's, which computes on the host alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from orchestrator import published_cma
from orchestrator.config import FitnessSettings
from orchestrator.fitness import FullCacheScores, losses
from tests.conformance.cases import SCORE_TOLERANCE, require_close, require_equal
from workers.language_model import ntk_rope_theta
from workers.memory import features
from workers.memory.scorer import importances, unfold_genomes
from workers.memory.selection import select_wanted
from workers.memory.specs import NammSettings
from workers.unit import ScoredUnit


def check_stft_ema(path: Path, device: str) -> str:
    """Group means, magnitudes and moving averages of two updates with an eviction between, fp32 and bf16."""
    arrays = np.load(path)
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        golden = {key.removeprefix(f"{name}_"): arrays[key] for key in arrays if key.startswith(name)}
        delay, kv_heads = golden["grouped1"].shape[1], len(golden["grouped1"])
        settings = NammSettings(update_every=delay)
        trace = torch.zeros(1, kv_heads, delay, features.empty_trace_channels(settings), device=device)
        for update in (1, 2):
            weights = torch.from_numpy(golden[f"attn{update}"]).to(device, dtype)
            grouped = weights.view(1, kv_heads, -1, *weights.shape[1:]).mean(dim=2)
            require_close(f"{name} grouped{update}", grouped[0].float(), golden[f"grouped{update}"], 1e-7)
            _check_magnitudes(f"{name} mag{update}", trace, grouped, settings, golden[f"mag{update}"])
            trace = features.observe(trace, grouped, settings)
            require_close(f"{name} ema{update}", trace[0, ..., : settings.num_bins], golden[f"ema{update}"], 1e-6)
            if update == 1:
                keep = torch.from_numpy(golden["keep1"]).to(device, torch.int64)
                kept = trace.gather(2, keep[None, ..., None].expand(-1, -1, -1, trace.shape[-1]))
                trace = torch.cat([kept, trace.new_zeros(1, kv_heads, delay, trace.shape[-1])], dim=2)
    return "fp32 and bf16"


def _check_magnitudes(
    name: str, trace: torch.Tensor, grouped: torch.Tensor, settings: NammSettings, golden: np.ndarray
) -> None:
    signal = torch.cat([trace[..., settings.num_bins :], grouped.transpose(-1, -2).float()], dim=-1)
    frames = signal.unfold(-1, settings.window, settings.hop)
    require_close(name, features.magnitudes(frames)[0].transpose(1, 2), golden, 1e-6)


def check_bam(path: Path, device: str) -> str:
    """Scorer outputs with and without padding."""
    arrays = np.load(path)
    x = torch.from_numpy(arrays["x"])[None].to(device)
    parameters = unfold_genomes(torch.from_numpy(arrays["genome"])[None].to(device), NammSettings())
    error = require_close("scores", importances(x, parameters)[0], arrays["scores"], SCORE_TOLERANCE)
    # Padding is older than every token, so hiding it must not move the scores of the rest; our layout never shows it.
    real = arrays["mask2"] > 0
    ours = importances(x[:, :, torch.from_numpy(real).to(device)], parameters)[0]
    require_close("scores_mask2", ours, arrays["scores_mask2"][:, real], SCORE_TOLERANCE)
    return f"scores {error:.0e}"


def check_selection(path: Path, device: str) -> str:
    """Slots kept in every situation."""
    arrays = np.load(path)
    situations = [key.removesuffix("_scores") for key in arrays if key.endswith("_scores")]
    for situation in situations:
        scores = torch.from_numpy(arrays[f"{situation}_scores"])[None].to(device)
        cap = int(arrays[f"{situation}_cap"])
        keep = select_wanted(scores, torch.zeros_like(scores, dtype=torch.int32), "even", None if cap < 0 else cap)[0]
        golden = arrays[f"{situation}_retained"]
        require_equal(f"{situation} kept per head", keep.sum(-1), [golden.shape[1]] * len(golden))
        require_equal(situation, keep.nonzero()[:, 1].view(len(golden), -1), golden)
        forced = scores[0].clone()
        forced[:, -1] = torch.inf
        require_equal(f"{situation} real", (keep & (forced >= 0)).sum(-1), arrays[f"{situation}_real_per_head"])
    return f"{len(situations)} situations"


def check_recency(path: Path, device: str) -> str:
    """Ages and their embedding."""
    arrays = np.load(path)
    ages = torch.from_numpy(arrays["pos"][:, -1:] - arrays["pos"]).to(device)
    require_equal("age", ages, arrays["age"])
    require_close("emb", features.recency(ages, int(ages.max()), NammSettings()), arrays["emb"], 1e-6)
    return "ages and embedding"


def check_rope(path: Path, device: str) -> str:
    """The NTK-rescaled rotary base of Llama-3-8B and the resulting tables."""
    arrays = np.load(path)
    base = ntk_rope_theta(500_000.0, 128, factor=4.0, alpha=2.0)
    require_close("base", base, arrays["base"], 1e-12)
    rope = {"rope_type": "default", "rope_theta": base}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=rope)
    rotary = LlamaRotaryEmbedding(config).to(device)
    require_close("inv_freq", rotary.inv_freq, arrays["inv_freq"], 1e-7)
    cos, sin = rotary(torch.zeros(1, device=device), torch.from_numpy(arrays["pos"]).to(device))
    require_close("cos", cos[0], arrays["cos"], SCORE_TOLERANCE)
    require_close("sin", sin[0], arrays["sin"], SCORE_TOLERANCE)
    return "base and tables"


def check_cma(path: Path, _: str) -> str:
    """Constants, and the state after each of four generations, in two dimensions."""
    arrays = np.load(path)
    for prefix in sorted({key.split("_")[0] for key in arrays}):
        golden = {key.removeprefix(f"{prefix}_"): arrays[key] for key in arrays if key.startswith(f"{prefix}_")}
        constants = published_cma.Constants.of(len(golden["init_mean"]), len(golden["g0_y"]))
        for name in ("weights", "mu_eff", "c_1", "c_mu", "c_sigma", "d_sigma", "c_c", "chi"):
            require_close(f"{prefix} {name}", getattr(constants, name), golden[name], 1e-6)
        sigma = np.median((golden["g0_x"] - golden["init_mean"]) / golden["g0_y"])
        state = published_cma.State.fresh(golden["init_mean"], float(sigma))
        for generation in range(sum(key.endswith("_fit") for key in golden)):
            state = _check_tell(f"{prefix} g{generation}", state, constants, golden, f"g{generation}_")
    return "constants and states"


def _check_tell(
    at: str, state: published_cma.State, constants: published_cma.Constants, golden: dict[str, np.ndarray], prefix: str
) -> published_cma.State:
    state, decomposition = published_cma.decompose(state)
    steps = golden[f"{prefix}y"]
    require_close(f"{at} x", state.mean + state.sigma * steps, golden[f"{prefix}x"], 1e-5)
    state = published_cma.tell(state, constants, decomposition, steps, -golden[f"{prefix}fit"])
    covariance = golden[f"{prefix}C"]
    ours = state.covariance if covariance.ndim == 2 else state.covariance.diagonal()
    named = {"mean": state.mean, "sigma": state.sigma, "evo_path_sigma": state.path_sigma, "evo_path_c": state.path_c}
    for name, values in (named | {"C": ours}).items():
        require_close(f"{at} {name}", values, golden[f"{prefix}{name}"], 1e-5)
    return state


def check_fitness(path: Path, _: str) -> str:
    """The ratio to the full-cache score on the same examples, mean over tasks."""
    golden = json.loads(path.read_text())
    full = FullCacheScores(
        exact={},
        graded={
            (task, int(index)): value
            for task, reference in golden["reference_per_request"].items()
            for index, value in reference.items()
        },
    )
    units = [_unit(task, examples, golden["task_scores"][task] / 100) for task, examples in golden["sampled"].items()]
    fitness = losses(units, full, FitnessSettings(), population=1)
    for task, ratio in golden["normalized"].items():
        require_close(f"{task} ratio", fitness.by_task[task].ratio, [ratio], 1e-5)
    require_close("fitness", -fitness.loss, [golden["fitness"]], 1e-5)
    return f"{len(units)} tasks"


def _unit(task: str, examples: list[int], score: float) -> ScoredUnit:
    rows = len(examples)
    ones = np.ones(rows, np.int64)
    return ScoredUnit(
        key=task,
        generation=0,
        memory_name="namm",
        task=task,
        split="train",
        candidate=np.zeros(rows, np.int32),
        example=np.array(examples, np.int32),
        exact=np.full(rows, score),
        graded=np.full(rows, score),
        seen_tokens=np.ones(rows, np.int32),
        held_tokens=np.ones((rows, 1, 1), np.int32),
        mean_bytes=np.ones(rows),
        peak_bytes=ones,
        state_bytes=ones,
        seconds=0.0,
    )


CHECKS: dict[str, Callable[[Path, str], str]] = {
    "stft_ema.npz": check_stft_ema,
    "bam.npz": check_bam,
    "selection.npz": check_selection,
    "recency.npz": check_recency,
    "rope_llama3_x4.npz": check_rope,
    "cma.npz": check_cma,
    "fitness.json": check_fitness,
}

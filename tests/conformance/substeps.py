"""Golden sub-steps: spectrogram and moving average, scorer, selection, recency, rotary base, fitness, search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.conformance.cases import SCORE_TOLERANCE, Mismatch, require_close, require_equal
from workers.language_model import ntk_rope_theta
from workers.memory import features
from workers.memory.scorer import importances, unfold_genomes
from workers.memory.selection import select_wanted
from workers.memory.specs import NammSettings


def check_stft_ema(path: Path) -> str:
    """Group means, magnitudes and moving averages of two updates with an eviction between, fp32 and bf16."""
    arrays = np.load(path)
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        golden = {key.removeprefix(f"{name}_"): arrays[key] for key in arrays if key.startswith(name)}
        delay, kv_heads = golden["grouped1"].shape[1], len(golden["grouped1"])
        settings = NammSettings(update_every=delay)
        trace = torch.zeros(1, kv_heads, delay, features.empty_trace_channels(settings))
        for update in (1, 2):
            weights = torch.from_numpy(golden[f"attn{update}"]).to(dtype)
            grouped = weights.view(1, kv_heads, -1, *weights.shape[1:]).mean(dim=2)
            require_close(f"{name} grouped{update}", grouped[0].float(), golden[f"grouped{update}"], 1e-7)
            _check_magnitudes(f"{name} mag{update}", trace, grouped, settings, golden[f"mag{update}"])
            trace = features.observe(trace, grouped, settings)
            require_close(f"{name} ema{update}", trace[0, ..., : settings.num_bins], golden[f"ema{update}"], 1e-6)
            if update == 1:
                keep = torch.from_numpy(golden["keep1"]).long()[None, ..., None].expand(-1, -1, -1, trace.shape[-1])
                trace = torch.cat([trace.gather(2, keep), torch.zeros(1, kv_heads, delay, trace.shape[-1])], dim=2)
    return "fp32 and bf16"


def _check_magnitudes(
    name: str, trace: torch.Tensor, grouped: torch.Tensor, settings: NammSettings, golden: np.ndarray
) -> None:
    signal = torch.cat([trace[..., settings.num_bins :], grouped.transpose(-1, -2).float()], dim=-1)
    frames = signal.unfold(-1, settings.window, settings.hop)
    require_close(name, features.magnitudes(frames)[0].transpose(1, 2), golden, 1e-6)


def check_bam(path: Path) -> str:
    """Scorer outputs with and without padding."""
    arrays = np.load(path)
    x = torch.from_numpy(arrays["x"])[None]
    parameters = unfold_genomes(torch.from_numpy(arrays["genome"])[None], NammSettings())
    error = require_close("scores", importances(x, parameters)[0], arrays["scores"], SCORE_TOLERANCE)
    # Padding is older than every token, so hiding it must not move the scores of the rest; our layout never shows it.
    real = arrays["mask2"] > 0
    ours = importances(x[:, :, torch.from_numpy(real)], parameters)[0]
    require_close("scores_mask2", ours, arrays["scores_mask2"][:, real], SCORE_TOLERANCE)
    return f"scores {error:.0e}"


def check_selection(path: Path) -> str:
    """Slots kept in every situation."""
    arrays = np.load(path)
    situations = [key.removesuffix("_scores") for key in arrays if key.endswith("_scores")]
    for situation in situations:
        scores, cap = torch.from_numpy(arrays[f"{situation}_scores"])[None], int(arrays[f"{situation}_cap"])
        keep = select_wanted(scores, torch.ones_like(scores, dtype=torch.bool), "even", None if cap < 0 else cap)[0]
        golden = arrays[f"{situation}_retained"]
        require_equal(f"{situation} kept per head", keep.sum(-1), [golden.shape[1]] * len(golden))
        require_equal(situation, keep.nonzero()[:, 1].view(len(golden), -1), golden)
        forced = scores[0].clone()
        forced[:, -1] = torch.inf
        require_equal(f"{situation} real", (keep & (forced >= 0)).sum(-1), arrays[f"{situation}_real_per_head"])
    return f"{len(situations)} situations"


def check_recency(path: Path) -> str:
    """Ages and their embedding."""
    arrays = np.load(path)
    ages = torch.from_numpy(arrays["pos"][:, -1:] - arrays["pos"])
    require_equal("age", ages, arrays["age"])
    require_close("emb", features.recency(ages, int(ages.max()), NammSettings()), arrays["emb"], 1e-6)
    return "ages and embedding"


def check_rope(path: Path) -> str:
    """The NTK-rescaled rotary base of Llama-3-8B and the resulting tables."""
    arrays = np.load(path)
    base = ntk_rope_theta(500_000.0, 128, factor=4.0, alpha=2.0)
    require_close("base", base, arrays["base"], 1e-12)
    rope = {"rope_type": "default", "rope_theta": base}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=rope)
    rotary = LlamaRotaryEmbedding(config)
    require_close("inv_freq", rotary.inv_freq, arrays["inv_freq"], 1e-7)
    cos, sin = rotary(torch.zeros(1), torch.from_numpy(arrays["pos"]))
    require_close("cos", cos[0], arrays["cos"], SCORE_TOLERANCE)
    require_close("sin", sin[0], arrays["sin"], SCORE_TOLERANCE)
    return "base and tables"


CHECKS: dict[str, Callable[[Path], str]] = {
    "stft_ema.npz": check_stft_ema,
    "bam.npz": check_bam,
    "selection.npz": check_selection,
    "recency.npz": check_recency,
    "rope_llama3_x4.npz": check_rope,
}

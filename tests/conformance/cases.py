"""End-to-end cases: prefill in chunks, eviction, greedy decoding, statistics of the full-cache pass.

A case is a folder with meta.json, model.safetensors, run.npz and, as far as they exist, updates.npz, features.npz and
final_cache.npz (tests/golden/README.md has the format).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from workers.decoding import decode_greedily
from workers.language_model import ntk_rope_theta
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.namm import Namm, StatisticsPass
from workers.memory.specs import NammSettings, Normalisation

SCORE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4


class MismatchError(Exception):
    """What differs, in one line."""


def on_host(values: Any) -> Any:
    """Numbers that numpy can read, from whichever device they lie on."""
    return values.cpu() if isinstance(values, torch.Tensor) else values


def require_equal(name: str, ours: Any, golden: Any) -> None:
    """Exact equality of two integer arrays, shapes included."""
    ours, golden = np.asarray(on_host(ours)), np.asarray(golden)
    if ours.shape != golden.shape:
        raise MismatchError(f"{name}: shape {ours.shape}, golden {golden.shape}")
    if not np.array_equal(ours, golden):
        raise MismatchError(f"{name}: {np.count_nonzero(ours != golden)} of {golden.size} entries differ")


def require_close(name: str, ours: Any, golden: Any, tolerance: float) -> float:
    """Largest difference, relative to the golden magnitude where that is above 1; an error above ``tolerance``."""
    ours, golden = np.asarray(on_host(ours), dtype=np.float64), np.asarray(golden, dtype=np.float64)
    if ours.shape != golden.shape:
        raise MismatchError(f"{name}: shape {ours.shape}, golden {golden.shape}")
    error = float((np.abs(ours - golden) / np.maximum(np.abs(golden), 1.0)).max(initial=0.0))
    if not error <= tolerance:
        raise MismatchError(f"{name}: off by {error:.2e}, allowed {tolerance:.0e}")
    return error


@dataclass
class Recorder:
    """Listens to the updates of one run."""

    memory: Namm
    updates: dict[tuple[int, int], tuple[LayerView, Decision]] = field(default_factory=dict)

    def __call__(self, view: LayerView, decision: Decision) -> None:
        at = view.seen_tokens // self.memory.settings.update_every - 1, view.layer
        self.updates[at] = copied(view), copied(decision)


def copied(record: Any) -> Any:
    """A dataclass with copies of its tensors, where they are: a cache may write over its own."""
    tensors = {f.name: value for f in fields(record) if isinstance(value := getattr(record, f.name), torch.Tensor)}
    return replace(record, **{name: tensor.clone() for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Case:
    """One golden run."""

    folder: Path
    meta: dict[str, Any]
    run: dict[str, np.ndarray]
    model: LlamaForCausalLM

    @staticmethod
    def load(folder: Path, device: str = "cpu") -> Case:
        meta = json.loads((folder / "meta.json").read_text())
        llama = dict(meta["llama"])
        theta, scaling = float(llama.pop("rope_theta")), meta["rope_scaling"]
        if scaling is not None:
            head_size = llama["hidden_size"] // llama["num_attention_heads"]
            theta = ntk_rope_theta(theta, head_size, scaling["factor"], scaling["alpha"])
        config = LlamaConfig(**llama, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=True)
        model = LlamaForCausalLM(config).eval()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        with np.load(folder / "run.npz") as arrays:
            return Case(folder, meta, dict(arrays), model.to(device))

    @property
    def settings(self) -> NammSettings:
        meta = self.meta
        return NammSettings(
            update_every=meta["memory_policy_fixed_delay"],
            window=meta["n_fft"],
            hop=meta["hop"],
            ema=meta["ema"],
            recency_size=meta["recency_dim"],
            max_frequency=meta["recency_max_freq"],
            cap=meta["cache_size"],
        )

    @property
    def chunk(self) -> int:
        return int(self.meta["max_new_tokens"] or self.meta["memory_policy_fixed_delay"])

    def memory(self) -> Namm:
        statistics = Normalisation(
            mean=tuple(self.run["norm_mean"].tolist()), variance=tuple(self.run["norm_var"].tolist())
        )
        return Namm(self.settings, torch.from_numpy(self.run["genome"])[None], statistics)

    def decode(self, memory: Memory, prompt: np.ndarray, new: int, listener: Any = None) -> tuple[Any, MemoryCache]:
        with memory_attached(self.model, memory, listener) as cache:
            ids = torch.from_numpy(prompt).long()[None].to(self.model.device)
            result = decode_greedily(self.model, cache, ids, max_new_tokens=new, stop_ids=(), prefill_tokens=self.chunk)
        return result, cache

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / name
        if not path.exists():
            return {}
        with np.load(path) as arrays:
            return dict(arrays)


def check_updates(case: Case, recorder: Recorder) -> float:
    """Retained positions exactly; importances, features and moving averages closely."""
    worst = 0.0
    golden, features = case.arrays("updates.npz"), case.arrays("features.npz")
    for (update, layer), (view, decision) in sorted(recorder.updates.items()):
        at = f"u{update}_l{layer}"
        positions = view.positions[0].cpu().numpy()
        require_equal(f"{at} positions before", positions, golden[f"{at}_pos_before"])
        worst = max(
            worst, require_close(f"{at} scores", decision.importance[0], golden[f"{at}_scores"], SCORE_TOLERANCE)
        )
        keep = decision.keep[0].cpu().numpy()
        require_equal(f"{at} kept per head", keep.sum(1), [golden[f"{at}_retained_pos"].shape[1]] * len(keep))
        require_equal(f"{at} retained", positions[keep].reshape(len(keep), -1), golden[f"{at}_retained_pos"])
        if f"{at}_features" in features:
            ours = recorder.memory.features(view)[0]
            require_close(f"{at} features", ours, features[f"{at}_features"], SCORE_TOLERANCE)
            bins = case.settings.num_bins
            require_close(f"{at} ema", view.trace[0, ..., :bins], features[f"{at}_ema"], SCORE_TOLERANCE)
    require_equal("number of updates", len({update for update, _ in recorder.updates}), len(case.run["update_at"]))
    return worst


def check_final_cache(case: Case, cache: MemoryCache) -> None:
    """Tokens held, and the cached keys and values of the layers that the golden data has."""
    held = cache.held_tokens()[0].cpu().numpy()
    golden = case.run["final_cache_sizes"]
    require_equal("final cache sizes", held, np.repeat(golden[:, None], held.shape[1], axis=1))
    for name, values in case.arrays("final_cache.npz").items():
        kind, layer = name.split("_l")
        slots = cache.layers[int(layer)].held.at_work()
        require_close(f"final {name}", (slots.keys if kind == "k" else slots.values)[0], values, SCORE_TOLERANCE)


def check_statistics(case: Case) -> None:
    """The statistics of the full-cache pass over the calibration prompts, computed again."""
    memory = StatisticsPass(case.settings)
    for prompt in case.run["calib_ids"]:
        case.decode(memory, prompt, int(case.run["calib_new"]))
    require_equal("norm_num", np.full(case.settings.num_bins, memory.moments.count), case.run["norm_num"])
    require_close("norm_mean", memory.moments.mean, case.run["norm_mean"], SCORE_TOLERANCE)
    require_close("norm_var", memory.moments.variance, case.run["norm_var"], SCORE_TOLERANCE)


def check_case(folder: Path, device: str = "cpu") -> str:
    """Run one case; returns what was compared, raises :class:`MismatchError`."""
    case = Case.load(folder, device)
    memory = case.memory()
    recorder = Recorder(memory)
    result, cache = case.decode(memory, case.run["prompt_ids"], len(case.run["generated_ids"]), recorder)
    score_error = check_updates(case, recorder)
    require_equal("generated ids", result.ids[0], case.run["generated_ids"])
    logit_error = require_close("logits", result.logits[0], case.run["logits"], LOGIT_TOLERANCE)
    check_final_cache(case, cache)
    check_statistics(case)
    return f"{len(recorder.updates)} layer updates exact, scores {score_error:.0e}, logits {logit_error:.0e}"

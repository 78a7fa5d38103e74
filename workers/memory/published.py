"""Checkpoints of the published implementation (``ckpt.pt``): a memory from one, and one from a memory.

A checkpoint is a pickle of tensors: ``evolution_state`` with the search's mean (the genome, spec 6.4) and the feature
statistics among its stored buffers, ``iter_num`` and ``best_val_loss``. No other kind of file in this project has to be
unpickled, so it is read here and nowhere else, by torch's restricted reader: that knows tensors and plain values, runs
nothing, and refuses everything else.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.memory.errors import MemoryFileError
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec, Normalisation

STATE = "evolution_state"
STATISTICS = "stored_buffers_to_save.token_embedding_0_"
"""Where the published configuration keeps the statistics of its spectrogram."""
BEST_STATISTICS = f"best_{STATISTICS}"

CONFIGURED = {"update_every", "hidden_size", "cap"}
"""Settings that its configuration has as well, by other names; all others must be the published ones."""

POPULATION, SIGMA = 32, 0.065
"""Of the published runs: an exported search starts anew from its mean."""
ELITE = POPULATION // 2


class _Ignored:
    """What a number of numpy's is read as, which a recorded score may be; building a real one would trust the file."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


NUMPY_NAMES = (
    *("numpy.dtype", "numpy.dtypes.Float64DType", "numpy.dtypes.Float32DType"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
)


def import_checkpoint(path: str | os.PathLike[str]) -> PretrainedMemory:
    """The memory in a checkpoint: the search's mean, with the statistics that it was evolved under.

    Raises:
        MemoryFileError: it is missing, damaged, no checkpoint of the published implementation, or would run code.
    """
    checkpoint = _read(Path(path))
    state = checkpoint.get(STATE)
    if not isinstance(state, Mapping) or not isinstance(state.get("mean"), Tensor):
        raise MemoryFileError(
            f"{path} is no checkpoint of the published implementation, because it has no {STATE!r} with a 'mean': "
            "name its ckpt.pt or latest.pt"
        )
    try:
        genome = _vector(state["mean"])
        settings = _settings(genome.size)
        normalisation, count = _statistics(state, settings.num_bins)
        origin = {"published": {"iter_num": int(checkpoint.get("iter_num", 0)), "feature_count": count}}
        return PretrainedMemory(NammSpec(settings=settings, normalisation=normalisation), genome, origin)
    except (MemoryFileError, TypeError, ValueError, RuntimeError) as error:
        raise MemoryFileError(
            f"{path} holds no memory of the published architecture ({error}): fetch it again"
        ) from error


def export_checkpoint(memory: PretrainedMemory, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that the published implementation takes as ``init_from``; 70 MB, most of them zeros.

    It has no threshold, so the dial goes into the score's bias. Its search starts anew from the memory.

    Raises:
        MemoryFileError: the published implementation has no such architecture, or the file cannot be written.
    """
    _require_published(memory.spec.settings)
    genome = memory.genome.copy()
    assert isinstance(memory.spec.threshold, float)
    if memory.spec.threshold != 0.0:
        genome[-1] -= np.float32(memory.spec.threshold)
    published = memory.origin.get("published", {})
    state = _search_state(torch.from_numpy(genome))
    if memory.spec.normalisation is not None:
        statistics = _buffers(memory.spec.normalisation, float(published.get("feature_count", 1.0)))
        state |= {f"{prefix}{name}": value for prefix in (STATISTICS, BEST_STATISTICS) for name, value in statistics}
    checkpoint = {STATE: state, "iter_num": int(published.get("iter_num", 1)), "best_val_loss": 0.0}
    _write(Path(path), checkpoint)


def _write(target: Path, checkpoint: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    partial = target.with_name(f"{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
        reason = " ".join(str(error).split())
        raise MemoryFileError(f"cannot write {target} ({reason}): choose another place, or make room") from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in NUMPY_NAMES]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MemoryFileError(
            f"there is no checkpoint {path}: name a ckpt.pt of the published implementation"
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything, and none of it is our fault
        reason = " ".join(str(error).split()) or type(error).__name__
        if "WeightsUnpickler" in reason or "Weights only" in reason:
            reason = "it holds more than tensors and plain values, and what else it holds is not run"
        raise MemoryFileError(f"cannot read {path} ({reason[:300]}): fetch it again from whom you trust") from error
    if not isinstance(checkpoint, Mapping):
        raise MemoryFileError(f"{path} holds a {type(checkpoint).__name__}, no checkpoint: name a ckpt.pt or latest.pt")
    return checkpoint


def _vector(tensor: Any) -> npt.NDArray[np.float32]:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"a tensor is expected where there is {tensor!r}")
    values: npt.NDArray[np.float32] = tensor.detach().to(torch.float32).reshape(-1).contiguous().numpy()
    return values


def _settings(genome_size: int) -> NammSettings:
    """The published ones, with the hidden size that makes a genome so long (spec 4)."""
    features = NammSettings().num_features
    hidden, rest = divmod(genome_size - 3 * features - 1, 5 * features + 3)
    if rest or hidden < 1:
        raise ValueError(f"no scorer over {features} features has {genome_size} numbers; the published one has 4,172")
    return NammSettings(hidden_size=hidden)


def _statistics(state: Mapping[str, Any], num_bins: int) -> tuple[Normalisation | None, float]:
    """Mean and variance by bin, and how many tokens they were taken from."""
    if f"{STATISTICS}output_mean" not in state:
        return None, 0.0
    mean, variance = (_vector(state[f"{STATISTICS}output_{name}"]).tolist() for name in ("mean", "var"))
    normalisation = Normalisation(tuple(mean), tuple(variance))
    if not normalisation.is_sound(num_bins):
        raise ValueError(f"the statistics must be {num_bins} finite means and variances of at least 0")
    count = state.get(f"{STATISTICS}output_num")
    return normalisation, float(count) if isinstance(count, Tensor) else 0.0


def _require_published(settings: NammSettings) -> None:
    wrong = [
        f"{field.name} {getattr(settings, field.name)!r} (published: {field.default!r})"
        for field in dataclasses.fields(settings)
        if field.name not in CONFIGURED and getattr(settings, field.name) != field.default
    ]
    if wrong:
        raise MemoryFileError(
            f"the published implementation has no memory with {', '.join(wrong)}: only a memory evolved with its "
            "settings can be exported"
        )


def _search_state(genome: Tensor) -> dict[str, Tensor]:
    """Everything that the published search insists on: a fresh one around ``genome``."""
    size = len(genome)
    weights = np.log((POPULATION + 1) / 2) - np.log(np.arange(1, POPULATION + 1))
    elite, rest = weights[:ELITE], weights[ELITE:]
    mu, mu_minus = elite.sum() ** 2 / (elite**2).sum(), rest.sum() ** 2 / (rest**2).sum()
    c_1 = 2 / ((size + 1.3) ** 2 + mu)
    c_mu = min(1 - c_1 - 1e-8, 2 * (mu - 2 + 1 / mu) / ((size + 2) ** 2 + mu))
    alpha = min(1 + c_1 / c_mu, 1 + 2 * mu_minus / (mu + 2), (1 - c_1 - c_mu) / (size * c_mu))  # spec 6.3
    scaled = np.where(weights >= 0, weights / elite.sum(), alpha * weights / np.abs(rest).sum())
    truncated = np.where(np.arange(POPULATION) < ELITE, scaled, 0.0)
    identity = torch.eye(size)  # one tensor under three names: it is stored once
    samples = genome.repeat(POPULATION, 1)
    single = {"mu_eff": mu, "sigma": SIGMA, "g": 1.0, "best_fitness": float(torch.finfo(torch.float32).min)}
    return {
        "mean": genome,
        "best_member": genome,
        "evo_path_c": torch.zeros(size),
        "evo_path_sigma": torch.zeros(size),
        "C": identity,
        "sample_C": identity,
        "sample_B": identity,
        "sample_D": torch.ones(size),
        "x": samples,
        "y": torch.zeros_like(samples),
        "weights": torch.from_numpy(scaled).float(),
        "weights_truncated": torch.from_numpy(truncated).float(),
        **{name: torch.tensor(value, dtype=torch.float32) for name, value in single.items()},
    }


def _buffers(normalisation: Normalisation, count: float) -> list[tuple[str, Tensor]]:
    """The published statistics, and beside them those of an evaluation that is not under way."""
    stored = {"mean": torch.tensor(normalisation.mean), "var": torch.tensor(normalisation.variance)}
    stored["num"] = torch.tensor(count)
    return [
        *((f"online_new_output_{name}", torch.zeros_like(value)) for name, value in stored.items()),
        *((f"output_{name}", value) for name, value in stored.items()),
    ]

"""Pictures of a generation, for MLflow's slider: what is kept where, what the memory listens to, how the search stands.

Drawn from the tables alone, so they can be drawn again. Matplotlib is used without its global state, because pictures
are drawn in a thread beside the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.pages.charts import BLUE, GREY, ORANGE, RED, SCALE
from orchestrator.store import Store
from workers.memory.sensitivity import feature_names, feature_sensitivity
from workers.memory.specs import NammSettings

MOST_STEPS = 8
"""Generations of a run that get pictures; a slider with more of them is no easier to read."""

Plot = Callable[[Figure, Store, int, NammSettings], None]


def is_pictured(generation: int, generations: int) -> bool:
    """Whether a generation gets pictures: about eight of a run, the first and the last among them."""
    return generation == generations - 1 or generation % math.ceil(generations / MOST_STEPS) == 0


def draw(store: Store, generation: int, memory: NammSettings, to: Path) -> dict[str, Path]:
    """Draw all pictures of a generation; returns the files by their keys in MLflow.

    Args:
        store: of the run; must have the tables of all generations up to this one.
        generation: 0 or more.
        memory: the architecture of the memory.
        to: folder for the files.

    Raises:
        RunFolderError: a table is not there.
    """
    to.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for key, plot in PLOTS.items():
        if plot is _features and not memory.network_size:
            continue  # a heuristic chooses, and reads no features
        figure = Figure(figsize=(8, 5), dpi=90)  # fixed margins: to find the best ones takes as long as to draw
        figure.subplots_adjust(left=0.11 if plot is not _features else 0.2, right=0.97, bottom=0.11, top=0.92)
        FigureCanvasAgg(figure)
        plot(figure, store, generation, memory)
        drawn[key] = to / f"{key.replace('/', '-')}-{generation:06d}.png"
        figure.savefig(drawn[key])
    return drawn


def _kept(figure: Figure, store: Store, generation: int, _memory: NammSettings) -> None:
    evictions = store.table("evictions", [generation])
    layers, heads, held, seen = (
        evictions.column(name).to_numpy() for name in ("layer", "kv_head", "held_tokens", "seen_tokens")
    )
    sums = np.zeros((2, layers.max() + 1, heads.max() + 1))
    np.add.at(sums[0], (layers, heads), held / seen)
    np.add.at(sums[1], (layers, heads), 1)
    kept = sums[0] / sums[1]
    axes = figure.add_subplot()
    image = axes.imshow(kept, cmap=SCALE, aspect="auto", vmin=0, vmax=max(0.01, kept.max()))
    figure.colorbar(image, label="tokens held / tokens seen")
    if kept.size <= 64:
        for (layer, head), value in np.ndenumerate(kept):
            ink = "black" if value > kept.max() / 2 else "white"
            axes.text(head, layer, f"{value:.0%}", ha="center", va="center", color=ink)
    _ticks(axes, kept.shape)
    axes.set(xlabel="KV head", ylabel="layer", title=f"Kept by layer and KV head, generation {generation}")


def _ticks(axes: Any, shape: tuple[int, ...]) -> None:
    for axis, count in ((axes.yaxis, shape[0]), (axes.xaxis, shape[1])):
        axis.set_ticks(range(0, count, max(1, count // 16)))


def _features(figure: Figure, store: Store, generation: int, memory: NammSettings) -> None:
    sensitivity = feature_sensitivity(memory, _genomes(store, generation).mean(axis=0))
    axes = figure.add_subplot()
    places = np.arange(len(sensitivity))
    colors = [ORANGE] * memory.recency_size + [BLUE] * (len(sensitivity) - memory.recency_size)
    axes.barh(places, sensitivity, color=colors)
    axes.set_yticks(places, feature_names(memory), fontsize=7)
    axes.invert_yaxis()
    axes.set(
        xlabel="mean |change of importance| per unit of the feature",
        title=f"What the mean memory listens to, generation {generation}",
    )


def _spread(figure: Figure, store: Store, generation: int, _memory: NammSettings) -> None:
    genomes = _genomes(store, generation).astype(np.float64)
    fitness = -store.table("candidates", [generation]).column("loss").to_numpy()
    centred = genomes - genomes.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    shares = strengths**2 / max(float((strengths**2).sum()), 1e-30)
    axes = figure.add_subplot()
    points = axes.scatter(left[:, 0] * strengths[0], left[:, 1] * strengths[1], c=fitness, cmap=SCALE, s=60, ec=GREY)
    figure.colorbar(points, label="fitness (of full, less the price)")
    axes.set(
        xlabel=f"first principal direction ({shares[0]:.0%} of the variance), genome units",
        ylabel=f"second ({shares[1]:.0%}), genome units",
        title=f"Spread of the population, generation {generation}: standard deviation {centred.std():.4f}",
    )


def _bands(figure: Figure, store: Store, generation: int, _memory: NammSettings) -> None:
    fitness = _by_generation(store, generation, "loss", -1.0)
    quantiles = np.quantile(fitness, [0.1, 0.5, 0.9, 1.0], axis=1)
    axes = figure.add_subplot()
    steps = np.arange(len(fitness))
    axes.fill_between(steps, quantiles[0], quantiles[2], color=GREY, alpha=0.3, label="10th to 90th percentile")
    axes.plot(steps, quantiles[1], color=BLUE, label="median", marker="o" if len(steps) == 1 else "")
    axes.plot(steps, quantiles[3], color=ORANGE, label="best", marker="o" if len(steps) == 1 else "")
    axes.legend(loc="lower right")
    axes.set(xlabel="generation", ylabel="fitness (of full, less the price)", title=f"Fitness up to {generation}")


def _pareto(figure: Figure, store: Store, generation: int, _memory: NammSettings) -> None:
    kept, ratio = (_by_generation(store, generation, name) for name in ("kept_ratio", "ratio"))
    steps = np.repeat(np.arange(len(kept))[:, None], kept.shape[1], axis=1)
    axes = figure.add_subplot()
    # Flat, because Matplotlib takes a row of three or four numbers for one colour.
    points = axes.scatter(
        kept.ravel(), ratio.ravel(), c=steps.ravel(), cmap=SCALE, s=18, vmin=0, vmax=max(1, generation)
    )
    figure.colorbar(points, label="generation")
    order = np.lexsort((-ratio.ravel(), kept.ravel()))
    best = np.maximum.accumulate(ratio.ravel()[order])
    is_better = np.diff(best, prepend=-np.inf) > 0
    axes.step(kept.ravel()[order][is_better], best[is_better], where="post", color=RED, label="frontier")
    axes.legend(loc="lower right")
    axes.set(
        xlabel="tokens held / tokens seen",
        ylabel="score / full cache's",
        title=f"Score against memory up to {generation}",
    )


def _genomes(store: Store, generation: int) -> npt.NDArray[np.float32]:
    column = store.table("genomes", [generation]).column("genome").combine_chunks()
    genomes: npt.NDArray[np.float32] = column.flatten().to_numpy().reshape(len(column), -1)
    return genomes


def _by_generation(store: Store, generation: int, column: str, scale: float = 1.0) -> npt.NDArray[np.float64]:
    """``[generations, population]``."""
    values = store.table("candidates", range(generation + 1)).column(column).to_numpy() * scale
    found: npt.NDArray[np.float64] = values.reshape(generation + 1, -1)
    return found


PLOTS: Mapping[str, Plot] = MappingProxyType(
    {
        "cache/kept_ratio": _kept,
        "memory/importance_by_feature": _features,
        "search/population": _spread,
        "fitness/bands": _bands,
        "fitness/pareto": _pareto,
    }
)
"""By key in MLflow, where each has a slider over generations."""

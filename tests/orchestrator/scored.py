"""Scored units without a model: every number is a function of what identifies its row."""

import numpy as np

from workers.memory.specs import NammSpec
from workers.unit import FeatureStatistics, ScoredUnit, Unit

LAYERS, KV_HEADS, SEEN_TOKENS = 2, 3, 100


def row_scores(task: str, candidate: int, example: int) -> tuple[float, float, np.ndarray]:
    """Exact, graded and held tokens ``[layers, kv_heads]`` of one candidate on one example."""
    rng = np.random.default_rng([len(task), ord(task[-1]), candidate, example])
    return rng.integers(0, 5) / 4, rng.random(), rng.integers(1, SEEN_TOKENS, size=(LAYERS, KV_HEADS))


def score_unit(unit: Unit) -> ScoredUnit:
    rows = [(candidate, example) for candidate in unit.candidates for example in unit.examples]
    scores = [row_scores(unit.task, *row) for row in rows]
    return ScoredUnit(
        key=unit.key,
        generation=unit.generation,
        memory_name=unit.memory_name,
        task=unit.task,
        split=unit.split,
        candidate=np.array([candidate for candidate, _ in rows], dtype=np.int32),
        example=np.array([example for _, example in rows], dtype=np.int32),
        exact=np.array([exact for exact, _, _ in scores]),
        graded=np.array([graded for _, graded, _ in scores]),
        seen_tokens=np.full(len(rows), SEEN_TOKENS, dtype=np.int32),
        held_tokens=np.array([held for _, _, held in scores], dtype=np.int32),
        mean_bytes=np.zeros(len(rows)),
        peak_bytes=np.zeros(len(rows), dtype=np.int64),
        state_bytes=np.zeros(len(rows), dtype=np.int64),
        seconds=0.0,
        statistics=_statistics(unit) if unit.record_statistics else None,
    )


def _statistics(unit: Unit) -> FeatureStatistics:
    pool = feature_pool(unit)
    return FeatureStatistics(count=len(pool), mean=pool.mean(axis=0), variance=pool.var(axis=0))


def feature_pool(unit: Unit) -> np.ndarray:
    """The features ``[tokens, features]`` that a full-cache pass met in a unit."""
    rng = np.random.default_rng([ord(unit.task[-1]), *unit.examples])
    num_features = unit.memory.settings.num_features if isinstance(unit.memory, NammSpec) else 4
    return rng.normal(loc=unit.examples[0], size=(5 + len(unit.examples), num_features))

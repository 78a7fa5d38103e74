"""Answers to common questions, as views over a run's tables; ``namm query`` and the report see them beside the tables.

A view is plain SQL over tables (and views before it), so anything that reads Parquet with SQL can have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, get_args

from tasks.corpus_task import CorpusTaskKind
from tasks.registry import TaskKind

Z = 1.96
"""Standard errors on either side of a mean that make a 95 % interval."""


SIZED = "|".join((*get_args(TaskKind), *get_args(CorpusTaskKind)))
"""Kinds of tasks whose examples are made up at any length: all of one length stand together, as in ``summary.json``."""


class View(NamedTuple):
    """A question and its answer."""

    meaning: str
    """One row per what, and what is in it."""
    sql: str


def _survival(*columns: str) -> str:
    """Share of tokens kept, with a 95 % interval: a ratio of sums over texts, which are drawn, not their tokens."""
    by = ", ".join(columns)
    return f"""
WITH texts AS (
  SELECT {by}, task, example, sum(kept_tokens) AS kept, sum(judged_tokens) AS judged,
    sum(judged_tokens) / count(DISTINCT (layer, kv_head)) AS tokens
  FROM survival GROUP BY {by}, task, example
), rates AS (SELECT {by}, sum(kept) / sum(judged) AS rate FROM texts GROUP BY {by})
SELECT {by}, CAST(sum(tokens) AS BIGINT) AS tokens, count(*) AS texts, any_value(rate) AS survival,
  CASE WHEN count(*) > 1
    THEN {Z} * sqrt(count(*) / (count(*) - 1) * sum((kept - rate * judged) ** 2)) / sum(judged) END AS margin
FROM texts JOIN rates USING ({by}) GROUP BY {by}"""


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "fitness": View(
            "generation: fitness (minus the loss) of its candidates, best to worst, and what they kept",
            """
SELECT generation, max(-loss) AS best, quantile_cont(-loss, 0.9) AS q90, median(-loss) AS median,
  avg(-loss) AS mean, quantile_cont(-loss, 0.1) AS q10, min(-loss) AS worst,
  avg(kept_ratio) AS kept_ratio, avg(ratio) AS ratio
FROM candidates GROUP BY generation""",
        ),
        "kept_by_layer": View(
            "generation, memory, split and layer: mean share of the tokens seen that its KV heads hold in the end",
            """
SELECT generation, memory_name, split, layer, avg(held_tokens / seen_tokens) AS kept_ratio, count(*) AS num_rows
FROM evictions GROUP BY generation, memory_name, split, layer""",
        ),
        "kept_by_head": View(
            "generation, memory, split, layer and KV head: the same, head by head",
            """
SELECT generation, memory_name, split, layer, kv_head, avg(held_tokens / seen_tokens) AS kept_ratio,
  count(*) AS num_rows
FROM evictions GROUP BY generation, memory_name, split, layer, kv_head""",
        ),
        "frontier": View(
            "candidate that no other beats in both score (over the full cache's) and kept ratio",
            """
SELECT generation, candidate, ratio, kept_ratio FROM (
  SELECT *, max(ratio) OVER (ORDER BY kept_ratio, ratio DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  FROM candidates)
WHERE before IS NULL OR ratio > before""",
        ),
        "heldout_examples": View(
            "memory, task, held-out example of the last evaluation: scores beside the full cache's, what was held",
            f"""
WITH last AS (SELECT max(generation) AS generation FROM evaluations WHERE split = 'heldout'),
rows AS (
  SELECT *, CASE WHEN isnan(graded) THEN exact ELSE graded END AS score
  FROM evaluations WHERE split = 'heldout' AND generation = (SELECT generation FROM last)
  -- A finished run that was resumed with another cut of its units has every example in both.
  QUALIFY row_number() OVER (PARTITION BY memory_name, task, example ORDER BY unit) = 1
), held AS (
  SELECT unit, memory_name, task, example, avg(held_tokens) AS held_tokens
  FROM evictions WHERE split = 'heldout' AND generation = (SELECT generation FROM last)
  GROUP BY unit, memory_name, task, example
)
SELECT rows.memory_name, task, example,
  CASE WHEN regexp_full_match(task, '({SIZED})-[0-9]+')
    THEN 'generated, ' || regexp_extract(task, '[0-9]+$') || ' tokens'
    ELSE task END AS benchmark,
  rows.exact, rows.graded, rows.score, whole.score AS full_score,
  held_tokens / greatest(whole.seen_tokens, rows.seen_tokens) AS kept_ratio,
  rows.mean_bytes, rows.peak_bytes, rows.state_bytes
FROM rows JOIN held USING (unit, memory_name, task, example)
  JOIN rows AS whole USING (task, example) WHERE whole.memory_name = 'full'""",
        ),
        "comparison": View(
            "benchmark and memory: mean scores, share of the full cache's score with a 95 % margin, and what was held",
            f"""
WITH tasks AS (
  SELECT benchmark, memory_name, task, count(*) AS n, avg(exact) AS exact, avg(graded) AS graded, avg(score) AS score,
    avg(full_score) AS full_score, var_samp(score) AS variance, var_samp(full_score) AS full_variance,
    covar_samp(score, full_score) AS covariance, avg(kept_ratio) AS kept_ratio, avg(mean_bytes) AS mean_bytes,
    avg(peak_bytes) AS peak_bytes, avg(state_bytes) AS state_bytes
  FROM heldout_examples GROUP BY benchmark, memory_name, task
), ratios AS (
  SELECT benchmark, memory_name, avg(score) / avg(full_score) AS ratio FROM tasks GROUP BY benchmark, memory_name
)
SELECT benchmark, memory_name, CAST(sum(n) AS BIGINT) AS examples, avg(exact) AS exact, avg(graded) AS graded,
  any_value(ratio) AS ratio,
  {Z} * sqrt(greatest(0, sum((variance + ratio ** 2 * full_variance - 2 * ratio * covariance) / n)))
    / count(*) / avg(full_score) AS margin,
  avg(kept_ratio) AS kept_ratio, avg(mean_bytes) AS mean_bytes, avg(peak_bytes) AS peak_bytes,
  avg(state_bytes) AS state_bytes
FROM tasks JOIN ratios USING (benchmark, memory_name) GROUP BY benchmark, memory_name""",
        ),
        "survival_by_kind": View(
            "memory, language and kind of token: share of the tokens that the heads hold after the last update",
            _survival("memory_name", "language", "kind"),
        ),
        "survival_by_head": View(
            "memory, language, kind of token, layer and KV head: the same, head by head",
            _survival("memory_name", "language", "kind", "layer", "kv_head"),
        ),
        "losses_of_workers": View(
            "name (deaths, retries, units_set_aside): how many in all; every attempt of a driver counts from 0",
            """
SELECT replace(key, 'cluster/', '') AS name, CAST(sum(most) AS BIGINT) AS number FROM (
  SELECT key, attempt, CASE WHEN key = 'cluster/units_set_aside' THEN sum(value) ELSE max(value) END AS most
  FROM metrics WHERE key IN ('cluster/deaths', 'cluster/retries', 'cluster/units_set_aside') GROUP BY key, attempt)
GROUP BY key""",
        ),
    }
)
"""By name, in an order in which each needs only the tables and what stands before it."""

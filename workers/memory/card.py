"""The model card of a saved memory: made from what the memory itself says about its origin, and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workers.memory.specs import NammSpec

MARK = "<!-- made by namm from config.json -->"
"""Stands in every card, so that a README of somebody's own is never replaced."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``owner/name``, which may also be a folder."""

NOTES = (
    "Scores are those of the tasks and lengths in the table. How much can be forgotten without loss depends on model, "
    "task and length: measure on your own before you rely on it.",
    "The interval is a 95 % bootstrap over examples. It says nothing about another seed of the search, which gives "
    "another memory.",
    "Every rival holds as many bytes of keys and values as the memory; of its splits over layers and heads the best on "
    "these very examples is shown, which favours the rivals a little.",
    "*State* is what a memory keeps beside the cache. For this one that is a running spectrum of each held token's "
    "attention, and it is not part of the kept bytes.",
)


COUNTED = ("length", "kept_ratio", "mean_bytes", "state_bytes", "num_examples")
MEASURED = tuple(
    f"{figure}{end}" for figure in ("exact", "exact_ratio", "graded_ratio") for end in ("", "_low", "_high")
)
"""Figures of a row: these may be missing, those not."""


def card(spec: NammSpec, origin: Mapping[str, Any], name: str) -> str:
    """README.md in Hugging Face's format.

    Args:
        spec: of the memory.
        origin: what it says about where it came from; what is missing is left out of the card.
        name: hub id or folder, as it is to be loaded.
    """
    sections = [
        _front_matter(origin),
        MARK,
        "# A Neural Attention Memory Model",
        f"A network of {spec.settings.genome_size:,} numbers that decides, for every layer and KV head of a frozen "
        "transformer, which tokens its KV cache keeps. It was evolved, not trained "
        "([arXiv 2410.13166](https://arxiv.org/abs/2410.13166)). The files hold numbers only: nothing of them is "
        "executed.",
        _usage(name, origin),
        _evaluation(origin),
        "## Where it comes from\n\n" + _pairs(_facts(spec, origin)),
        "## To be honest about\n\n" + "\n".join(f"- {note}" for note in NOTES) if _table(origin) else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(origin: Mapping[str, Any]) -> str:
    lines = ["library_name: namm", "tags: [namm, kv-cache, custom_generate]"]
    model = str(origin.get("model", ""))
    if HUB_ID.fullmatch(model):
        lines.append(f"base_model: {model}")
    return "\n".join(["---", *lines, "---"])


def _usage(name: str, origin: Mapping[str, Any]) -> str:
    model = origin.get("model")
    known = f" It was evolved on `{model}`; other models are worth a try, and a measurement." if model else ""
    return (
        f"## Use\n\n`model` is any causal language model of transformers.{known}\n\n"
        "```python\n"
        "from namm import Memory\n\n"
        f'memory = Memory.from_pretrained("{name}")\n'
        "model.generate(**inputs, past_key_values=memory.cache(model))\n"
        "```\n\n"
        "`memory.at(kept_ratio=0.25, model=model, prompts=prompts)` keeps more or less than it was evolved for."
    )


def _table(origin: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rows that a card shows: none where they are not ours, because an origin may hold anything."""
    rows = origin.get("table")
    return rows if isinstance(rows, list | tuple) and all(map(_is_ours, rows)) else ()


def _is_ours(row: object) -> bool:
    if not isinstance(row, Mapping) or "name" not in row:
        return False
    measured = [row[key] for key in MEASURED if row.get(key) is not None]
    return all(isinstance(value, int | float) for value in [*(row.get(key) for key in COUNTED), *measured])


def _evaluation(origin: Mapping[str, Any]) -> str:
    rows = _table(origin)
    if not rows:
        return "## Evaluation\n\nNone is recorded."
    has_tasks = any(row.get("task") for row in rows)
    of_full = "graded" if any(row.get("graded_ratio") is not None for row in rows) else "exact"
    titles = f"tokens | memory | exact | {of_full}, of full | kept | mean KB | state KB | examples"
    lines = [
        "## Evaluation",
        "",
        "On held-out examples. *Exact* is the share of questions answered exactly, or the task's own score; *graded* "
        "the probability of the right answers over the full cache's; *kept* is tokens held over those seen in the end.",
        "",
        f"{'| task ' * has_tasks}| {titles} |",
        f"{'|---' * has_tasks}|---:|---|---|---|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_row(row, f"{of_full}_ratio", has_tasks=has_tasks) for row in rows)])


def _row(row: Mapping[str, Any], ratio: str, *, has_tasks: bool) -> str:
    def interval(key: str, form: str) -> str:
        ends = [row.get(name) for name in (key, f"{key}_low", f"{key}_high")]
        value, low, high = ("–" if end is None else format(end, form) for end in ends)  # not measured
        return value if low == high else f"{value} ({low}–{high})"

    cells = [
        *([row.get("task") or "generated"] if has_tasks else []),
        f"{row['length']:,}",
        f"**{row['name']}**" if row["name"] == "namm" else str(row["name"]),
        interval("exact", ".3f"),
        interval(ratio, ".1%"),
        f"{row['kept_ratio']:.1%}",
        f"{row['mean_bytes'] / 1024:,.0f}",
        f"{row['state_bytes'] / 1024:,.0f}",
        str(row["num_examples"]),
    ]
    return f"| {' | '.join(cells)} |"


def _facts(spec: NammSpec, origin: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    settings = spec.settings
    yield "updates", f"every {settings.update_every} tokens; heads {settings.heads}; cap {settings.cap or 'none'}"
    yield "dial", f"keeps an importance of at least {spec.threshold} (evolved, and published: 0.0)"
    for key, value in origin.items():
        if key not in ("table", "dial") and value is not None:
            yield key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else value
    if isinstance(dial := origin.get("dial"), Mapping):
        yield "turned", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in dial.items())


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_one_line(value)} |" for name, value in pairs)])


def _one_line(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())

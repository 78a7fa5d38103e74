"""The tables that a run leaves behind, declared once.

A run folder holds them under ``tables/``, one file per generation, fit for pyarrow, polars, DuckDB and pandas::

    tables/candidates/generation=000012.parquet    what the search was told
    tables/genomes/generation=000012.parquet       what the search had proposed
    tables/units/generation=000012.parquet         work as it was dispatched, with its wall-clock time
    tables/evaluations/generation=000012.parquet   scores and sizes of every candidate on every example
    tables/evictions/generation=000012.parquet     tokens kept by every layer and KV head
    tables/<name>.parquet                          results that belong to no generation, like ``heldout``

=============  =================================================  ==================================================
table          one row per                                        joins with
=============  =================================================  ==================================================
candidates     generation, candidate                              genomes: generation, candidate
genomes        generation, candidate                              candidates: generation, candidate
units          unit                                               evaluations and evictions: unit
evaluations    unit, candidate, example                           evictions: unit, candidate, example
evictions      unit, candidate, example, layer, kv_head           evaluations: unit, candidate, example
=============  =================================================  ==================================================

Generation -1 is the pass that scores the full cache on the whole pool; evaluations of finished memories stand under the
generation after the last. ``memory_name`` and ``split`` tell such rows from those that made up the fitness. Each column
carries its meaning and unit in its field metadata (``schema.field("loss").metadata``), each file the schema version.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
"""Raised whenever a column changes its name, type, unit or meaning."""

VERSION_KEY = b"namm.schema_version"
"""Where a file's metadata say which version it was written with."""


_TEXT = pa.large_string()  # 32-bit offsets would end at 40 million rows of unit keys


def _column(name: str, kind: pa.DataType, meaning: str, unit: str = "", *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning, "unit": unit})


_GENERATION = _column("generation", pa.int32(), "round of evolution, -1 for the full-cache pass")
_CANDIDATE = _column("candidate", pa.int32(), "row of the population, from 0")

_IDENTITY = (
    _column("unit", _TEXT, "key of the unit that the row came with"),
    _GENERATION,
    _column("memory_name", _TEXT, "namm, full, or the name of a rival"),
    _column("task", _TEXT, "benchmark"),
    _column("split", _TEXT, "train: may enter the fitness; heldout: only reported"),
)

_SEEN_TOKENS = _column("seen_tokens", pa.int32(), "read by the model by the end of the example", "tokens")

EVALUATION_COLUMNS = (
    _CANDIDATE,
    _column("example", pa.int32(), "index of the prompt within its task and split"),
    _column("exact", pa.float64(), "share of the example's questions answered exactly", "0 to 1, higher is better"),
    _column("graded", pa.float64(), "mean probability of the gold answers", "0 to 1, higher is better"),
    _SEEN_TOKENS,
    _column("mean_bytes", pa.float64(), "cached keys and values, averaged over the tokens read", "bytes"),
    _column("peak_bytes", pa.int64(), "cached keys and values at the worst moment", "bytes"),
    _column("state_bytes", pa.int64(), "the memory's own state at the end of the example", "bytes"),
)
"""One row per (candidate, example) of a unit; the arrays of a ``ScoredUnit`` under the same names."""

CANDIDATES = pa.schema(
    [
        _GENERATION,
        _CANDIDATE,
        _column("loss", pa.float64(), "what the search was told", "lower is better"),
        _column("ratio", pa.float64(), "score over the full-cache score, mean over tasks", "1 = full cache"),
        _column("exact", pa.float64(), "share of questions answered exactly, mean over tasks", "0 to 1"),
        _column("graded", pa.float64(), "mean probability of the gold answers, mean over tasks", "0 to 1"),
        _column("kept_ratio", pa.float64(), "tokens held over tokens seen, over layers and KV heads", "0 to 1"),
    ]
)

UNITS = pa.schema(
    [
        *_IDENTITY,
        _column("seconds", pa.float64(), "wall-clock time in the worker", "s"),
        _column(
            "is_declared", pa.bool_(), "set aside after failing on every attempt; its scores are declared, not measured"
        ),
        _column("num_layers", pa.int32(), "layers of the model", "layers"),
        _column("num_kv_heads", pa.int32(), "KV heads of a layer", "heads"),
        _column("statistics_count", pa.int64(), "feature rows pooled, null where not gathered", nullable=True),
        _column("statistics_mean", pa.list_(pa.float64()), "mean by feature", nullable=True),
        _column("statistics_variance", pa.list_(pa.float64()), "population variance by feature", nullable=True),
    ]
)

EVALUATIONS = pa.schema([*_IDENTITY, *EVALUATION_COLUMNS])

EVICTIONS = pa.schema(
    [
        *_IDENTITY,
        _CANDIDATE,
        _column("example", pa.int32(), "index of the prompt within its task and split"),
        _column("layer", pa.int32(), "layer of the model, from 0"),
        _column("kv_head", pa.int32(), "KV head of the layer, from 0"),
        _SEEN_TOKENS,
        _column("held_tokens", pa.int32(), "in the cache at the end of the example", "tokens"),
    ]
)

_TEXT_NUMBER = _column("text", pa.int32(), "number of the text among those that were traced, from 0")
_POSITION = _column("position", pa.int32(), "place of the token in the text, from 0", "tokens")
_LAYER = _column("layer", pa.int32(), "layer of the model, from 0")
_KV_HEAD = _column("kv_head", pa.int32(), "KV head of the layer, from 0")

TRACES = pa.schema(
    [
        _TEXT_NUMBER,
        _column("update", pa.int32(), "number of the update, from 0"),
        _column("update_tokens", pa.int32(), "read by the model by then", "tokens"),
        _LAYER,
        _KV_HEAD,
        _POSITION,
        _column("importance", pa.float32(), "what the memory thought of the token; its own scale, higher is kept"),
        _column("is_kept", pa.bool_(), "false: this head dropped the token at this update"),
    ]
)
"""What ``namm explain`` notes: one row per update, layer, KV head, and token held before it."""

TRACED_TOKENS = pa.schema(
    [
        _TEXT_NUMBER,
        _POSITION,
        _column("token_id", pa.int64(), "id of the token in the model's vocabulary"),
        _column("start", pa.int32(), "first character in the text", "characters"),
        _column("stop", pa.int32(), "character after the last", "characters"),
        _column("token", _TEXT, "the characters; empty for special tokens"),
        _column("kind", _TEXT, "what it is, by the language of the text (tasks/token_kinds.py)"),
        _column("is_judged", pa.bool_(), "read before the last update; nobody has chosen from the others"),
        _column("held_heads", pa.int32(), "KV heads of all layers that hold it in the end", "heads"),
        _column("lifetime", pa.float64(), "updates outlived over updates faced, mean over heads; NaN: none", "0 to 1"),
    ]
)
"""One row per token of a traced text; joins with ``traces`` on text and position."""

SURVIVAL = pa.schema(
    [
        _column("memory_name", _TEXT, "namm, or a rival that holds as many tokens in every head"),
        _column("task", _TEXT, "benchmark, or name of the text"),
        _column("example", pa.int32(), "index of the prompt within its task, or number of the text"),
        _column("language", _TEXT, "python, prose or facts: which kinds there are"),
        _column("kind", _TEXT, "what the tokens are (tasks/token_kinds.py)"),
        _LAYER,
        _KV_HEAD,
        _column("judged_tokens", pa.int64(), "of this kind, read before the last update", "tokens"),
        _column("kept_tokens", pa.int64(), "of those, held by this head after the last update", "tokens"),
    ]
)
"""Forgetting by kind: one row per memory, example, kind, layer and KV head."""

METRICS = pa.schema(
    [
        _GENERATION,
        _column("attempt", pa.int32(), "opening of the run by a driver, from 1; some counters begin anew with each"),
        _column("timestamp_ms", pa.int64(), "when the generation was complete, since 1970", "ms"),
        _column("key", _TEXT, "name of the metric, as MLflow shows it"),
        _column("value", pa.float64(), "its value; by the name: seconds, bytes, ratios, counts"),
    ]
)
"""One row per generation and metric, from the journal."""

SETTINGS = pa.schema([_column("key", _TEXT, "dotted name"), _column("value", _TEXT, "as JSON")])
"""One row per setting of the run."""

ONCE = {
    "survival": SURVIVAL,
    "traces": TRACES,
    "traced_tokens": TRACED_TOKENS,
    "metrics": METRICS,
    "settings": SETTINGS,
}
"""Tables that belong to no generation: what the report has found out, and what the journal says."""


def genomes_schema(genome_size: int) -> pa.Schema:
    """Schema of the ``genomes`` table: the width of its list is the length of a genome."""
    genome = _column("genome", pa.list_(pa.float32(), genome_size), "parameters of the memory (spec 4)")
    return pa.schema([_GENERATION, _CANDIDATE, genome])


def empty(name: str) -> pa.Table:
    """A table of ``PARTITIONED`` or ``ONCE`` without rows."""
    return (genomes_schema(0) if name == "genomes" else {**_FIXED, **ONCE}[name]).empty_table()


_FIXED = {"candidates": CANDIDATES, "units": UNITS, "evaluations": EVALUATIONS, "evictions": EVICTIONS}

PARTITIONED = ("candidates", "genomes", "units", "evaluations", "evictions")
"""Tables with one file per generation."""


def encode(table: pa.Table) -> memoryview:
    """The Parquet file of ``table``: zstd, bytes of floats split by place, integers by their differences.

    Text that comes with a dictionary is written from it, which takes a fraction of the time, and declared as plain
    text: pyarrow cannot group or join tables whose generations have different dictionaries.
    """
    return encode_all([table])


def encode_all(tables: Iterable[pa.Table]) -> memoryview:
    """The same for the rows of several tables of one schema, at least one, which are asked for one by one."""
    remaining = iter(tables)
    table = next(remaining)
    metadata = {**(table.schema.metadata or {}), VERSION_KEY: str(SCHEMA_VERSION).encode()}
    plain = pa.schema([_plain(field) for field in table.schema], metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[field.name for field in plain if field.type in (pa.string(), pa.large_string())],
        column_encoding=_encodings(plain),
        store_schema=False,  # it would say that text has a dictionary
    ) as writer:
        writer.write_table(table)
        for later in remaining:
            writer.write_table(later)
        writer.add_key_value_metadata({**metadata, b"ARROW:schema": base64.b64encode(plain.serialize())})
    return memoryview(sink.getvalue())


def _plain(field: pa.Field) -> pa.Field:
    # Arrow reads dictionaries with 32-bit offsets, whatever the column's own are.
    return field.with_type(_TEXT) if pa.types.is_dictionary(field.type) else field


def version_of(metadata: Mapping[bytes, bytes] | None) -> str:
    """Schema version in a file's metadata; ``none`` for a file that this program did not write."""
    return (metadata or {}).get(VERSION_KEY, b"none").decode()


def _encodings(schema: pa.Schema) -> dict[str, str]:
    encodings: dict[str, str] = {}
    for field in schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
        kind: Any = field.type.value_type if is_list else field.type
        path = f"{field.name}.list.element" if is_list else field.name
        if pa.types.is_floating(kind):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(kind):
            encodings[path] = "DELTA_BINARY_PACKED"
    return encodings

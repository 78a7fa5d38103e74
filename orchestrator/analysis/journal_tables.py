"""What the journal knows, as tables: the metrics of every generation, and the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pyarrow as pa

from orchestrator import schemas
from orchestrator.credentials import without_credentials
from orchestrator.history import JournalContents
from orchestrator.presets import flatten


def metrics_table(contents: JournalContents) -> pa.Table:
    """A row per generation and metric; seconds by part are among them as ``seconds/<part>``."""
    columns: dict[str, list[object]] = {name: [] for name in schemas.METRICS.names}
    for record in contents.generations:
        attempt = [one.attempt for one in contents.attempts if one.inherits <= record.generation][-1]
        values = record.metrics | {f"seconds/{part}": seconds for part, seconds in record.seconds.items()}
        for key, value in values.items():
            row = (record.generation, attempt, record.timestamp_ms, key, value)
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    return pa.table(columns, schema=schemas.METRICS)


def settings_table(contents: JournalContents) -> pa.Table:
    """A row per setting of the last attempt; passwords in addresses are left out."""
    settings = flatten(contents.attempts[-1].config)
    values = [
        json.dumps(without_credentials(value) if isinstance(value, str) else value) for value in settings.values()
    ]
    return pa.table({"key": list(settings), "value": values}, schema=schemas.SETTINGS)


JOURNAL_TABLES: Mapping[str, Callable[[JournalContents], pa.Table]] = MappingProxyType(
    {"metrics": metrics_table, "settings": settings_table}
)
"""By name."""

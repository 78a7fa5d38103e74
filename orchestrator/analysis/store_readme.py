"""What is written beside the tables of every run: what each table and column is, and how to ask."""

from __future__ import annotations

import pyarrow as pa

from orchestrator import schemas
from orchestrator.analysis.views import VIEWS

MEANINGS = {
    "candidates": "one row per candidate and generation: what the search was told",
    "genomes": "one row per candidate and generation: what the search had proposed",
    "units": "one row per unit of work",
    "evaluations": "one row per unit, candidate and example: scores and sizes",
    "evictions": "one row per unit, candidate, example, layer and KV head: tokens held",
    "survival": "forgetting by kind: one row per memory, example, kind of token, layer and KV head",
    "traces": "one row per update, layer, KV head and token held before it, of a few texts",
    "traced_tokens": "one row per token of those texts",
    "metrics": "one row per generation and metric, from the journal",
    "settings": "one row per setting, from the journal",
}
"""What a row of each table is."""


def store_readme() -> str:
    """The page, in Markdown."""
    parts = [
        "# Tables of this run",
        f"Parquet, schema version {schemas.SCHEMA_VERSION} (`{schemas.VERSION_KEY.decode()}` in each file's metadata; "
        "raised when a column changes its name, type, unit or meaning). Files named `generation=N` hold one "
        "generation, `generations=A-B` several (`namm store compact`); both have a column `generation`, so a reader "
        "takes all files of a folder together. Generation -1 is the pass of the full cache over the training examples; "
        "held-out evaluations stand under the generation after the last. Meaning and unit of every column are in its "
        "field's metadata too.",
        '```python\nimport pyarrow.dataset as ds\n\nevictions = ds.dataset("tables/evictions").to_table()\n'
        'print(evictions.schema.field("held_tokens").metadata)\n```',
        '```sh\nnamm query RUN "SELECT * FROM kept_by_layer ORDER BY generation, layer"\n```',
        *(f"## {name}\n\n{meaning}\n\n{_columns(schemas.empty(name).schema)}" for name, meaning in MEANINGS.items()),
        "## Views\n\nPlain SQL over the tables; `namm query` and the report have them.",
        *(f"### {name}\n\nBy {view.meaning}.\n\n```sql{view.sql}\n```" for name, view in VIEWS.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _columns(schema: pa.Schema) -> str:
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in schema:
        told = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = str(field.type).replace("large_string", "string").replace("[0]", "")
        lines.append(f"| `{field.name}` | {kind} | {told.get('unit', '')} | {told.get('meaning', '')} |")
    return "\n".join(lines)

"""Forgetting by kind of token as figures: over all heads, and head by head."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.forgetting import MEMORY, RIVALS
from orchestrator.analysis.queries import Database
from orchestrator.pages import charts
from orchestrator.pages.charts import Row, Spec
from orchestrator.pages.figures import Answered, Column, Figure, answer, percent, whole
from tasks.token_kinds import KINDS, SPECIAL, Language

ASKED: dict[str, str] = {
    "python": "Does it drop comments, docstrings and white space of code, as memories of the published runs do?",
    "prose": "Does it drop what grammar makes redundant (function words, repetitions), as published memories do?",
    "facts": "Does it drop the filler and keep the values that will be asked for?",
}


def forgetting_figures(tables: Database) -> list[Answered]:
    """A chart by kind, and one by kind, layer and head, for every language that there are tokens of."""
    there = [row[0] for row in tables.ask("SELECT DISTINCT language FROM survival ORDER BY language").rows]
    return [answer(figure, tables) for language in there for figure in (_by_kind(language), _by_head(language))]


def _by_kind(language: Language) -> Figure:
    kinds = (*KINDS[language], SPECIAL)

    def draw(rows: Sequence[Row]) -> Spec:
        return charts.survival(rows, kinds, (MEMORY, *RIVALS))

    return Figure(
        key=f"kinds-{language}",
        title=f"Tokens that survive, by kind ({language})",
        caption=f"{ASKED[language]} Of the tokens read before the last update: the share that is held after it, mean "
        "over layers and KV heads, with 95 % intervals over texts. Random and H2O hold exactly as many tokens in every "
        "head. Where the memory lies right of both, it keeps that kind on purpose.",
        sql=f"""SELECT kind, memory_name, tokens, texts, survival, margin FROM survival_by_kind
WHERE language = '{language}' ORDER BY {_order("kind", kinds)}, {_order("memory_name", (MEMORY, *RIVALS))}""",
        columns={
            "kind": Column("kind"),
            "memory_name": Column("memory"),
            "tokens": whole("tokens"),
            "texts": whole("texts"),
            "survival": percent("kept"),
            "margin": percent("±"),
        },
        draw=draw,
        highlights=(MEMORY,),
    )


def _by_head(language: Language) -> Figure:
    kinds = (*KINDS[language], SPECIAL)

    def draw(rows: Sequence[Row]) -> Spec:
        return charts.heat(rows, ("place", "layer / KV head"), ("kind", ""), ("survival", "share kept"), kinds=kinds)

    return Figure(
        key=f"heads-{language}",
        title=f"The same, by layer and KV head ({language})",
        caption="Share of each kind that the memory's heads hold after the last update. A column that is light "
        "throughout is a head that keeps everything; rows that differ within a column are kinds that it tells apart.",
        sql=f"""SELECT kind, printf('%02d/%02d', layer, kv_head) AS place, survival, margin FROM survival_by_head
WHERE language = '{language}' AND memory_name = '{MEMORY}' ORDER BY {_order("kind", kinds)}, layer, kv_head""",
        columns={
            "kind": Column("kind"),
            "place": Column("layer / head"),
            "survival": percent("kept"),
            "margin": percent("±"),
        },
        draw=draw,
    )


def _order(column: str, values: Sequence[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"list_position([{listed}], {column})"

"""Rows as the suites' files have them, drafted from English text and code; see ``tasks.documents`` for drafts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.corpus import Source
from tasks.documents import CountTokens, Document, Draft, TextPool, fit, join_lines, pick, readable_lines
from tasks.errors import TaskError
from tasks.passages import LINE_TYPES, draft_passage_doc, draw_functions, draw_typed_lines, parsed
from tasks.text_facts import draft_fact_prose

LINES_OF_A_PASSAGE = 15
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a suite, whatever its columns are called there."""

    context: str
    input: str
    answers: tuple[str, ...]
    """Gold answers; empty in drafts that are too short to ask about."""
    classes: tuple[str, ...] | None = None
    """All answers that there are, where the task is a choice among classes."""
    options: tuple[str, ...] = ()
    """What may be chosen from, in InfiniteBench's multiple choice."""


RowDraft = Callable[[int], Row]
RowMaker = Callable[[np.random.Generator, TextPool], RowDraft]
"""Draws a row; the draft gives it in any size."""


def fit_row(maker: RowMaker, rng: np.random.Generator, pool: TextPool, count_tokens: CountTokens) -> Row:
    """The longest row of at most the pool's length, in tokens of context and input together.

    Raises:
        TaskError: the length is too short for a row of this task, or too long for the corpus.
    """
    row = fit(maker(rng, pool), pool.target_tokens, lambda row: count_tokens(f"{row.context}\n{row.input}"))
    if not row.answers:
        raise TaskError(f"length is {pool.target_tokens} tokens; too short for a row: ask for more")
    return row


def asking(
    maker: Callable[[np.random.Generator, TextPool], Draft], shape: Callable[[str], str] = lambda text: text
) -> RowMaker:
    """Rows that ask one question about a document; ``shape`` turns the document's text into the row's context."""

    def make(rng: np.random.Generator, pool: TextPool) -> RowDraft:
        fraction, draft = rng.random(), maker(rng, pool)
        return lambda size: _asked(draft(size), fraction, shape)

    return make


def in_passages(text: str) -> str:
    """The text's lines as numbered passages."""
    lines = text.splitlines()
    starts = range(0, len(lines), LINES_OF_A_PASSAGE)
    passages = (join_lines(lines[start : start + LINES_OF_A_PASSAGE]) for start in starts)
    return "\n".join(f"Passage {number}:\n{passage}" for number, passage in enumerate(passages, 1))


def passage_retrieval(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Functions without docstrings as paragraphs; the input is the first line of a docstring."""
    draft = asking(draft_passage_doc)(rng, pool)

    def row(size: int) -> Row:
        drafted = draft(size)
        return Row(drafted.context, drafted.input.partition(": ")[2], drafted.answers)

    return row


def without_question(maker: Callable[[np.random.Generator, TextPool], Draft]) -> RowMaker:
    """Rows whose question is the task's own, the same for all rows."""

    def make(rng: np.random.Generator, pool: TextPool) -> RowDraft:
        draft = asking(maker)(rng, pool)

        def row(size: int) -> Row:
            drafted = draft(size)
            return Row(drafted.context, "", drafted.answers)

        return row

    return make


def module_summary(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """A module that starts with its docstring, other code around it; the answer is the docstring's beginning."""
    module, summary = next(
        (source, summary) for source in pool.order(rng, "code") if (summary := summary_of(source)) is not None
    )
    others = pool.lines(rng, "code")
    num_before = int(rng.integers(min(12, pool.target_tokens // 64)))
    lines = [*others[:num_before], *readable_lines(module), "", *others[num_before:]]
    head = next(stop for stop in range(1, len(lines)) if summary in " ".join(" ".join(lines[:stop]).split()))
    return lambda size: Row(join_lines(lines[: head + size]), "", (summary,))


def function_query(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Functions with their docstrings; asked: what one of them does. The answer is the docstring's first line."""
    fraction = rng.random()
    functions = list({function.name: function for function in draw_functions(rng, pool)}.values())

    def row(size: int) -> Row:
        shown = functions[:size]
        context = "".join(f"{item.name}: {item.docstring}\n\n{item.code}\n\n" for item in shown)
        if not shown:
            return Row(context, "", ())
        asked = shown[int(fraction * len(shown))]
        return Row(context, f"What does the function {asked.name} do?", (asked.summary,))

    return row


def function_summaries(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Functions with their docstrings as passages; the answer is the first line of each docstring."""
    functions = draw_functions(rng, pool)

    def row(size: int) -> Row:
        shown = functions[:size]
        context = "".join(
            f"Passage {number}:\n{item.docstring}\n\n{item.code}\n\n" for number, item in enumerate(shown, 1)
        )
        return Row(context, "", (" ".join(item.summary for item in shown),) if shown else ())

    return row


def line_types(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Lines of code and their types as examples, in the form of TREC's questions."""
    asked, *shots = draw_typed_lines(rng, pool)
    classes = tuple(LINE_TYPES.values())
    texts = [f"Question: {line}\nType: {type_}\n" for line, type_ in shots]
    return lambda size: Row("".join(texts[:size]), f"Question: {asked[0]}\nType:", (asked[1],), classes)


def fact_shots(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Short passages, each with a question and its answer, in the form of TriviaQA's examples; the last is asked."""
    short = TextPool(pool.corpus, pool.split, min(96, pool.target_tokens // 4))
    shots = [asking(draft_fact_prose)(rng, short)(4) for _ in range(2 + pool.target_tokens // 32)]
    asked, *shown = shots
    texts = [f"{_as_shot(shot)}\n{shot.answers[0]}\n\n" for shot in shown]
    return lambda size: Row("".join(texts[:size]), _as_shot(asked), asked.answers)


def dialogue_summaries(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Dialogues in which one tells the other a fact, each with its summary, in SAMSum's form; the last is asked."""
    vocabulary = pool.vocabulary("")
    sentences = [line.strip() for line in pool.lines(rng, "prose") if 20 <= len(line.strip()) <= 80]
    shots = [_dialogue(rng, vocabulary.shuffled(rng)[:3], sentences) for _ in range(2 + pool.target_tokens // 32)]
    (dialogue, summary), *shown = shots
    texts = [f"Dialogue: {text}\nSummary: {gold}\n" for text, gold in shown]
    return lambda size: Row("".join(texts[:size]), f"Dialogue: {dialogue}\nSummary: ", (summary,))


def next_line_of_code(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """The code of a file up to a line; the answer is that line. More code stands before it where the file is short."""
    before, answer = _cut_before_a_line(rng, pool)
    lines = [*pool.lines(rng, "code"), "", *before]
    return lambda size: Row(join_lines(lines[-(size + 1) :]), "", (answer,))


def next_line_in_repository(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Code of other files as context, the last lines of this file as input; the answer is the line after them."""
    before, answer = _cut_before_a_line(rng, pool)
    others = pool.lines(rng, "code")
    near = join_lines(before[-12:])
    return lambda size: Row(join_lines(others[:size]), near, (answer,))


# Parts ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def summary_of(source: Source) -> str | None:
    """First paragraph of a module's docstring on one line, if it says something."""
    docstring = ast.get_docstring(parsed(source.text))
    summary = " ".join(docstring.split("\n\n")[0].split()) if docstring else ""
    written = " ".join(" ".join(readable_lines(source)[:60]).split())
    return summary if 40 <= len(summary) <= 400 and summary in written else None


def _asked(document: Document, fraction: float, shape: Callable[[str], str]) -> Row:
    if not document.asked:
        return Row(shape(document.text), "", ())
    asked = document.asked[int(fraction * len(document.asked))]
    return Row(shape(document.text), asked.question, (asked.answer,))


def _as_shot(row: Row) -> str:
    return f"Passage:\n{row.context}Question:\n{row.input}\nAnswer:"


def _dialogue(rng: np.random.Generator, words: Sequence[str], sentences: Sequence[str]) -> tuple[str, str]:
    one, other = (_NAMES[i] for i in rng.permutation(len(_NAMES))[:2])
    first, second, value = words
    dialogue = (
        f"{one}: {pick(rng, sentences)}\n{one}: Do you know the name of the {first} {second}?\n"
        f"{other}: It is {value}.\n{one}: Thanks! {pick(rng, sentences)}"
    )
    return dialogue, f"{other} tells {one} that the name of the {first} {second} is {value}."


def _cut_before_a_line(rng: np.random.Generator, pool: TextPool) -> tuple[list[str], str]:
    """Lines of a file before one that says something, and that line."""
    for source in pool.order(rng, "code"):
        lines = list(readable_lines(source))
        places = [i for i in range(8, len(lines)) if _is_statement(lines[i])]
        if places:
            place = places[int(rng.integers(len(places)))]
            return lines[:place], lines[place]
    raise TaskError(f"corpus {pool.corpus.name!r} has no code to go on with: give a folder with .py files")


def _is_statement(line: str) -> bool:
    """Whether a line is one that the metric does not skip: no comment and no quoted code."""
    return 12 <= len(line.strip()) <= 100 and not any(mark in line for mark in ("#", "`", "//", '"""', "'''"))

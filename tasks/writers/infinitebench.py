"""InfiniteBench: one JSON file a split, named as on the hub.

| split | what stands for it |
|---|---|
| passkey, number_string | five digits, or ten, between lines of code and prose |
| kv_retrieval | a JSON object of hexadecimal keys and values |
| code_run | made-up functions that call one another; the answer is recomputed |
| code_debug | functions of the corpus, one of which returns a name that is nowhere defined |
| math_find | a list of small numbers; the largest, smallest or second of either |
| math_calc | a sum of small numbers; the answers are its running totals |
| longdialogue_qa_eng | a script in which everybody has a word of their own; a speaker's name is masked |
| longbook_qa_eng, longbook_choice_eng | facts in sentences; the choice is among the document's values |
| longbook_sum_eng | functions; the answer is the first line of each docstring |
| longbook_qa_chn | facts in Chinese sentences |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tasks.documents import Asked, Draft, TextPool
from tasks.passages import draw_functions
from tasks.text_facts import Fact, draft_fact_prose, draft_passkey, draw_digits, hide
from tasks.writers import cjk
from tasks.writers.material import Material, SuiteFile, jsonl
from tasks.writers.rows import Row, RowDraft, RowMaker, asking, function_summaries

_NUM_OPTIONS = 4
_RETURN = re.compile(r"^(\s+)return \S.*$", re.MULTILINE)


def kv_retrieval(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Keys and values of 32 hexadecimal digits, written as UUIDs."""
    number = 2 + pool.target_tokens // 8
    uuids = [_uuid(digits) for digits in draw_digits(rng, 2 * number, 15)]
    keys, values = uuids[:number], uuids[number:]
    fraction = rng.random()

    def row(size: int) -> Row:
        shown = dict(zip(keys[: size + 1], values[: size + 1], strict=True))
        asked = keys[int(fraction * len(shown))]
        question = f'Key: "{asked}"\nThe value associated with the specified key is: '
        return Row(f"JSON data:\n{json.dumps(shown)}", question, (shown[asked],))

    return row


def code_run(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Functions that add a number to another function's result, down to one that only adds."""
    number = 2 + pool.target_tokens // 8
    called = [int(rng.integers(i)) if i and rng.random() < 0.7 else None for i in range(number)]
    added = rng.integers(-9, 10, number)
    argument, fraction = int(rng.integers(1, 100)), rng.random()

    def row(size: int) -> Row:
        num_shown = min(size + 1, number)
        asked = int(fraction * num_shown)
        value, current = argument, asked
        while True:
            value += int(added[current])
            below = called[current]
            if below is None:
                break
            current = below
        context = "\n\n".join(_adder(i, called[i], int(added[i])) for i in range(num_shown))
        return Row(
            context, f"Please give me the exact number of the return value of func_{asked}({argument}).", (str(value),)
        )

    return row


def code_debug(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Functions of the corpus; one of the first four returns what is not defined anywhere."""
    named = {function.name: function.code for function in draw_functions(rng, pool)}
    names = list(named)
    broken = next(name for name in names if _RETURN.search(named[name]))
    options = [broken, *[name for name in names if name != broken][: _NUM_OPTIONS - 1]]
    rest = [name for name in names if name not in options]
    options = [options[i] for i in rng.permutation(len(options))]
    missing = "_".join(pool.vocabulary("\n".join(named.values())).shuffled(rng)[:2])
    codes = {**named, broken: _RETURN.sub(rf"\1return {missing}[0]", named[broken], count=1)}
    ranks = rng.random(len(names))

    def row(size: int) -> Row:
        shown = [*options, *rest[:size]]
        order = np.argsort(ranks[: len(shown)])
        context = "\n\n".join(codes[shown[i]] for i in order)
        return Row(context, "", (broken,), options=tuple(options))

    return row


def math_find(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """One number of a list; ``second`` counts different numbers."""
    numbers = rng.integers(0, 100, 8 + pool.target_tokens).tolist()
    what, place = (("largest", -1), ("smallest", 0), ("second largest", -2), ("second smallest", 1))[rng.integers(4)]
    question = f"You should answer with only one number, no other words. The {what} number of the list is: "

    def row(size: int) -> Row:
        shown = numbers[: size + 4]
        different = sorted(set(shown))
        return Row(str(shown), question, (str(different[place]),) if len(different) > 1 else ())

    return row


def math_calc(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """A sum; the answers are the totals after each number but the first."""
    numbers = rng.integers(-99, 100, 4 + pool.target_tokens).tolist()

    def row(size: int) -> Row:
        shown = numbers[: size + 2]
        written = str(shown[0]) + "".join(f" {'-' if number < 0 else '+'} {abs(number)}" for number in shown[1:])
        return Row(written, "", tuple(str(total) for total in np.cumsum(shown)[1:]))

    return row


def masked_dialogue(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """Everybody speaks of one thing only; the last speaker, who spoke before, is masked."""
    sentences = [line.strip() for line in pool.lines(rng, "prose") if 20 <= len(line.strip()) <= 90]
    words = pool.vocabulary("\n".join(sentences)).shuffled(rng)
    cast = list(zip([word.upper() for word in words[:4]], words[4:8], strict=True))
    spoken = rng.integers(len(cast), size=len(sentences))
    asked = int(rng.integers(len(cast)))

    def line(speaker: int, name: str, sentence: str) -> str:
        return f"{name}: About the {cast[speaker][1]}: {sentence}\n"

    def row(size: int) -> Row:
        turns = [*range(len(cast)), *(int(i) for i in spoken[: min(size, len(sentences) - 5)])]
        said = [line(speaker, cast[speaker][0], sentences[i]) for i, speaker in enumerate(turns)]
        return Row("".join([*said, line(asked, "$$MASK$$", sentences[-1])]), "", (cast[asked][0],))

    return row


def draft_number_string(rng: np.random.Generator, pool: TextPool) -> Draft:
    """One string of ten digits."""
    filler = pool.lines(rng)
    digits = "".join(str(digit) for digit in rng.integers(1, 10, 10))
    line = f"The sequence of digits is {digits}. Remember it. {digits} is the sequence of digits."
    return hide(rng, [Fact(line, Asked("What is the sequence of digits?", digits))], filler)


def fact_choice(rng: np.random.Generator, pool: TextPool) -> RowDraft:
    """A fact, and three values of other facts to choose from; the answer is the value."""
    draft, fraction, order = draft_fact_prose(rng, pool), rng.random(), rng.permutation(_NUM_OPTIONS)
    made_up = [str(number) for number in rng.integers(100_000, 1_000_000, _NUM_OPTIONS)]

    def row(size: int) -> Row:
        document = draft(size)
        asked = document.asked[int(fraction * len(document.asked))]
        others = dict.fromkeys([*(item.answer for item in document.asked), *made_up])
        options = [asked.answer, *[value for value in others if value != asked.answer][: _NUM_OPTIONS - 1]]
        return Row(document.text, asked.question, (asked.answer,), options=tuple(options[i] for i in order))

    return row


SPLITS: Mapping[str, RowMaker] = MappingProxyType(
    {
        "passkey": asking(draft_passkey),
        "number_string": asking(draft_number_string),
        "kv_retrieval": kv_retrieval,
        "code_run": code_run,
        "code_debug": code_debug,
        "math_find": math_find,
        "math_calc": math_calc,
        "longdialogue_qa_eng": masked_dialogue,
        "longbook_qa_eng": asking(draft_fact_prose),
        "longbook_sum_eng": function_summaries,
        "longbook_choice_eng": fact_choice,
        "longbook_qa_chn": cjk.facts(cjk.CHINESE),
    }
)


def write(material: Material) -> list[SuiteFile]:
    """The twelve files."""
    return [SuiteFile(f"{name}.jsonl", _file(material, name), material.num_rows) for name in SPLITS]


def _file(material: Material, name: str) -> bytes:
    found = material.rows("infinitebench", name, SPLITS[name])
    return jsonl(
        {
            "id": i,
            "context": row.context,
            "input": row.input,
            "answer": list(row.answers),
            "options": list(row.options),
        }
        for i, row in enumerate(found)
    )


def _uuid(digits: str) -> str:
    text = digits.rjust(15, "0") * 3
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))


def _adder(number: int, called: int | None, added: int) -> str:
    inner = "x" if called is None else f"func_{called}(x)"
    return f"def func_{number}(x):\n    return {inner} {'-' if added < 0 else '+'} {abs(added)}"

"""What kind of thing each stretch of a text is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.generated import GeneratedTask
from tasks.token_kinds import KINDS, LANGUAGES, SPECIAL, WHITE, guess_language, kinds_of_tokens, spans
from tasks.words import token_kinds

CODE = '''"""What it is."""
import os

# a remark
class Thing:
    """What a thing is."""

    size = "large"  # another

    def grow(self, by=1.5):
        """Over
        two lines."""
        return f"{by} more" + os.sep
'''


def told(text, language):
    """(characters, kind) of every span that is not white space."""
    return [(text[start:stop], kind) for start, stop, kind in spans(text, language) if kind != WHITE]


def test_code_is_told_apart_by_pythons_own_tokenizer():
    kinds = dict(told(CODE, "python"))
    assert kinds['"""What it is."""'] == "docstring"
    assert kinds['"""What a thing is."""'] == "docstring"
    assert kinds['"""Over\n        two lines."""'] == "docstring"
    assert kinds['"large"'] == "literal"
    assert kinds["1.5"] == "literal"
    assert kinds["# a remark"] == kinds["# another"] == "comment"
    assert kinds["class"] == kinds["return"] == kinds["import"] == "keyword"
    assert kinds["os"] == kinds["self"] == kinds["grow"] == "identifier"
    assert kinds["+"] == kinds["("] == kinds["="] == "operator"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('x = """begun\nand cut', [("x", "identifier"), ("=", "operator"), ('"""begun\nand cut', "literal")]),
        ("f(1,\n", [("f", "identifier"), ("(", "operator"), ("1", "literal"), (",", "operator")]),
        ("if a:\n        b\n    c = 2\n# d\n", [*zip(["if", "a", ":", "b", "c", "=", "2", "# d"], ["keyword", "identifier", "operator", "identifier", "identifier", "operator", "literal", "comment"], strict=True)]),  # noqa: E501
    ],
    ids=["a string cut off", "a bracket left open", "an indentation that fits nothing"],
)  # fmt: skip
def test_code_that_was_cut_anywhere_is_read_as_far_as_possible(text, expected):
    assert told(text, "python") == expected


def test_prose_is_told_apart_by_word_classes():
    text = "The old king saw Paris in 1999. He doesn't see the old king; NASA's base, Paris."
    assert told(text, "prose") == [
        ("The", "function word"),
        ("old", "content word"),
        ("king", "content word"),
        ("saw", "content word"),
        ("Paris", "named fact"),
        ("in", "function word"),
        ("1999", "named fact"),
        (".", "punctuation"),
        ("He", "function word"),
        ("doesn't", "function word"),
        ("see", "content word"),
        ("the", "function word"),
        ("old", "repetition"),
        ("king", "repetition"),
        (";", "punctuation"),
        ("NASA's", "named fact"),
        ("base", "content word"),
        (",", "punctuation"),
        ("Paris", "repetition"),
        (".", "punctuation"),
    ]


@pytest.mark.parametrize("kind", ["facts_prose", "facts_code"])
def test_generated_documents_are_told_apart_by_their_own_truth(kind):
    task = GeneratedTask(name="t", kind=kind, length=128, num_facts=6, num_questions=1, seed=0)
    text = task.example("train", 0).prompt
    names = {"fact key": "key", "fact value": "value", "filler": "filler"}
    found = [names[kind] for _, _, kind in spans(text, "facts") if kind in names]  # single blanks are no words
    assert found == [kind for kind in token_kinds(text) if kind != "special"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (CODE, "python"),
        ("print(1)\n", "python"),
        ("hello", "prose"),
        ("It was a dark night; nobody came.", "prose"),
        ("def broken(:\n", "prose"),
        ("the old lantern captain=amber follows this river.\nask captain=", "facts"),
    ],
)
def test_the_language_is_guessed(text, language):
    assert guess_language(text) == language


def test_a_token_is_of_the_kind_of_most_of_its_characters():
    text = "def  grow(self): # hi"
    tokens = [(0, 0), (0, 3), (3, 5), (5, 10), (10, 16), (16, 21)]
    assert kinds_of_tokens(text, tokens, "python") == (
        SPECIAL,
        "keyword",
        WHITE,
        "identifier",  # "grow(": four letters and a bracket
        "identifier",  # "self):"
        "comment",  # the blank before it says nothing
    )


@given(st.text(max_size=200), st.sampled_from(LANGUAGES))
def test_spans_cover_any_text_without_gaps_or_overlaps(text, language):
    found = spans(text, language)
    assert [span.start for span in found] == [0, *(span.stop for span in found)][: len(found)]
    assert not found or found[-1].stop == len(text)
    assert {span.kind for span in found} <= {*KINDS[language], WHITE, SPECIAL}
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))


@given(st.lists(st.sampled_from(CODE.split("\n")), max_size=12))
def test_any_lines_of_code_in_any_order_are_read(lines):
    text = "\n".join(lines)
    assert sum(stop - start for start, stop, _ in spans(text, "python")) == len(text)

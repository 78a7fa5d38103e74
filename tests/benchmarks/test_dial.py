"""The dial's curve, without the measuring: what is told, and the picture."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.benchmarks import dial
from tests.benchmarks.curves import Curve, picture
from tests.benchmarks.dial import Point, drawn, points_of, table
from tests.orchestrator.test_report import result


def point(name: str, setting: int, graded_ratio: float, memory: str = "a", kept_ratio: float = 0.5) -> Point:
    return Point(memory, setting, 0.0, name, kept_ratio, 1.0, 1.0, graded_ratio)


POINTS = [
    *(point("namm", 0, value, memory, 0.1) for memory, value in (("a", 0.6), ("b", 0.7), ("c", 0.8))),
    *(point("h2o", 0, value, memory, 0.1) for memory, value in (("a", 0.5), ("b", 0.5), ("c", 0.4))),
    *(point("recent", 0, 0.45, memory, 0.1) for memory in "abc"),
    *(point(name, 1, 1.0, memory, 1.0) for name in ("namm", "h2o", "recent") for memory in "abc"),
    *(point("full", setting, 1.0, memory, 1.0) for setting in (0, 1) for memory in "abc"),
]


def test_the_table_has_a_row_for_each_setting_and_the_best_rival_first():
    assert table(POINTS) == [
        "| kept | namm | h2o | recent |",
        "|---:|---:|---:|---:|",
        "| 10.0% | 70.0 (60.0–80.0) | 50.0 | 45.0 |",
        "| 100.0% | 100.0 | 100.0 | 100.0 |",
    ]


def test_of_each_rival_the_best_split_counts():
    scores = {"full": 1.0, "namm": 0.9, "one-head": 0.2, "h2o-layer": 0.5, "h2o-head": 0.6}
    results = [result(name, task, [value], [value]) for name, value in scores.items() for task in "ab"]
    points = points_of(results, memory="m", setting=3, threshold=0.5)
    assert {each.name: each.graded_ratio for each in points} == {"full": 1.0, "namm": 0.9, "one-head": 0.2, "h2o": 0.6}


def test_the_picture_is_whole_and_names_every_curve():
    root = ElementTree.fromstring(drawn(POINTS, 256))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"namm", "h2o", "recent", "One dial: 3 evolved memories, 256 tokens, small Llama"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


def test_what_a_curve_is_called_cannot_break_the_picture():
    curve = Curve("<&>", *([[0.1, 1.0]] * 4))
    assert ElementTree.fromstring(picture([curve], title="<", x_label="&", y_label='"')) is not None


@pytest.mark.parametrize(("words", "told"), [([], "make evolve-long"), (["nowhere"], "there is no memory in nowhere")])
def test_without_memories_it_says_how_to_make_them(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dial", *words])
    assert dial.main() == 2
    assert told in capsys.readouterr().err

"""A memory carried over: what is compared with what, and how the table says it."""

import dataclasses
from types import SimpleNamespace

from orchestrator.commands.transfer import markdown
from orchestrator.evaluation import Result
from orchestrator.transfer import EXACT, GRADED, Cell, Comparison, _comparisons, columns, lines


def result(name, graded, task="facts", kept=0.25):
    return Result(
        name=name,
        task=task,
        exact=graded,
        graded=graded,
        kept_ratio=kept,
        mean_bytes=2048.0,
        peak_bytes=0.0,
        state_bytes=0.0,
        seen_tokens=256.0,
        num_examples=2,
        exact_by_example=(graded - 0.1, graded + 0.1),
        graded_by_example=(graded - 0.1, graded + 0.1),
    )


def target(lengths, figure=GRADED, baselines=()):
    return SimpleNamespace(model="other", lengths=lengths, figure=figure, baselines=dict.fromkeys(baselines))


def test_of_each_rival_the_best_split_is_compared_with():
    results = [result("full", 0.8, kept=1.0), result("namm", 0.6), result("h2o-layer", 0.4), result("h2o-head", 0.5)]
    (found,) = _comparisons(target({"facts": 256}), "evolved", [*results, result("one-head", 0.3)])
    assert (found.model, found.statistics, found.task, found.length) == ("other", "evolved", "", 256)
    assert found.kept_ratio == 0.25
    assert {name: round(cell.value, 6) for name, cell in found.cells.items()} == {
        "full": 100.0,
        "namm": 75.0,
        "one-head": 37.5,
        "h2o": 62.5,
    }
    assert found.cells["namm"].low < 75.0 < found.cells["namm"].high


def test_a_baseline_with_a_budget_of_its_own_keeps_its_whole_name():
    results = [result(name, 0.5, task="clips") for name in ("full", "namm", "window-20", "recent-layer")]
    (found,) = _comparisons(target({"clips": None}, EXACT, ("window-20",)), "evolved", results)
    assert set(found.cells) == {"full", "namm", "window-20", "recent"}
    assert found.task == "clips"
    assert found.cells["full"].value == 50.0


def comparison(**cells):
    return Comparison(
        model="deep-llama",
        task="",
        length=256,
        statistics="evolved",
        kept_ratio=0.2345,
        mean_bytes=4096.0,
        num_examples=128,
        cells={name: Cell(value, value - 1, value + 1) for name, value in cells.items()},
    )


def test_the_table_begins_with_full_cache_and_memory_and_orders_the_rest_by_score():
    rows = [comparison(random=10, full=100, namm=90, h2o=80), comparison(full=100, namm=20, h2o=70, random=60)]
    assert columns(rows) == ["full", "namm", "h2o", "random"]
    assert lines(rows, digits=1)[0][:6] == ["deep-llama", "256 tokens", "evolved", "23.4%", "4", "100.0 (99.0–101.0)"]


def test_a_figure_without_spread_stands_without_an_interval():
    row = dataclasses.replace(comparison(), cells={"full": Cell(100, 100, 100)})
    assert lines([row], digits=0)[0][-1] == "100"


def test_the_table_in_markdown_has_as_many_cells_in_every_line():
    text = markdown([comparison(full=100, namm=90)], digits=1).splitlines()
    assert [line.count("|") for line in text] == [8, 8, 8]

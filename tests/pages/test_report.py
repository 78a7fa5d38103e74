"""The report of a run: its numbers by the queries beside them, and what a real browser makes of it."""

import json
import math
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import vl_convert

from orchestrator.analysis.queries import database
from orchestrator.cli import main
from orchestrator.store import Store
from tests.orchestrator.conftest import TINY
from tests.pages.conftest import ARTIFACTS

SECTIONS = {
    "headline": "the question and its answer",
    "settings": "the settings",
    "fitness": "fitness over generations with spread",
    "spread": "spread of the search",
    "rivals-0": "the table against rivals with intervals",
    "quality": "quality against memory",
    "heads": "maps by layer and head",
    "layers": "the same over generations",
    "kinds-facts": "forgetting by kind",
    "heads-facts": "the same by layer and head",
    "text-0": "examples with marked text",
    "text-1": "another",
    "text-2": "a third",
    "cost": "deaths and units",
    "seconds": "seconds",
    "bytes": "bytes",
}
WITHOUT_CHART = {"headline", "settings", "text-0", "text-1", "text-2", "cost", "seconds", "bytes"}


class Figures(HTMLParser):
    """Queries and tables of a page, as they are printed there."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sql: dict[str, str] = {}
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self._key = ""
        self._is_query = self._is_code = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        if tag == "figure":
            self._key = told["id"]
            self.sql[self._key], self.rows[self._key] = "", []
        elif tag == "table" and "data-columns" in told:
            self.columns[self._key] = told["data-columns"].split(",")
        elif tag == "tr" and self._key in self.columns:
            self.rows[self._key].append([])
        elif tag == "td":
            self.rows[self._key][-1].append(told["data-value"])
        elif tag == "details":
            self._is_query = told.get("class") == "query"
        elif tag == "code":
            self._is_code = True

    def handle_endtag(self, tag):
        self._is_code = self._is_code and tag != "code"
        if tag == "figure":
            self._key = ""

    def handle_data(self, text):
        if self._key and self._is_query and self._is_code:
            self.sql[self._key] += text


@pytest.fixture(scope="module")
def html(reported_run):
    return reported_run.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures(html):
    return Figures(html)


def specs(html):
    return json.loads(re.search(r'id="charts">(.*?)</script>', html, re.DOTALL)[1])


# --- what is on the page ----------------------------------------------------------------------------------------------


def test_every_part_is_there_with_its_query(figures):
    assert list(figures.sql) == [key for key in figures.sql if key in SECTIONS]
    assert set(figures.sql) == set(SECTIONS)
    assert all(figures.rows[key] for key in SECTIONS)


def is_told(cell, value):
    """Whether a cell says a value; of sums to the last digits but one, because threads add in any order."""
    if isinstance(value, float) and not math.isnan(value):
        return math.isclose(float(cell), value, rel_tol=1e-12, abs_tol=1e-300)
    is_none = value is None or isinstance(value, float)
    return cell == ("" if is_none else value if isinstance(value, str) else repr(value))


def test_every_number_is_what_the_query_beside_it_gives(reported_run, figures):
    with database(reported_run.folder) as tables:
        for key, sql in figures.sql.items():
            found = tables.ask(sql)
            assert list(found.columns) == figures.columns[key]
            printed = [row for row in figures.rows[key] if row]
            assert len(printed) == len(found.rows) > 0
            for cells, values in zip(printed, found.rows, strict=True):
                for cell, value in zip(cells, values, strict=True):
                    assert is_told(cell, value), (key, cell, value)


def test_what_a_chart_draws_is_what_the_table_has(html, figures):
    drawn = specs(html)
    assert set(drawn) == set(SECTIONS) - WITHOUT_CHART
    for key, spec in drawn.items():
        rows = [row for row in figures.rows[key] if row]
        values = spec["data"]["values"]
        column = figures.columns[key][-1]
        assert len(values) == len(rows) > 0
        assert [repr(value[column]) for value in values] == [row[-1] for row in rows]


def test_the_comparison_agrees_with_the_table_of_the_run(reported_run):
    summary = json.loads((reported_run.folder / "summary.json").read_text())
    with database(reported_run.folder) as tables:
        found = {row["memory_name"]: row for row in tables.ask("SELECT * FROM comparison").records()}
    assert len(found) == len(summary["table"]) > 3
    for row in summary["table"]:
        ours = found[row["name"]]
        for theirs, name in (("graded_ratio", "ratio"), ("exact", "exact"), ("kept_ratio", "kept_ratio")):
            assert ours[name] == pytest.approx(row[theirs], rel=1e-9), (row["name"], name)
        for name in ("mean_bytes", "peak_bytes", "state_bytes"):
            assert ours[name] == pytest.approx(row[name], rel=1e-9)
        assert ours["examples"] == row["num_examples"]


def test_the_margin_is_that_of_a_ratio_of_means_task_by_task(reported_run):
    rows = Store(reported_run.folder).table("evaluations").to_pandas()
    rows = rows[rows.split == "heldout"].set_index(["memory_name", "task", "example"]).graded.unstack("memory_name")
    with database(reported_run.folder) as tables:
        found = {row["memory_name"]: row for row in tables.ask("SELECT * FROM comparison").records()}
    assert found["full"]["margin"] == 0
    for name, row in found.items():
        errors = rows[name] - row["ratio"] * rows["full"]  # what a linear approximation of the ratio is made of
        by_task = errors.groupby("task")
        variance = (by_task.var() / by_task.size()).sum() / 4  # of the mean over two tasks
        assert row["margin"] == pytest.approx(1.96 * math.sqrt(variance) / rows["full"].groupby("task").mean().mean())


def test_the_frontier_is_what_nothing_beats(reported_run):
    candidates = Store(reported_run.folder).table("candidates").to_pandas()
    with database(reported_run.folder) as tables:
        found = {(row["generation"], row["candidate"]) for row in tables.ask("SELECT * FROM frontier").records()}
    best = {
        (one.generation, one.candidate)
        for one in candidates.itertuples()
        if not ((candidates.kept_ratio < one.kept_ratio) & (candidates.ratio >= one.ratio)).any()
        and not ((candidates.kept_ratio == one.kept_ratio) & (candidates.ratio > one.ratio)).any()
    }
    assert found <= best
    assert {candidates.set_index(["generation", "candidate"]).ratio[key] for key in found} == {
        candidates.set_index(["generation", "candidate"]).ratio[key] for key in best
    }


def test_every_chart_has_units_and_compiles(html):
    for key, spec in specs(html).items():
        vega = vl_convert.vegalite_to_vega(spec)
        axes = [axis for axis in vega["axes"] if "title" in axis and axis.get("labels", True)]
        assert axes, key
        assert "<svg" in vl_convert.vegalite_to_svg({**spec, "width": 400})


def test_the_page_is_whole_small_and_asks_nobody(reported_run, html):
    assert reported_run.page.stat().st_size < 5_000_000
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"<(?:link|img|iframe)|(?:src|href)=", without_scripts)
    assert not re.search(r"<script[^>]+src=", re.sub(r">.*?</script>", ">", html, flags=re.DOTALL))
    assert "default-src 'none'" in html
    assert "<b>&amp;amp;" not in html
    assert unescape("tiny &lt;b&gt;&amp;amp;") in unescape(html)
    assert all(first <= second for first, second in pairwise([html.index("The question"), html.index("How to repeat")]))


def test_the_settings_on_the_page_make_the_same_run(html, tmp_path):
    from orchestrator.config import config_hash, load_config

    text = unescape(re.search(r"<summary>again.yaml</summary><pre><code>(.*?)</code>", html, re.DOTALL)[1])
    (tmp_path / "again.yaml").write_text(text)
    config = load_config(tmp_path / "again.yaml")
    assert config.search.population == 4
    assert config_hash(config) in json.dumps(config_hash(load_config("small", TINY_DECIDING)))


TINY_DECIDING = (
    "search.population=4",
    "search.generations=2",
    "examples.pool=4",
    "examples.per_generation=2",
    "examples.heldout=2",
)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_every_chart_without_complaint(reported_run, html, browser, width, scheme):
    browser.prefer(scheme)
    browser.open(reported_run.page, width)
    drawn = len(specs(html))
    browser.wait_for(f"return document.documentElement.dataset.drawn === '{drawn}'")
    assert browser.complaints() == []
    sizes = browser.run(
        "return [...document.querySelectorAll('.chart')].map(c => [c.querySelectorAll('svg path, svg text').length,"
        " c.getBoundingClientRect().width, c.getBoundingClientRect().height])"
    )
    assert len(sizes) == drawn
    assert all(marks > 5 and wide > 200 and high > 40 for marks, wide, high in sizes)
    fits = browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert fits, "nothing but tables and code may be wider than the window"
    small = browser.run(
        "return [...document.querySelectorAll('p, figcaption, td, th, summary, .text span')].filter(e =>"
        " e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.textContent)"
    )
    assert small == []
    browser.screenshot(ARTIFACTS / f"report-{width}-{scheme}.png")
    assert (ARTIFACTS / f"report-{width}-{scheme}.png").stat().st_size > 20_000


def test_the_report_is_printed_by_the_browser(reported_run, browser, tmp_path, capsys):
    page, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    words = ["report", str(reported_run.folder), "--trace", "never", "--output", str(page), "--pdf", str(pdf), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["pdf"] == str(pdf)
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert pdf.stat().st_size > 50_000


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_a_browser_a_pdf_is_refused_before_anything_is_made(reported_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    page = tmp_path / "page.html"
    words = ["report", str(reported_run.folder), "--output", str(page), "--pdf", str(tmp_path / "page.pdf")]
    assert main(words) == 2
    assert "a PDF needs a browser" in capsys.readouterr().err
    assert not page.exists()


def test_a_run_without_a_finished_generation_is_refused(reported_run, tmp_path, capsys):
    folder = tmp_path / "young"
    first = next((reported_run.folder / "journal").iterdir())
    (folder / "journal").mkdir(parents=True)
    (folder / "journal" / first.name).write_bytes(first.read_bytes().split(b"\n")[0] + b"\n")
    assert main(["report", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "young has no finished generation yet, so there is nothing to report" in err
    assert err.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_report_that_fails_costs_no_run(tmp_path, monkeypatch, caplog):
    def broken(*_arguments, **_named):
        raise ValueError("a fault\nof ours")

    monkeypatch.setattr("orchestrator.run_report.make_report", broken)
    folder = tmp_path / "run"
    words = [*TINY, "report.enabled=true", "search.generations=1", "evaluation.rivals=[]"]
    assert main(["evolve", "small", *words, "--run", str(folder), "--quiet"]) == 0
    assert f"the report was not made (a fault of ours); mend that, then: namm report {folder}" in caplog.text
    assert (folder / "summary.json").exists()
    assert not (folder / "report.html").exists()


def test_the_report_can_be_made_again_elsewhere_and_traces_only_when_asked(reported_run, tmp_path, capsys):
    survival = reported_run.folder / "tables" / "survival.parquet"
    before = survival.stat().st_mtime_ns
    page = tmp_path / "page.html"
    assert main(["report", str(reported_run.folder), "--output", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page), "bytes": page.stat().st_size}
    assert survival.stat().st_mtime_ns == before, "auto: it was traced at the end of the run"
    words = ["report", str(reported_run.folder), "--output", str(page), "--trace", "always", "--device", "cpu"]
    assert main(words) == 0
    assert survival.stat().st_mtime_ns > before


def test_a_run_that_was_not_evaluated_yet_is_reported_as_far_as_it_came(reported_run, tmp_path):
    folder = shutil.copytree(reported_run.folder, tmp_path / "young")
    for path in folder.glob("tables/*/generation=000002.parquet"):
        path.unlink()
    shutil.rmtree(folder / "champion")
    for name in ("survival", "traces", "traced_tokens"):
        (folder / "tables" / f"{name}.parquet").unlink()
    assert main(["report", str(folder)]) == 0
    html = (folder / "report.html").read_text()
    assert "has not been evaluated on held-out examples yet" in html
    assert "No text was followed token by token" in html
    assert set(specs(html)) == {"fitness", "spread", "quality", "layers"}

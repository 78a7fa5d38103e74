"""``namm compare``: one table and one page of several runs."""

import json
import shutil

import pytest

from orchestrator.cli import main
from tests.orchestrator.conftest import TINY
from tests.pages.conftest import ARTIFACTS


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "other"
    assert main(["evolve", "small", *TINY, "seed=7", "fitness.kept_price=0.1", "--run", str(folder), "--quiet"]) == 0
    return folder


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("namm: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_results_and_differing_settings_stand_beside_each_other(reported_run, other_run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", str(reported_run.folder), str(other_run), "--output", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [reported_run.folder.name, "other"]
    assert {row["run"] for row in found["results"]} == set(found["runs"])
    for folder, row in zip((reported_run.folder, other_run), found["results"], strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        ours = next(one for one in summary["table"] if one["name"] == "namm")
        assert row["ratio"] == pytest.approx(ours["graded_ratio"])
        assert row["kept_ratio"] == pytest.approx(ours["kept_ratio"])
    settings = {row["key"]: row["other"] for row in found["differing_settings"]}
    assert settings["seed"] == "7"
    assert settings["fitness.kept_price"] == "0.1"
    assert "search.population" not in settings


def test_people_see_the_table_and_a_browser_the_page(reported_run, other_run, tmp_path, capsys, browser):
    page = tmp_path / "page.html"
    assert main(["compare", str(reported_run.folder), str(other_run), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "score of full %" in out
    assert "fitness.kept_price" in out
    for width in (1280, 390):
        browser.open(page, width)
        browser.wait_for("return document.documentElement.dataset.drawn === '3'")
        assert browser.complaints() == []
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        browser.screenshot(ARTIFACTS / f"comparison-{width}.png")


def test_runs_of_one_name_are_told_apart_by_their_place(other_run, tmp_path, capsys):
    again = tmp_path / "copy" / "other"
    shutil.copytree(other_run, again)
    words = ["compare", str(other_run), str(again), "--output", str(tmp_path / "page.html"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [str(other_run), str(again)]
    assert found["differing_settings"] == []


def test_mistakes_are_told_in_one_line(other_run, tmp_path, capsys):
    page = tmp_path / "page.html"
    for places, said in (
        ([str(other_run)], "there is nothing to compare other with"),
        ([str(other_run), str(other_run)], "is named twice"),
        ([str(other_run), str(tmp_path)], "is no run folder"),
    ):
        assert main(["compare", *places, "--output", str(page)]) == 2
        assert said in error_line(capsys)
        assert not page.exists()

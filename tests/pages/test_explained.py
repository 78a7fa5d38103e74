"""The page of ``namm explain``: sliders, hovering, keys, and text that would like to be more than text."""

import json

import pyarrow.parquet as pq
import pytest

from orchestrator.cli import main
from tasks.registry import GeneratedTaskSettings, build_task
from tests.pages.conftest import ARTIFACTS

NASTY = (
    "</script><script>document.title=1</script><img src=x onerror=document.title=1>"
    " \x1b[31m \x00 \u202e captain=amber\n"
)
EXAMPLE = build_task(GeneratedTaskSettings(kind="facts_prose")).example("heldout", 0)
PROMPT = EXAMPLE.prompt + EXAMPLE.questions[0].text


@pytest.fixture(scope="module")
def explained(reported_run, tmp_path_factory):
    """Folder of an explained prompt."""
    folder = tmp_path_factory.mktemp("explained")
    (folder / "prompt.txt").write_text(PROMPT)
    words = ["explain", str(reported_run.folder), "--text", str(folder / "prompt.txt"), "--folder", str(folder)]
    assert main(words) == 0
    return folder


def shares(browser):
    return browser.run(
        "return [...document.querySelectorAll('#text span')].map(s => [s.textContent,"
        " parseFloat(s.style.getPropertyValue('--share')), s.classList.contains('gone')])"
    )


def move(browser, control, value):
    browser.run(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'));",
        control,
        value,
    )


def test_shades_are_what_the_tables_say(explained, browser):
    browser.open(explained / "index.html")
    tokens = pq.read_table(explained / "tokens.parquet").to_pandas()
    trace = pq.read_table(explained / "trace.parquet").to_pandas()
    shown = shares(browser)
    assert "".join(text for text, _, _ in shown) == PROMPT
    judged = tokens[tokens.is_judged]
    assert [share for _, share, _ in shown][: len(judged)] == pytest.approx(judged.lifetime.tolist(), abs=6e-4)
    assert [gone for _, _, gone in shown] == (tokens.is_judged & (tokens.held_heads == 0)).tolist()

    move(browser, "mode", "held")
    move(browser, "update", 2)
    move(browser, "layer", 1)
    move(browser, "head", 0)
    held = set(trace[(trace["update"] == 1) & (trace.layer == 1) & (trace.kv_head == 0) & trace.is_kept].position)
    read = int(trace[trace["update"] == 1].update_tokens.iloc[0])
    for place, (_, share, gone) in enumerate(shares(browser)):
        assert share == (1 if place in held or place >= read else 0)
        assert gone == (place < read and place not in held)
    assert browser.run("return document.getElementById('update-said').textContent") == f"2 of 4, after {read} tokens"

    move(browser, "mode", "importance")
    by_rank = (
        trace[(trace["update"] == 1) & (trace.layer == 1) & (trace.kv_head == 0)].sort_values("importance").position
    )
    shown = [share for _, share, _ in shares(browser)]
    ranked = [shown[place] for place in by_rank]
    assert ranked == sorted(ranked)
    assert (ranked[0], ranked[-1]) == (0, 1)
    assert browser.complaints() == []


def test_the_text_can_be_walked_through_by_keys(explained, browser):
    browser.open(explained / "index.html")
    browser.run("document.querySelector('#text span').focus()")
    browser.press("ArrowRight", "ArrowRight", "ArrowRight")
    here = "return [...document.querySelectorAll('#text span')].indexOf(document.activeElement)"
    assert browser.run(here) == 3
    detail = browser.run("return document.getElementById('detail').textContent")
    assert detail.startswith("token 3: ")
    assert "head 1" in detail
    browser.press("End")
    assert browser.run(here) == browser.run("return document.querySelectorAll('#text span').length - 1")
    assert "no update has judged it yet" in browser.run("return document.getElementById('detail').textContent")
    browser.press("[")
    assert browser.run("return document.getElementById('update-said').textContent").startswith("3 of 4")
    browser.press("Home", "ArrowLeft")
    assert browser.run(here) == 0


def test_pointing_at_a_token_tells_about_it(explained, browser):
    browser.open(explained / "index.html")
    browser.run(
        "document.querySelectorAll('#text span')[5].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    assert browser.run("return document.getElementById('detail').textContent").startswith("token 5: ")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_desk_and_a_phone_in_light_and_dark(explained, browser, width, scheme):
    browser.prefer(scheme)
    browser.open(explained / "index.html", width)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    assert browser.complaints() == []
    browser.screenshot(ARTIFACTS / f"explained-{width}-{scheme}.png")


def test_text_stays_text(reported_run, browser, tmp_path):
    (tmp_path / "nasty.txt").write_bytes((NASTY * 12).encode())
    words = ["explain", str(reported_run.folder), "--text", str(tmp_path / "nasty.txt"), "--folder", str(tmp_path)]
    assert main(words) == 0
    browser.open(tmp_path / "index.html")
    assert browser.run("return document.title").startswith("nasty.txt under")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    shown = browser.run("return document.getElementById('text').textContent")
    assert "</script><script>" in shown
    assert "␛[31m ␀ � captain=amber" in shown
    assert browser.complaints() == []


def test_the_page_of_kinds_shows_its_charts(reported_run, browser, tmp_path, capsys):
    words = ["kinds", str(reported_run.folder), "--examples", "2", "--folder", str(tmp_path), "--json"]
    assert main(words) == 0
    page = json.loads(capsys.readouterr().out)["page"]
    browser.open(tmp_path / "index.html")
    assert page == str(tmp_path / "index.html")
    browser.wait_for("return document.documentElement.dataset.drawn === '2'")
    assert browser.complaints() == []
    browser.screenshot(ARTIFACTS / "kinds.png")


def test_a_page_shows_no_more_than_a_browser_can_take(reported_run, tmp_path, monkeypatch):
    """The tables still have all of it, and the page says so."""
    monkeypatch.setattr("orchestrator.pages.explained.MOST_TOKENS", 50)
    monkeypatch.setattr("orchestrator.pages.explained.MOST_IMPORTANCES", 100)
    (tmp_path / "prompt.txt").write_text(PROMPT)
    words = ["explain", str(reported_run.folder), "--text", str(tmp_path / "prompt.txt"), "--folder", str(tmp_path)]
    assert main(words) == 0
    page = (tmp_path / "index.html").read_text()
    assert "The page shows the first 50 of 259 tokens; the tables have all." in page
    assert "There are too many importances for a page; the tables have them." in page
    assert '"importance":null' in page
    assert 'value="importance"' not in page
    assert pq.read_table(tmp_path / "tokens.parquet").num_rows == 259

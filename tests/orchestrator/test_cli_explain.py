"""``namm explain`` and ``namm kinds``: what became of every token, and which kinds are forgotten."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator.analysis.traced_text import read_under, survival_table
from orchestrator.cli import main
from orchestrator.commands.explain import SHADES, ShadedText, style_of
from tasks.registry import GeneratedTaskSettings, build_task
from workers.language_model import load_language_model
from workers.memory.heuristics import Recent
from workers.memory.specs import RivalSpec
from workers.settings import ModelSettings

PROMPT = build_task(GeneratedTaskSettings(kind="facts_prose")).example("heldout", 0).prompt
NASTY = (
    "</script><script>alert(1)</script> <b>&amp; \"'` \x1b[31m \x00 \u202e \u2028 ${x} {{ 7*7 }} captain=amber\n" * 8
)


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return str(path)


def document(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("namm: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- explain ----------------------------------------------------------------------------------------------------------


def test_the_tables_say_what_the_document_does(finished_run, text_file, tmp_path, capsys):
    found = document(
        capsys, "explain", str(finished_run.folder), "--text", text_file, "--folder", str(tmp_path / "out")
    )
    trace, tokens = (pq.read_table(found[name]).to_pandas() for name in ("trace", "tokens"))
    assert found["num_tokens"] == len(tokens) == 256
    assert "".join(tokens.token) == PROMPT
    assert found["update_tokens"] == sorted(set(trace.update_tokens)) == [64, 128, 192, 256]
    last = trace[trace["update"] == 3]
    held = last[last.is_kept].groupby(["layer", "kv_head"]).size()
    assert held.to_numpy().reshape(2, 2).tolist() == found["held_tokens"]
    assert tokens.held_heads.sum() == held.sum()
    assert found["kept_ratio"] == pytest.approx(held.sum() / 4 / 256)
    assert (
        {kind["kind"] for kind in found["kinds"]} == set(tokens.kind) == {"fact key", "fact value", "filler", "special"}
    )
    assert sum(kind["tokens"] * kind["kept"] for kind in found["kinds"]) == pytest.approx(held.sum() / 4)
    units = {field.name: field.metadata[b"unit"].decode() for field in pq.read_schema(found["trace"])}
    assert units["update_tokens"] == units["position"] == "tokens"


def test_people_see_the_text_and_where_the_page_is(finished_run, text_file, tmp_path, capsys):
    assert main(["explain", str(finished_run.champion), "--text", text_file, "--folder", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for said in ("[-", "kind of token", "KV head 1", "every 64 tokens", str(tmp_path / "out" / "index.html")):
        assert said in out


def test_a_rival_can_be_explained_at_any_kept_ratio(text_file, tmp_path, capsys):
    words = ["explain", "recent", "--text", text_file, "--kept-ratio", "0.125", "--folder", str(tmp_path)]
    assert document(capsys, *words)["held_tokens"] == [[32, 32], [32, 32]]


def test_a_terminal_gets_shades_by_lifetime(small_llama):
    memory = Recent(RivalSpec(name="recent", update_every=64, budget=((40, 40), (40, 40))))
    read = read_under(small_llama, memory, PROMPT, "facts")
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=10_000).print(ShadedText(read))
    assert "\x1b[2;9m" in file.getvalue()  # dim and struck out
    assert "\x1b[30;48;2;" in file.getvalue()  # black on a shade
    assert style_of(1.0, is_held=True) == f"black {SHADES[-1]}"
    assert style_of(float("nan"), is_held=True) == ""


def test_lifetimes_are_shares_of_the_updates_that_a_token_faced(small_llama):
    memory = Recent(RivalSpec(name="recent", update_every=64, budget=((100, 100), (100, 100))))
    read = read_under(small_llama, memory, PROMPT + " the old lantern", "facts")
    lived = read.lifetimes()
    assert lived[:4].tolist() == [1.0] * 4  # sinks
    assert lived[10] == pytest.approx(1 / 4)  # outlived the update at 64 alone: at 128 only 100 - 4 newest stay
    assert lived[255] == 1.0
    assert np.isnan(lived[256:]).all()
    kept = survival_table([("recent", "t", 0, read)]).to_pandas()
    assert kept.groupby(["layer", "kv_head"]).kept_tokens.sum().tolist() == [100] * 4
    assert kept.groupby(["layer", "kv_head"]).judged_tokens.sum().tolist() == [256] * 4


def test_nasty_text_is_shown_safely(tmp_path, capsys, finished_run):
    path = tmp_path / "nasty.txt"
    path.write_bytes(NASTY.encode())
    assert main(["explain", str(finished_run.folder), "--text", str(path), "--folder", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(out)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(page)
    assert "{{ 7*7 }}".replace(" ", "") in page.replace("</span>", "").replace("<span>", "").replace(" ", "")


def test_a_text_shorter_than_the_first_update_is_shown_whole(tmp_path, capsys, finished_run):
    path = tmp_path / "short.txt"
    path.write_text("the old lantern")
    found = document(
        capsys, "explain", str(finished_run.folder), "--text", str(path), "--folder", str(tmp_path / "out")
    )
    assert (found["update_tokens"], found["kept_ratio"]) == ([], 1.0)
    assert "nothing could be forgotten yet" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("command", ["explain", "kinds"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: write something"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        (b"river " * 5000, "5,001 tokens, but the model reads 4,096 at most: shorten it"),
        (None, "cannot read the prompt in"),
    ],
    ids=["empty", "no text", "longer than the window", "absent"],
)
def test_a_text_that_cannot_be_used_is_refused_in_one_line(command, content, said, finished_run, tmp_path, capsys):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    folder = tmp_path / "out"
    assert main([command, str(finished_run.folder), "--text", str(path), "--folder", str(folder)]) == 2
    assert said in error_line(capsys)
    assert not folder.exists(), "nothing is half-written"


def test_a_memory_that_is_not_there_is_refused(text_file, capsys):
    assert main(["explain", "nowhere", "--text", text_file]) == 2
    assert "there is nothing to evaluate at 'nowhere'" in error_line(capsys)


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_rivals_hold_exactly_as_many_tokens_in_every_head(finished_run, tmp_path, capsys):
    words = ["kinds", str(finished_run.folder), "--examples", "3", "--folder", str(tmp_path)]
    found = document(capsys, *words)
    table = pq.read_table(found["survival"]).to_pandas()
    assert set(table.memory_name) == {"namm", "random", "h2o"}
    by_memory = table.groupby(["task", "example", "layer", "kv_head", "memory_name"]).kept_tokens.sum().unstack()
    assert len(by_memory) == 2 * 3 * 4
    assert (by_memory["random"] == by_memory["namm"]).all()
    assert (by_memory["h2o"] == by_memory["namm"]).all()


def test_survival_and_its_interval_are_a_ratio_over_texts(finished_run, tmp_path, capsys):
    found = document(capsys, "kinds", str(finished_run.folder), "--examples", "4", "--folder", str(tmp_path))
    table = pq.read_table(found["survival"]).to_pandas()
    for row in found["kinds"]:
        texts = table[(table.memory_name == row["memory_name"]) & (table.kind == row["kind"])]
        sums = texts.groupby(["task", "example"])[["kept_tokens", "judged_tokens"]].sum()
        rate = sums.kept_tokens.sum() / sums.judged_tokens.sum()
        errors = sums.kept_tokens - rate * sums.judged_tokens
        margin = 1.96 * np.sqrt(8 / 7 * (errors**2).sum()) / sums.judged_tokens.sum()
        assert row["texts"] == 8
        assert row["survival"] == pytest.approx(rate)
        assert row["margin"] == pytest.approx(margin)
        assert row["tokens"] == sums.judged_tokens.sum() // 4


def test_code_and_prose_of_ones_own_are_counted_by_their_kinds(finished_run, tmp_path, capsys):
    code, prose = tmp_path / "main.py", tmp_path / "essay.txt"
    code.write_text('"""What it does."""\n# a remark\ndef grow(by):\n    return by + 1.5\n\n' * 6)
    prose.write_text("The captain saw the old harbour in Paris. He closed every window, and the lamp. " * 8)
    words = [
        "kinds",
        str(finished_run.folder),
        "--text",
        str(code),
        "--text",
        str(prose),
        "--folder",
        str(tmp_path / "o"),
    ]
    kinds = {(row["language"], row["kind"]) for row in document(capsys, *words)["kinds"]}
    assert {("python", "comment"), ("python", "docstring"), ("python", "keyword"), ("prose", "repetition")} <= kinds
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "kept by h2o" in out
    assert "function word" in out


def test_a_rival_by_itself_and_texts_that_are_too_short_are_refused(finished_run, tmp_path, capsys):
    assert main(["kinds", "h2o", "--folder", str(tmp_path / "out")]) == 2
    assert "h2o is a rival" in error_line(capsys)
    short = tmp_path / "short.txt"
    short.write_text("the old lantern")
    assert main(["kinds", str(finished_run.folder), "--text", str(short), "--folder", str(tmp_path / "out")]) == 2
    assert "shorter than the memory's first update, after 64 tokens" in error_line(capsys)

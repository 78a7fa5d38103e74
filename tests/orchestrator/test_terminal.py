"""What is printed: tables, curves, and text that cannot steer the terminal."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.text import Text

from orchestrator.terminal import facts, grid, installed_command, render, spark_line, visible


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_is_aligned_and_has_no_blanks_at_the_ends_of_lines():
    table = grid(("name", "count"), [["full", "1"], ["recent", "1,000"]])
    assert render([table], io.StringIO()) == "name    count\nfull        1\nrecent  1,000\n"


def test_facts_have_no_heading():
    assert render([facts([("run", "a"), ("seconds", "b")])], io.StringIO()) == "run      a\nseconds  b\n"


def test_a_table_shows_what_files_of_others_say_as_text():
    assert render([facts([("origin", "\x1b[31mred")])], io.StringIO()) == "origin  ␛[31mred\n"


def test_long_lines_are_left_to_the_terminal_to_wrap():
    long = "0123456789" * 100
    assert render([long, facts([("hash", long)])], io.StringIO()) == f"{long}\nhash  {long}\n"


def test_markup_in_what_is_shown_is_only_text():
    assert render(["[bold]x[/bold] :smile: runs/a[1]"], io.StringIO()) == "[bold]x[/bold] :smile: runs/a[1]\n"


def test_only_a_terminal_gets_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    styled = Text("x", style="bold")
    assert render([styled], io.StringIO()) == "x\n"
    assert render([styled], Terminal()) == "\x1b[1mx\x1b[0m\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("a\rb\x7f", "a␍b␡"),
        ("\x9b31m", "�31m"),  # the escape sequence introducer in one character
        ("abc\u202edef\u2028", "abc�def�"),  # right-to-left override, line separator
        ("käse 漢字 🙂", "käse 漢字 🙂"),
    ],
)
def test_characters_that_steer_a_terminal_become_pictures(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("values", "columns", "curve"),
    [([], 60, ""), ([1.0], 60, "▄"), ([0, 1, 2, 3], 60, "▁▃▆█"), ([5, 5], 60, "▄▄"), ([0, 0, 1, 1], 2, "▁█")],
)
def test_a_curve_reaches_from_its_lowest_to_its_highest_value(values, columns, curve):
    assert spark_line(values, columns) == curve


def test_a_long_curve_fits_a_line():
    assert len(spark_line([float(value) for value in range(1000)])) == 60


def test_a_command_is_named_as_the_shell_finds_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert installed_command("namm") == str(tmp_path / ".venv" / "bin" / "namm")
    monkeypatch.chdir(tmp_path)
    assert installed_command("namm") == str(Path(".venv/bin/namm"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert installed_command("namm") == "namm"


def test_a_command_of_another_installation_is_not_named(monkeypatch, tmp_path):
    for place in ("ours", "theirs"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ray").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "ours" / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "theirs" / name))
    assert installed_command("ray") == str(tmp_path / "ours" / "ray")
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "ours" / name))
    assert installed_command("ray") == "ray"

"""The README stays true: its code runs, its commands are understood, its files are there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from orchestrator.arguments import parse
from orchestrator.config import load_config
from tests.tasks import staging

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Arguments of every ``namm`` and ``python -m orchestrator`` on the page."""
    starts = re.compile(r"(?:\.venv/bin/namm|python -m orchestrator) ([^#\n]*)")
    return [shlex.split(line) for block in blocks("sh") for line in starts.findall(block.replace("\\\n", " "))]


@pytest.mark.parametrize("code", blocks("python"), ids=["harness", "analyst", "application"])
def test_the_python_on_the_page_runs_as_it_stands(code, finished_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished_run.folder, tmp_path / "runs" / "small-seed0")
    (tmp_path / "workers").symlink_to(ROOT / "workers")
    staging.write_lines(tmp_path / "made-up/ruler/vt-1024.jsonl", staging.ruler_rows("vt"))
    staging.write_source(tmp_path / "made-up", staging.SUITES["ruler"])
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_on_the_page_is_understood(arguments):
    parsed = parse(arguments)
    if parsed.command == "evolve":
        preset, *overrides = parsed.words
        load_config(preset, overrides)


def test_every_make_target_and_every_file_on_the_page_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", TEXT))
    assert named
    assert named <= targets
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link}
    files = set(re.findall(r"`((?:orchestrator|workers|tasks|deploy|tests)/[a-z_/.-]*)`", TEXT))
    assert links
    assert files
    assert [name for name in links | files if not (ROOT / name).exists()] == []

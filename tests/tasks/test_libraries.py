"""Optional packages: one line when one is missing, or when one is installed that changes a score."""

import subprocess
import sys
import textwrap

import pytest

from tasks.errors import TaskError
from tasks.libraries import _refuse_levenshtein, library


def test_a_package_that_is_not_there_is_told_with_the_extra(monkeypatch):
    for name in ["lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        TaskError, match=r"a package is needed that is not installed .*pip install 'namm-orchestrator\[tasks\]'"
    ):
        library("lm_eval.tasks._yaml_loader")
    with pytest.raises(TaskError, match=r"pip install 'namm-orchestrator\[choubun\]'"):
        library("no_such_package", extra="choubun")


def test_code_similarity_by_another_library_is_refused():
    matcher = type("SequenceMatcher", (), {"__module__": "fuzzywuzzy.StringMatcher"})
    with pytest.raises(TaskError, match="pip uninstall python-Levenshtein Levenshtein"):
        _refuse_levenshtein(matcher)


def test_python_levenshtein_beside_fuzzywuzzy_is_found(tmp_path):
    """fuzzywuzzy takes it whenever it can be imported; so may anything by that name."""
    (tmp_path / "Levenshtein.py").write_text("opcodes = editops = matching_blocks = ratio = None\n")
    program = textwrap.dedent(
        """
        from tasks.errors import TaskError
        from tasks.lm_eval_adapter import library_config
        from tasks.suites import SUITES
        try:
            library_config(SUITES["longbench"], "lcc")
        except TaskError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:.", "PATH": "", "NAMM_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        timeout=120,
    )
    assert "would be computed by fuzzywuzzy.StringMatcher, not by Python's difflib" in done.stdout, done.stderr


def test_importing_the_metrics_says_nothing(tmp_path):
    program = "from tasks.libraries import library; library('lm_eval.tasks.longbench.metrics')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ".", "PATH": "", "NAMM_CACHE": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

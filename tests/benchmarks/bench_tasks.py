"""Seconds that a worker needs to load the task objects of each suite: ``python -m tests.benchmarks.bench_tasks``.

Each suite in a fresh process, on made-up files: once with lm-eval's and our own imports, which a process pays once, and
the task objects by themselves. Beside them, what the library's own registry takes to look for the same tasks.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tasks import staging

KINDS = ("longbench", "longbench_e", "infinitebench", "ruler", "choubun")

LOAD = """
import sys, time
started = time.perf_counter()
import workers.evaluator  # what every worker has imported before its tasks
from tasks.libraries import library
from tasks.registry import SuiteTaskSettings, build_task
from tasks.suites import SUITES
suite = SUITES[sys.argv[1]]
length = int(sys.argv[3]) if suite.needs_length else None
settings = [SuiteTaskSettings(kind=suite.kind, task=task, data=sys.argv[2], length=length) for task in suite.tasks]
library("lm_eval.tasks.longbench.metrics")
imported = time.perf_counter()
tasks = [build_task(each) for each in settings]
print(imported - started, time.perf_counter() - imported, len(tasks))
"""

REGISTRY = """
import time
from lm_eval.tasks import TaskManager
started = time.perf_counter()
TaskManager()
print(time.perf_counter() - started)
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        staging.stage_all(Path(folder) / "tasks")
        print("| suite | tasks | imports, once a process | task objects |", "|---|---:|---:|---:|", sep="\n")
        for kind in KINDS:
            words = _run(LOAD, kind, str(Path(folder) / "tasks"), str(staging.LENGTH))
            print(f"| {kind} | {words[2]} | {float(words[0]):.1f} s | {float(words[1]):.2f} s |")
    print(f"\nlm-eval's registry of all tasks: {float(_run(REGISTRY)[0]):.1f} s")


def _run(program: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()

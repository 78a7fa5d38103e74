"""Seconds from ``ray job submit`` to the first finished generation of the small preset, on a warm local cluster.

Starts a Ray head of its own on loopback, as deploy/README.md does, and submits two jobs one after the other, each to a
new run folder and stopped after its first generation: the first finds the cluster cold, the second warm. Run from the
root of the repository::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_submit
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from orchestrator.history import has_run, read_journal
from tests.cluster.local_head import LocalHead, namm

MOST_SECONDS = 60.0
"""What a warm cluster may take."""


def first_generation(head: LocalHead, folder: Path) -> dict[str, float]:
    """Seconds from the start of ``namm submit`` to what happens on the way to the first generation."""
    former = set(head.jobs())
    start = time.monotonic()
    client = namm(head, "submit", "small", "tracking.enabled=false", "--run", str(folder), "--address", head.address)
    signs = {
        "the cluster has the job": lambda: bool(set(head.jobs()) - former),
        "the driver has opened the journal": lambda: has_run(folder),
        "the first unit is scored": lambda: (folder / "units").exists(),
        "the first generation is finished": lambda: has_run(folder) and bool(read_journal(folder).generations),
    }
    seconds: dict[str, float] = {}
    try:
        for sign, is_there in signs.items():
            while not is_there():
                if client.poll() is not None:
                    sys.exit(f"the job has ended: {client.communicate()[1]}")
                time.sleep(0.1)
            seconds[sign] = time.monotonic() - start
    finally:
        for job in set(head.jobs()) - former:
            head.stop(job)
        client.communicate()
    return seconds


def main() -> None:
    """Print the seconds of both jobs; exit code 1 when the second took too long."""
    with tempfile.TemporaryDirectory() as runs, LocalHead() as head:
        for state in ("cold", "warm"):
            seconds = first_generation(head, Path(runs) / state)
            for sign, value in seconds.items():
                print(f"{state} cluster: {sign:<36} {value:6.1f} s", flush=True)
    sys.exit(seconds["the first generation is finished"] > MOST_SECONDS)


if __name__ == "__main__":
    main()

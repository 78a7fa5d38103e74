"""Seconds that ``import namm`` and attaching a memory take beyond importing transformers.

To be reached: 0.3 s in all (issue 5). The same figures without a clock are in ``tests/test_public_face.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from tests.test_public_face import cost_of_import, save_a_memory

REPEATS = 5


def main() -> None:
    """Print the median of a few fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        save_a_memory(Path(folder))
        runs = [cost_of_import(Path(folder)) for _ in range(REPEATS)]
    for part in ("import", "attach"):
        print(f"{part:<8}{median(run['seconds'][part] for run in runs) * 1000:8.1f} ms")
    print(f"modules {len(runs[0]['modules']):8}")


if __name__ == "__main__":
    main()

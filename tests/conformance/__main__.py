"""``python -m tests.conformance FOLDER [DEVICE]``: one line per case, exit code 1 when one fails, 2 when there is none.

On an accelerator the same golden data holds: it computes in float32 without shortcuts (TF32 is off).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.conformance.cases import check_case
from tests.conformance.substeps import CHECKS

USAGE = "usage: python -m tests.conformance FOLDER [DEVICE]   (make conformance GOLDEN=FOLDER DEVICE=cuda)"

Check = tuple[str, Callable[[], str]]


def find_checks(folder: Path, device: str) -> Iterator[Check]:
    """Every case (a folder with meta.json) and every known sub-step file, at or below ``folder``."""
    for meta in sorted(folder.rglob("meta.json")):
        yield meta.parent.name, lambda case=meta.parent: check_case(case, device)
    for path in sorted(path for path in folder.rglob("*.*") if path.name in CHECKS):
        yield f"{path.parent.name}/{path.name}", lambda path=path: CHECKS[path.name](path, device)


def is_usable(device: str) -> bool:
    """Whether something can be put there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        return False
    return True


def report(name: str, check: Callable[[], str]) -> bool:
    """Run one check and print its line."""
    try:
        print(f"pass  {name:28} {check()}", flush=True)
    except Exception as error:  # damaged files fail in many ways; each must fail its own case only
        print(f"FAIL  {name:28} {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return False
    return True


def main(arguments: list[str]) -> int:
    """Run all checks of a folder."""
    if len(arguments) not in (1, 2) or not Path(arguments[0]).is_dir():
        print(USAGE, file=sys.stderr)
        return 2
    device = arguments[1] if len(arguments) == 2 else "cpu"
    if not is_usable(device):
        print(f"there is no device {device!r} here: name one that torch can use, such as cpu or cuda", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    folder = Path(arguments[0])
    results = [report(name, check) for name, check in find_checks(folder, device)]
    for path in sorted(path for path in folder.rglob("substeps/*") if path.name not in CHECKS):
        print(f"skip  {path.parent.name + '/' + path.name:28} no such part in this version")
    if not results:
        print(f"no golden case (a folder with meta.json) in {arguments[0]}", file=sys.stderr)
        return 2
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

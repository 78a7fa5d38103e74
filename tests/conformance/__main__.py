"""``python -m tests.conformance FOLDER``: one line per case, exit code 1 when one fails, 2 when there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.conformance.cases import check_case
from tests.conformance.substeps import CHECKS

Check = tuple[str, Callable[[], str]]


def find_checks(folder: Path) -> Iterator[Check]:
    """Every case (a folder with meta.json) and every known sub-step file, at or below ``folder``."""
    for meta in sorted(folder.rglob("meta.json")):
        yield meta.parent.name, lambda case=meta.parent: check_case(case)
    for path in sorted(path for path in folder.rglob("*.*") if path.name in CHECKS):
        yield f"{path.parent.name}/{path.name}", lambda path=path: CHECKS[path.name](path)


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
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.conformance FOLDER   (make conformance GOLDEN=FOLDER)", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    folder = Path(arguments[0])
    results = [report(name, check) for name, check in find_checks(folder)]
    for path in sorted(path for path in folder.rglob("substeps/*") if path.name not in CHECKS):
        print(f"skip  {path.parent.name + '/' + path.name:28} no such part in this version")
    if not results:
        print(f"no golden case (a folder with meta.json) in {arguments[0]}", file=sys.stderr)
        return 2
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

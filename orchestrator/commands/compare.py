"""What ``namm compare`` does: one table and one page of several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.analysis.queries import database
from orchestrator.errors import InputError
from orchestrator.files import write_atomic
from orchestrator.pages.comparison import comparison_figures, comparison_page
from orchestrator.pages.figures import Answered
from orchestrator.run_report import require_libraries
from orchestrator.storage import Folder, folder_at
from orchestrator.terminal import Answer, facts, grid


def compare(places: Sequence[str], *, output: Path) -> Answer:
    """Compare runs.

    Args:
        places: paths or addresses of two or more run folders.
        output: file of the page.

    Raises:
        InputError: fewer than two runs, one twice, or a library is not installed.
        RunFolderError: one of them is no run, or of another version.
    """
    require_libraries()
    folders = [folder_at(place) for place in places]
    names = _names(folders)
    if len(names) < 2:
        raise InputError(f"there is nothing to compare {names[0]} with: name two or more run folders")
    with ExitStack() as stack:
        runs = {name: stack.enter_context(database(folder)) for name, folder in zip(names, folders, strict=True)}
        answers = comparison_figures(runs)
    write_atomic(output, comparison_page(answers, names).encode())
    results, settings = answers[0], answers[-1]
    document = {
        "runs": names,
        "results": _records(results),
        "differing_settings": _records(settings),
        "page": str(output),
    }
    parts = [_table(results), "", _table(settings), "", facts([("page", str(output))])]
    return Answer(document, parts)


def _names(folders: Sequence[Folder]) -> list[str]:
    """The folders' names, or their whole places where names are the same."""
    if repeated := [place for place, count in Counter(map(str, folders)).items() if count > 1]:
        raise InputError(f"{repeated[0]} is named twice: name each run once")
    counts = Counter(folder.name for folder in folders)
    return [folder.name if counts[folder.name] == 1 else str(folder) for folder in folders]


def _records(one: Answered) -> list[dict[str, Any]]:
    return [
        {name: cell.value if cell.is_word else float(cell.value) for name, cell in zip(one.names, row, strict=True)}
        for row in one.rows
    ]


def _table(one: Answered) -> Any:
    if not one.rows:
        return one.figure.empty
    titles = [f"{title} {unit}".strip() for title, unit, _ in one.headings]
    left = next((place for place, (_, _, is_word) in enumerate(one.headings) if not is_word), len(titles))
    return grid(titles, [[cell.shown for cell in row] for row in one.rows], left=left)

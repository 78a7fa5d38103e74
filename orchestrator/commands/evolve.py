"""What ``namm evolve`` and ``namm resume`` do: carry a run to its last generation and say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.config import RunConfig, TrackingSettings, config_from_dict, load_config
from orchestrator.journal import JOURNAL_NAME, read_journal
from orchestrator.progress import reporting
from orchestrator.report import HEADINGS, TableRow, printed_rows
from orchestrator.run import CHAMPION, SUMMARY, run
from orchestrator.terminal import Answer, facts, grid, installed_command
from orchestrator.tracking_server import tracking_uri, without_credentials


def evolve(*, preset: str, overrides: Sequence[str], folder: Path | None, quiet: bool) -> Answer:
    """Evolve a memory, or go on with the run that was interrupted in the folder.

    Args:
        preset: name of a preset, or a YAML file.
        overrides: texts like ``search.population=8``.
        folder: the run folder; None for ``runs/<preset>-seed<seed>``.
        quiet: say nothing but the table.

    Raises:
        NammError: the user can mend it.
    """
    config = load_config(preset, overrides)
    return _carry_out(config, folder or Path("runs") / f"{Path(preset).stem}-seed{config.seed}", quiet=quiet)


def resume(*, folder: Path, overrides: Sequence[str], takeover: bool, quiet: bool) -> Answer:
    """Go on with the run in a folder, with the settings that it was started with.

    Args:
        folder: the run folder.
        overrides: other values of settings that do not decide the trajectory.
        takeover: go on although another driver may still be at work there.
        quiet: say nothing but the table.

    Raises:
        NammError: the user can mend it.
    """
    config = config_from_dict(read_journal(folder).attempts[-1].config, overrides)
    return _carry_out(config, folder, takeover=takeover, quiet=quiet)


def _carry_out(config: RunConfig, folder: Path, *, quiet: bool, takeover: bool = False) -> Answer:
    opening = _standing(config, folder)
    try:
        with reporting(config.search.generations, sys.stderr, opening=opening, quiet=quiet) as report:
            summary = run(config, folder, report, takeover=takeover)
    except KeyboardInterrupt as interruption:
        interruption.add_note(how_to_resume(folder))
        raise
    places = {
        "run_folder": str(folder),
        "champion": str(folder / CHAMPION),
        "summary": str(folder / SUMMARY),
    }
    table = grid(HEADINGS, printed_rows([TableRow(**row) for row in summary["table"]]), left=2)
    pairs = [
        ("population_hash", summary["population_hash"]),
        *((name.replace("_", " "), place) for name, place in places.items()),
        ("MLflow", _how_to_see(config.tracking, folder)),
        ("time", _parts_of_time(summary["seconds"])),
    ]
    return Answer({**summary, **places}, [table] if quiet else [table, "", facts(pairs)])


def _standing(config: RunConfig, folder: Path) -> str:
    """What is about to happen, in one line."""
    total = config.search.generations
    if not (folder / JOURNAL_NAME).exists():
        return f"evolving in {folder}: {total} generations of {config.search.population} candidates"
    done = len(read_journal(folder).generations)
    return f"resuming the run in {folder}: {done} of {total} generations are done"


def how_to_resume(folder: Path) -> str:
    """What to tell somebody who has interrupted a run."""
    if not (folder / JOURNAL_NAME).exists():
        return "nothing was written yet"
    return f"every finished unit is safe; go on with: {installed_command('namm')} resume {folder}"


def _parts_of_time(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {seconds[part]:.0f} s" for part in ("start", "evolve", "evaluate"))


def _how_to_see(tracking: TrackingSettings, folder: Path) -> str:
    """Where the run is in MLflow: the server's page, or the command that opens a page on the database."""
    if not tracking.enabled:
        return "off (tracking.enabled)"
    address = without_credentials(tracking_uri(tracking, folder))
    if address.startswith("http"):
        return f"{address}, experiment {tracking.experiment}"
    return f"{installed_command('mlflow')} ui --backend-store-uri {address}"

"""What ``namm evolve`` and ``namm resume`` do: carry a run to its last generation and say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.config import RunConfig, TrackingSettings, config_from_dict, load_config
from orchestrator.credentials import without_credentials
from orchestrator.errors import DrainedError
from orchestrator.journal import has_run, read_journal
from orchestrator.progress import reporting
from orchestrator.report import TableRow, printed
from orchestrator.run import CHAMPION, REPORT, SUMMARY, run
from orchestrator.storage import Folder, folder_at
from orchestrator.terminal import Answer, facts, installed_command
from orchestrator.tracking_server import tracking_uri


def evolve(*, preset: str, overrides: Sequence[str], folder: str | None, quiet: bool, takeover: bool = False) -> Answer:
    """Evolve a memory, or go on with the run that was interrupted in the folder.

    Args:
        preset: name of a preset, or a YAML file.
        overrides: texts like ``search.population=8``.
        folder: path or address of the run folder; None for ``runs/<preset>-seed<seed>``.
        quiet: say nothing but the table.
        takeover: go on although another driver may still be at work there.

    Raises:
        NammError: the user can mend it.
    """
    config = load_config(preset, overrides)
    place = folder or Path("runs") / f"{Path(preset).stem}-seed{config.seed}"
    return _carry_out(config, folder_at(place), takeover=takeover, quiet=quiet)


def resume(*, folder: str, overrides: Sequence[str], takeover: bool, quiet: bool) -> Answer:
    """Go on with the run in a folder, with the settings that it was started with.

    Args:
        folder: path or address of the run folder.
        overrides: other values of settings that do not decide the trajectory.
        takeover: go on although another driver may still be at work there.
        quiet: say nothing but the table.

    Raises:
        NammError: the user can mend it.
    """
    config = config_from_dict(read_journal(folder).attempts[-1].config, overrides)
    return _carry_out(config, folder_at(folder), takeover=takeover, quiet=quiet)


def _carry_out(config: RunConfig, folder: Folder, *, quiet: bool, takeover: bool) -> Answer:
    opening = _standing(config, folder)
    try:
        with reporting(config.search.generations, sys.stderr, opening=opening, quiet=quiet) as report:
            summary = run(config, folder, report, takeover=takeover)
    except KeyboardInterrupt as interruption:
        interruption.add_note(how_to_resume(folder))
        raise
    except DrainedError as drained:
        document = {"run_folder": str(folder), "drained": True, "units_open": drained.num_open}
        return Answer(document, [f"{drained}; {how_to_resume(folder)}"])
    places = {
        "run_folder": str(folder),
        "champion": folder.place(CHAMPION),
        "summary": folder.place(SUMMARY),
        **({"report": folder.place(REPORT)} if folder.exists(REPORT) else {}),
    }
    table = printed([TableRow.of(row) for row in summary["table"]])
    pairs = [
        ("population_hash", summary["population_hash"]),
        *((name.replace("_", " "), place) for name, place in places.items()),
        ("MLflow", _how_to_see(config.tracking, folder)),
        ("time", _parts_of_time(summary["seconds"])),
    ]
    return Answer({**summary, **places}, [table] if quiet else [table, "", facts(pairs)])


def _standing(config: RunConfig, folder: Folder) -> str:
    """What is about to happen, in one line."""
    total = config.search.generations
    if not has_run(folder):
        return f"evolving in {folder}: {total} generations of {config.search.population} candidates"
    done = len(read_journal(folder).generations)
    return f"resuming the run in {folder}: {done} of {total} generations are done"


def how_to_resume(folder: Folder) -> str:
    """What to tell somebody who has interrupted a run."""
    if not has_run(folder):
        return "nothing was written yet"
    return f"every finished unit is safe; go on with: {installed_command('namm')} resume {folder}"


def _parts_of_time(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {seconds[part]:.0f} s" for part in ("start", "evolve", "evaluate", "report"))


def _how_to_see(tracking: TrackingSettings, folder: Folder) -> str:
    """Where the run is in MLflow: the server's page, or the command that opens a page on the database."""
    if not tracking.enabled:
        return "off (tracking.enabled)"
    address = without_credentials(tracking_uri(tracking, folder.desk))
    if address.startswith("http"):
        return f"{address}, experiment {tracking.experiment}"
    return f"{installed_command('mlflow')} ui --backend-store-uri {address}"

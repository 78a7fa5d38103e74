"""What ``namm report`` does: make the page of a run, and print it where that is wished."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from orchestrator.config import config_from_dict
from orchestrator.files import write_atomic
from orchestrator.history import read_journal
from orchestrator.pages.printing import print_pdf, require_browser
from orchestrator.run import REPORT
from orchestrator.run_report import Trace, make_report
from orchestrator.storage import Place, folder_at
from orchestrator.terminal import Answer, facts


def report(place: Place, *, output: Path | None, pdf: Path | None, trace: Trace, device: str | None) -> Answer:
    """Make the page of a run.

    Args:
        place: path or address of the run folder.
        output: file to write; None for ``report.html`` in the run folder.
        pdf: file for the same as PDF; None for none.
        trace: whether to load the model and follow tokens.
        device: of torch, for that; None for the run's own.

    Raises:
        InputError: libraries or the browser are missing.
        RunFolderError: there is no run, no finished generation, or one of another version.
    """
    if pdf is not None:
        require_browser()
    folder = folder_at(place)
    config = config_from_dict(read_journal(folder).attempts[-1].config)
    model = dataclasses.replace(config.model, device=device) if device else None
    page = make_report(folder, trace=trace, model=model).encode()
    if output is None:
        folder.write(REPORT, page)
    else:
        write_atomic(output, page)
    document = {"report": folder.place(REPORT) if output is None else str(output), "bytes": len(page)}
    if pdf is not None:
        with tempfile.TemporaryDirectory() as desk:
            printed = Path(desk) / REPORT
            printed.write_bytes(page)
            print_pdf(printed, pdf)
        document["pdf"] = str(pdf)
    pairs = [("report", f"{document['report']} ({len(page) / 1e6:.1f} MB)")]
    return Answer(document, [facts([*pairs, *([("pdf", str(pdf))] if pdf else [])])])

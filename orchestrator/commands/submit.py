"""What ``namm submit`` does: hand a run to a Ray cluster, by the very ``ray job submit`` that it prints.

The cluster must be able to see what the job names. In the root of the source tree the job takes the tree along, as
``deploy/runtime-env.yaml`` says; elsewhere the cluster runs the code that is installed there, and the job takes along
nothing but the folder of its settings. Whatever is needed and stays behind is refused here, before anything is sent.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from orchestrator import presets
from orchestrator.address import job_server_wants_token
from orchestrator.config import RunConfig, load_config
from orchestrator.credentials import without_credentials
from orchestrator.errors import ConfigError, FleetError, JobError
from orchestrator.terminal import Answer, facts, installed_command, visible
from tasks.corpus_task import MODEL_TOKENIZER, CorpusTaskSettings
from tasks.registry import SuiteTaskSettings

RUNTIME_ENV = "runtime-env.yaml"

_TAKEN = re.compile(r"Job '([^']+)' submitted successfully")
_LOG_BEGINS = "Tailing logs until the job exits"
_ENDED = re.compile(r"Job '[^']+' (succeeded|failed|was stopped)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"[\w.]*(?:Error|Exception): .+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How to speak of a job that the cluster has taken."""

    address: str
    submission_id: str
    """``?`` while the cluster has not told it."""
    run_folder: str

    @property
    def follow(self) -> str:
        """The command that shows its log."""
        return shlex.join(
            [installed_command("ray"), "job", "logs", "--address", self.address, "--follow", self.submission_id]
        )

    @property
    def stop(self) -> str:
        """The command that stops it."""
        return shlex.join([installed_command("ray"), "job", "stop", "--address", self.address, self.submission_id])

    @property
    def status(self) -> str:
        """The command that says where the run stands, on any machine that sees the run folder."""
        return shlex.join([installed_command("namm"), "status", self.run_folder])


def submit(
    *,
    preset: str,
    overrides: Sequence[str],
    run_folder: str,
    address: str,
    submission_id: str | None,
    takeover: bool,
    follow: bool,
    quiet: bool,
) -> Answer:
    """Submit a run as a job, and follow its log until it ends.

    Args:
        preset: name of a preset, or a YAML file.
        overrides: texts like ``search.population=8``.
        run_folder: where the driver keeps the run, on storage that outlives the cluster.
        address: of the cluster's dashboard.
        submission_id: name of the job; None lets Ray make one up.
        takeover: take the run over from a driver that may still be alive.
        follow: show the log until the job ends; False returns as soon as the cluster has the job.
        quiet: show neither command nor log.

    Raises:
        NammError: a setting is wrong, the job could not see what it needs, or the cluster does not take it.
        JobError: the job failed, or somebody stopped it.
    """
    words = job_command(
        preset=preset,
        overrides=overrides,
        run_folder=run_folder,
        address=address,
        submission_id=submission_id,
        takeover=takeover,
        follow=follow,
    )
    # Ray shows a token only where its mode says so; the cluster's answer is the better judge of that.
    mode = {"RAY_AUTH_MODE": "token"} if job_server_wants_token(address) and "RAY_AUTH_MODE" not in os.environ else {}
    command = " ".join([*(f"{name}={value}" for name, value in mode.items()), shlex.join(words)])
    say: Callable[[str], object] = (lambda _: None) if quiet else lambda line: print(line, file=sys.stderr, flush=True)
    say(command)
    job = Job(address=address, submission_id="?", run_folder=run_folder)
    try:
        with _process(words, mode) as lines:
            job = replace(job, submission_id=_job_id(lines, address))
            status = _follow(lines, job, say) if follow else "submitted"
    except KeyboardInterrupt as interruption:
        interruption.add_note(_after_interruption(job))
        raise
    document = {
        "submission_id": job.submission_id,
        "status": status,
        "address": address,
        "run_folder": run_folder,
        "command": command,
    }
    pairs = [("job", f"{job.submission_id} {status}"), ("run folder", run_folder), ("where it stands", job.status)]
    if not follow:
        pairs += [("follow it", job.follow), ("stop it", job.stop)]
    return Answer(document, [facts(pairs)])


def _after_interruption(job: Job) -> str:
    if job.submission_id == "?":
        return f"the job may have been submitted: {installed_command('ray')} job list --address {job.address} tells"
    return f"the job goes on; follow it with: {job.follow}; stop it with: {job.stop}"


def job_command(
    *,
    preset: str,
    overrides: Sequence[str],
    run_folder: str,
    address: str,
    submission_id: str | None = None,
    takeover: bool = False,
    follow: bool = True,
) -> list[str]:
    """The words of ``ray job submit`` for a run, checked as far as this machine can.

    Raises:
        ConfigError: a setting is wrong, or the job could not see what it needs.
    """
    overrides = ["cluster.address=auto", *overrides]  # inside a job the driver joins the cluster that it is on
    config = load_config(preset, overrides)
    if "://" not in run_folder and not Path(run_folder).is_absolute():
        raise ConfigError(
            f"--run must be an absolute path, on storage that outlives the cluster: got {run_folder}, which in a job "
            f"would lie in a copy of this folder that is thrown away; if the cluster is this machine: "
            f"--run {Path(run_folder).resolve()}"
        )
    luggage, options = _luggage(preset)
    words = [installed_command("ray"), "job", "submit", "--address", address, *options]
    words += ["--submission-id", submission_id] if submission_id else []
    words += [] if follow else ["--no-wait"]
    words += ["--", "python", "-m", "orchestrator", "evolve", luggage.name_of(preset), *overrides, "--run", run_folder]
    words += ["--takeover"] if takeover else []
    luggage.require_paths(config)
    _require_no_secret(words)
    return words


# --- what the job takes along -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Luggage:
    """The folder that Ray uploads, and from which the job starts."""

    folder: Path
    excluded: Sequence[str]
    """Patterns of names that stay behind."""

    def name_of(self, preset: str) -> str:
        """How the job names the preset or file."""
        files = presets.files(preset)
        shipped = presets.shipped_folder().resolve()
        for file in files:
            if not file.resolve().is_relative_to(shipped):  # what is shipped is wherever the code is
                self._require(file, str(file))
        if files[0].resolve().is_relative_to(shipped):
            return files[0].stem
        return f"./{files[0].resolve().relative_to(self.folder).as_posix()}"

    def require_paths(self, config: RunConfig) -> None:
        """Fail where a setting names a folder here that the job would look for in vain."""
        for key, value in _paths(config):
            if value and not Path(value).is_absolute() and Path(value).exists():
                self._require(Path(value), f"{key}: {value}")

    def _require(self, path: Path, told: str) -> None:
        resolved = path.resolve()
        if not resolved.is_relative_to(self.folder):
            raise ConfigError(
                f"{told} lies outside {self.folder}, all that the job takes along: put it there, or give an absolute "
                "path on storage that the cluster sees"
            )
        for part in resolved.relative_to(self.folder).parts:
            for pattern in self.excluded:
                if fnmatch.fnmatch(part, pattern):
                    raise ConfigError(
                        f"{told} stays behind: the job takes {self.folder} along without what matches {pattern} "
                        f"({RUNTIME_ENV}, .gitignore); put it elsewhere in that folder"
                    )


def _paths(config: RunConfig) -> Iterator[tuple[str, str | None]]:
    """All settings that may name a folder, by key."""
    yield "search.initial_genome", config.search.initial_genome
    yield "model.path_or_id", config.model.path_or_id
    for index, task in enumerate(config.tasks):
        if isinstance(task, SuiteTaskSettings):
            yield f"tasks.{index}.data", task.data
        if isinstance(task, CorpusTaskSettings):
            yield f"tasks.{index}.corpus", task.corpus
            yield f"tasks.{index}.tokenizer", None if task.tokenizer == MODEL_TOKENIZER else task.tokenizer


def _luggage(preset: str) -> tuple[_Luggage, list[str]]:
    """What the job takes along, and the options of ``ray job submit`` that say so."""
    shipped = presets.shipped_folder()
    here, runtime_env = Path.cwd(), shipped / RUNTIME_ENV
    is_source_tree = shipped.resolve().parent == here.resolve()
    folder = here if is_source_tree else presets.files(preset)[0].resolve().parent
    if folder in (Path.home(), Path(folder.anchor)):
        raise ConfigError(
            f"the job would take all of {folder} along, the folder of {preset}: put it into one of its own"
        )
    shown = runtime_env.relative_to(here) if runtime_env.is_relative_to(here) else runtime_env
    options = ["--runtime-env", str(shown), *([] if is_source_tree else ["--working-dir", str(folder)])]
    excluded = list(yaml.safe_load(runtime_env.read_text(encoding="utf-8"))["excludes"])
    for ignored in (".gitignore", ".rayignore"):  # Ray obeys both
        if (folder / ignored).is_file():
            excluded += (folder / ignored).read_text(encoding="utf-8").split("\n")
    names = (pattern.strip().strip("/") for pattern in excluded)
    patterns = [name for name in names if name and not name.startswith(("#", "!"))]
    return _Luggage(folder=folder.resolve(), excluded=patterns), options


def _require_no_secret(words: Sequence[str]) -> None:
    for word in words:
        if without_credentials(word) != word:
            raise ConfigError(
                f"{without_credentials(word)}: Ray shows the command of a job to everyone who sees its dashboard, so "
                "user and password must not stand there; put them into the environment of the cluster's head, like "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


# --- the command that is run ------------------------------------------------------------------------------------------


@contextmanager
def _process(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[Iterator[str]]:
    """What ``ray`` says, line by line; it ends with the block."""
    with subprocess.Popen(
        words,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us: we say how to go on, Ray would print a traceback
    ) as process:
        assert process.stdout is not None
        try:
            yield (visible(_COLOUR.sub("", line.rstrip("\n"))) for line in process.stdout)
        finally:
            process.kill()


def _job_id(lines: Iterator[str], address: str) -> str:
    """Read up to the name of the job; what comes before it is of interest only if the name does not come."""
    said: list[str] = []
    for line in lines:
        if taken := _TAKEN.search(line):
            return taken[1]
        said.append(line)
    raised = [line for line in said if _RAISED.match(line)]
    reason = (raised or [line for line in said if line] or ["it said nothing"])[-1]
    raise FleetError(f"the cluster at {address} does not take the job: {reason}")


def _follow(lines: Iterator[str], job: Job, say: Callable[[str], object]) -> str:
    """Show the log; returns how the job ended."""
    is_log, ending = False, ""
    for line in lines:
        if ended := _ENDED.search(line):
            ending = ended[1]
        if is_log:
            say(line)
        is_log = is_log or _LOG_BEGINS in line
    if ending == "succeeded":
        return ending
    if ending:
        raise JobError(
            f"job {job.submission_id} {ending}; what it said is shown by: {job.follow}; the same command again resumes "
            f"the run in {job.run_folder}"
        )
    raise FleetError(
        f"{job.address} does not answer any more; the job {job.submission_id} may go on: follow it with {job.follow}"
    )

"""The commands of ``namm``, their options, and the help that teaches them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import get_args

from orchestrator.arguments_analysis import ANALYSIS
from orchestrator.arguments_tasks import add_tasks
from orchestrator.arguments_transfer import add_transfer
from orchestrator.parsing import Commands, Parser, add_model, add_modes, count, ratio
from tasks.task import Split
from workers.memory.specs import RivalName


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Understand the arguments; settings (``key=value``) may stand anywhere, before, between and after options."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "words" not in arguments]
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    arguments.words = [*getattr(arguments, "words", ()), *rest]
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="namm",
        description="Evolve Neural Attention Memory Models: small networks that decide, for every layer and KV head\n"
        "of a frozen transformer, which tokens its KV cache keeps.",
        epilog="Begin with:\n"
        "  namm evolve                                        about three minutes on two cores\n"
        "  namm status runs/small-seed0                       where the run stands, also while it is alive\n"
        "  namm inspect runs/small-seed0                      its settings and curves\n"
        "  namm evaluate runs/small-seed0 --lengths 256,512   on held-out documents, beside its rivals\n"
        "  namm generate runs/small-seed0/champion --prompt prompt.txt\n\n"
        "namm COMMAND --help says more about each.",
    )
    parser.add_argument("--version", action="version", version=f"namm {metadata.version('namm-orchestrator')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        *(_add_evolve, _add_resume, _add_submit, _add_status),
        *(_add_evaluate, add_transfer, _add_generate, *ANALYSIS, _add_inspect, _add_track),
        *(add_tasks, _add_convert, _add_doctor),
    ):
        add(commands)
    return parser


SETTINGS_HELP = "settings that differ from the preset's, by dotted key, like search.population=8 or tasks.0.length=512"

PLACES_HELP = "a path, or an address like s3://bucket/folder or gs://bucket/folder"

TAKEOVER_HELP = (
    "go on although the run was not closed by a driver on another machine (a retried job: the former driver is surely "
    "dead, or stops at its next write)"
)


def _add_evolve(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "evolve",
        help="evolve a memory, or go on with an interrupted run",
        description="Evolve a memory and compare it with the full cache and its rivals on held-out examples.\n"
        "A run that was interrupted in the same folder is resumed; it ends with the very same memory.",
        epilog="Examples:\n"
        "  namm evolve\n"
        "  namm evolve small search.generations=10 seed=3 --run runs/first\n"
        "  namm evolve my-run.yaml cluster.address=auto cluster.workers=8   on a Ray cluster that is there already\n"
        "  namm evolve small cluster.address=in-process                     without Ray, to debug\n"
        "  namm evolve llama3-8b --run s3://bucket/runs/first --takeover     as a job that is retried by itself\n\n"
        f"Presets:\n{_presets()}\n\n"
        "A file of your own may begin with `extends: small` and name only what differs. An unknown key is answered\n"
        "with the known ones.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PRESET|FILE.yaml key=value",
        help=f"a preset or a YAML file (default: small), then {SETTINGS_HELP}",
    )
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="FOLDER",
        help=f"run folder: {PLACES_HELP} (default: runs/<preset>-seed<seed>)",
    )
    parser.add_argument("--takeover", action="store_true", help=TAKEOVER_HELP)
    add_modes(parser, quiet="print only the final table", command="evolve")


def _add_resume(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "resume",
        help="go on with a run, with the settings that it was started with",
        description="Go on with the run in a folder, from its journal alone. Settings that do not decide the\n"
        "trajectory may differ (cluster, tracking, evaluation, report, model.max_memory, model.sha256, more\n"
        "search.generations, stages to come with their tasks and weights); others need a new run folder.",
        epilog="Examples:\n"
        "  namm resume runs/small-seed0\n"
        "  namm resume runs/small-seed0 --generations 80 cluster.workers=4",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FOLDER|key=value",
        help=f"the run folder: {PLACES_HELP}; and settings that differ from the run's",
    )
    parser.add_argument("--generations", type=count, metavar="N", help="evolve up to this many generations in all")
    parser.add_argument("--takeover", action="store_true", help=TAKEOVER_HELP)
    add_modes(parser, quiet="print only the final table", command="resume")


def _add_submit(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "submit",
        help="hand a run to a Ray cluster as a job",
        description="Check the settings, print the `ray job submit` that hands the run to a cluster, run it, and\n"
        "follow the job's log. Ctrl-C ends the following, not the job. The same command again resumes the run.",
        epilog="Examples:\n"
        '  namm submit small --run "$PWD/runs/laptop"                    on a cluster on this machine\n'
        "  namm submit my-run.yaml --run s3://bucket/runs/first --no-follow\n"
        "  namm submit llama3-8b cluster.workers=8 --run /runs/llama3-8b --takeover\n\n"
        "In the root of the source tree the job takes the tree along (deploy/runtime-env.yaml) and runs its code;\n"
        "elsewhere the cluster's own code runs, and the job takes only the folder of your FILE along. A token comes\n"
        "from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PRESET|FILE.yaml key=value",
        help=f"a preset or a YAML file (default: small), then {SETTINGS_HELP}",
    )
    parser.add_argument(
        "--run",
        required=True,
        dest="run_folder",
        metavar="FOLDER",
        help="run folder on storage that outlives the cluster: an absolute path as the cluster's head sees it, or an "
        "address like s3://bucket/folder or gs://bucket/folder",
    )
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the cluster's dashboard")
    parser.add_argument(
        "--follow", action=argparse.BooleanOptionalAction, default=True, help="show the job's log until it ends"
    )
    parser.add_argument("--submission-id", metavar="ID", help="name of the job (default: Ray makes one up)")
    parser.add_argument("--takeover", action="store_true", help=TAKEOVER_HELP)
    add_modes(parser, quiet=None, command="submit")


def _add_status(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "status",
        help="say where a run stands at this moment",
        description="Say where a run stands: generation, units done, driver, workers, losses, time left. From the run\n"
        "folder alone, so on any machine that sees it, also while the run is alive. `namm watch` goes on looking.",
        epilog="Examples:\n"
        "  namm status runs/small-seed0\n"
        "  namm status s3://bucket/runs/first\n"
        "  namm status /runs/llama3-8b --json",
    )
    parser.add_argument("folder", metavar="RUN", help=f"the run folder: {PLACES_HELP}")
    add_modes(parser, quiet=None, command="status")


def _add_evaluate(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score saved memories, or rivals, on any tasks and any model",
        description="Score saved memories beside the full cache and their rivals, which hold as many bytes as they\n"
        "do; or rivals alone beside the full cache.",
        epilog="Examples:\n"
        "  namm evaluate runs/small-seed0                                   with the run's own settings\n"
        "  namm evaluate runs/small-seed0/champion --lengths 256,1024 --examples 32 --rivals h2o,recent\n"
        "  namm evaluate runs/small-seed0/champion --kept-ratio 0.1         with its dial turned\n"
        "  namm evaluate runs/a runs/b --tasks longbench/qasper,longbench/trec --model ./my-llama --folder out\n"
        "  namm evaluate h2o --kept-ratio 0.4 --output h2o.csv\n"
        "  namm evaluate full",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="WHAT|key=value",
        help="folders of saved memories, run folders (their champions), or rivals: "
        f"{', '.join(get_args(RivalName))}; and {SETTINGS_HELP}",
    )
    parser.add_argument(
        "--preset",
        "--config",
        metavar="PRESET|FILE.yaml",
        help="model, tasks and cluster to use (default: the run's own for a run folder, else small)",
    )
    _add_questions(parser)
    _add_answer(parser)
    add_modes(parser, quiet="show no progress", command="evaluate")


def _add_questions(parser: Parser) -> None:
    """What `namm evaluate` asks, of which model."""
    parser.add_argument("--model", help="another model: a folder in Hugging Face format, or a hub id, ID@COMMIT")
    parser.add_argument(
        "--tasks",
        metavar="TASK,TASK",
        help="other tasks: facts_prose, text_kv-2048, a suite (longbench), a task of one (longbench/qasper), and with "
        "a length where it needs one (ruler-4096/niah_single_1)",
    )
    parser.add_argument("--data", metavar="DIR", help="where suites are staged (default: $NAMM_TASKS)")
    parser.add_argument("--profile", choices=("lm_eval", "paper"), default="lm_eval", help="how suites are asked")
    parser.add_argument("--split", choices=get_args(Split), default="heldout", help="examples to ask")
    parser.add_argument(
        "--lengths", metavar="N,N", help="lengths of generated documents in tokens (evaluation.lengths)"
    )
    parser.add_argument("--examples", type=count, metavar="N", help="most examples per task (examples.heldout)")
    parser.add_argument("--rivals", metavar="NAME,NAME|none", help="rivals to compare with (evaluation.rivals)")
    parser.add_argument("--score", choices=("graded", "exact"), help="what of completions is measured (fitness.score)")
    parser.add_argument(
        "--kept-ratio",
        type=ratio,
        metavar="RATIO",
        help="tokens held in the end / tokens seen: by rivals alone (default: 0.25), or by memories, whose dials are "
        "turned for each length on training examples (default: as they were saved)",
    )


def _add_answer(parser: Parser) -> None:
    """Where `namm evaluate` keeps what it finds, and how it says it."""
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="keep every scored unit and all forms of the table here, show the result in MLflow, and go on here after "
        "an interruption",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the table here: .json (all there is), .md, .csv or .parquet"
    )
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="of what is printed")


def _add_generate(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="complete a prompt under a memory, and show what of it was kept",
        description="Complete a prompt greedily under a saved memory. Shows how many tokens each KV head holds in\n"
        "the end, the bytes held beside those of the full cache, and the prompt with its forgotten tokens marked.",
        epilog="Examples:\n"
        "  namm generate runs/small-seed0/champion --prompt prompt.txt\n"
        "  cat prompt.txt | namm generate runs/small-seed0/champion --show completion\n"
        "  namm generate full --prompt prompt.txt --max-new-tokens 4",
    )
    parser.add_argument("memory", metavar="MEMORY", help="folder of a saved memory, or full for the full cache")
    add_model(parser)
    parser.add_argument("--prompt", default="-", metavar="FILE", help="text to complete; - reads standard input")
    parser.add_argument("--max-new-tokens", type=count, default=32, metavar="N", help="most tokens to decode")
    parser.add_argument("--show", choices=("kept", "completion"), default="kept", help="completion: the bare text")
    add_modes(parser, quiet=None, command="generate")


def _add_inspect(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="describe a run or a saved memory in full",
        description="Describe a run in full, from its folder alone, also while it is alive: where it stands (as `namm\n"
        "status` does), settings, curves, hashes; or say what a saved memory is and where it came from.",
        epilog="Examples:\n  namm inspect runs/small-seed0\n  namm inspect runs/small-seed0/champion --json",
    )
    parser.add_argument(
        "what", metavar="RUN|MEMORY", help="a run folder, or the folder of a saved memory, also by address"
    )
    add_modes(parser, quiet=None, command="inspect")


def _add_track(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "track",
        help="show a run in MLflow, from its folder alone",
        description="Build a run in MLflow from its folder: settings, every point with its time, tasks, summary and\n"
        "champion. For a server that lost the run or never had it; doing it twice adds nothing.",
        epilog="Examples:\n"
        "  namm track runs/small-seed0 --uri http://127.0.0.1:5000\n"
        "  namm track s3://bucket/runs/first --uri sqlite:///mlflow.db --experiment paper",
    )
    parser.add_argument("folder", metavar="RUN", help=f"the run folder: {PLACES_HELP}")
    parser.add_argument("--uri", help="address of the MLflow server, or of a database (default: the run's own)")
    parser.add_argument("--experiment", metavar="NAME", help="to list the run under (default: the run's own)")
    add_modes(parser, quiet=None, command="track")


def _add_convert(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "convert",
        help="read a checkpoint of the published implementation, or write one",
        description="Make a memory of a checkpoint of the published implementation (its ckpt.pt), or the other way\n"
        "round. A checkpoint is read as tensors and plain values; what holds anything else is refused, not run.",
        epilog="Examples:\n"
        "  namm convert ckpt.pt --to memories/published\n"
        "  namm convert memories/published --to exported/ckpt.pt",
    )
    parser.add_argument("source", metavar="CKPT|MEMORY", help="a file, or the folder of a saved memory, or its hub id")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER|CKPT", help="a folder, or a file like x.pt")
    add_modes(parser, quiet=None, command="convert")


def _add_doctor(commands: Commands[Parser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say whether a memory can be attached to a model, and what it would find there",
        description="Look at a model's configuration: layers, KV heads, windows, bytes a token, what would be hooked,\n"
        "and what does not work and why. Reads no weights and runs no code that comes with the model.",
        epilog="Examples:\n"
        "  namm doctor small-llama\n"
        "  namm doctor ./my-model --memory runs/small-seed0/champion\n"
        "  namm doctor meta-llama/Llama-3.2-1B --json               asks the hub for the configuration",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="small-llama, a folder in Hugging Face format, or a hub id, also ID@COMMIT"
    )
    parser.add_argument("--memory", metavar="FOLDER", help="a saved memory whose settings should fit, also by address")
    add_modes(parser, quiet=None, command="doctor")


def _presets() -> str:
    """The shipped presets with the first sentence of their comments."""
    lines = []
    for file in sorted((resources.files("deploy") / "presets").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first_line = file.read_text(encoding="utf-8").partition("\n")[0]
            lines.append(f"  {file.name.removesuffix('.yaml'):<12} {first_line.removeprefix('# ')}")
    return "\n".join(lines)

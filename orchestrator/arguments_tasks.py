"""``namm tasks`` and its four actions, their options, and the help that teaches them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from orchestrator.parsing import Commands, Parser, add_modes, count
from tasks.profiles import Profile
from tasks.suites import SUITES
from tasks.task import Split

DATA_HELP = "folder that suites are staged in (default: $NAMM_TASKS, or ~/.cache/namm/tasks)"

SUITES_HELP = f"one of {', '.join(SUITES)}"


def add_tasks(commands: Commands[Parser]) -> None:
    """``namm tasks``."""
    parser = commands.add_parser(
        "tasks",
        help="list, show, download or make up the tasks of published suites",
        description="The tasks of LongBench, InfiniteBench, RULER and ChouBun: what there is, an example as a model\n"
        "sees it, and the two ways to have a suite's files on this machine.",
        epilog="Examples:\n"
        "  namm tasks list\n"
        "  namm tasks fetch longbench --to /data/tasks\n"
        "  namm tasks show longbench/qasper --data /data/tasks\n\n"
        "namm tasks ACTION --help says more about each.",
    )
    actions: Commands[Parser] = parser.add_subparsers(
        title="actions", metavar="ACTION", help="one of", dest="action", required=True
    )
    for add in (_add_list, _add_show, _add_fetch, _add_generate):
        add(actions)


def _add_list(actions: Commands[Parser]) -> None:
    parser = actions.add_parser(
        "list",
        help="say which suites and tasks there are, and which are staged",
        description="Say which suites and tasks there are, how they are scored, how many rows the hub has, and which\n"
        "are staged on this machine.",
        epilog="Examples:\n  namm tasks list\n  namm tasks list ruler --data /data/tasks --json",
    )
    parser.add_argument("suite", nargs="?", metavar="SUITE", help=f"{SUITES_HELP} (default: all)")
    parser.add_argument("--data", metavar="DIR", help=DATA_HELP)
    add_modes(parser, quiet=None, command="tasks")


def _add_show(actions: Commands[Parser]) -> None:
    parser = actions.add_parser(
        "show",
        help="show an example as a model sees it",
        description="Show an example of a staged task: its prompt, gold answers, what stops a completion and how long\n"
        "it may be; with --model also its tokens, and what of it would be cut out of the middle.",
        epilog="Examples:\n"
        "  namm tasks show longbench/qasper\n"
        "  namm tasks show longbench/trec --profile paper --split heldout --index 3 --full\n"
        "  namm tasks show ruler/niah_single_1 --length 4096 --model small-llama",
    )
    parser.add_argument("task", metavar="SUITE/TASK", help="as `namm tasks list` has them")
    parser.add_argument("--data", metavar="DIR", help=DATA_HELP)
    parser.add_argument("--profile", choices=get_args(Profile), default="lm_eval", help="of prompt, stop and score")
    parser.add_argument("--split", choices=get_args(Split), default="train", help="of the rows")
    parser.add_argument("--index", type=int, default=0, metavar="I", help="of the example in its split")
    parser.add_argument("--length", type=count, metavar="N", help="context length in tokens, for RULER")
    parser.add_argument("--model", help="small-llama, a folder in Hugging Face format, or a hub id, ID@COMMIT")
    parser.add_argument("--full", action="store_true", help="all of a long prompt, not only its head and tail")
    add_modes(parser, quiet=None, command="tasks")


def _add_fetch(actions: Commands[Parser]) -> None:
    parser = actions.add_parser(
        "fetch",
        help="stage a suite from the Hugging Face hub",
        description="Download a suite's files as the hub has them, read and count every row, and write SOURCE.json\n"
        "with the commit and the hash of each file. Interrupted, the same command goes on; done, it says so. Carry\n"
        "the folder to machines without a network.",
        epilog="Examples:\n"
        "  namm tasks fetch longbench --to /data/tasks\n"
        "  namm tasks fetch infinitebench --to /data/tasks --revision COMMIT      2.5 GB\n"
        "  namm tasks fetch longbench --to /data/tasks --offline                  files that you put there",
    )
    parser.add_argument("suite", metavar="SUITE", help=SUITES_HELP)
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to stage suites in")
    parser.add_argument("--revision", help="branch, tag or commit (default: what is staged, or else the newest)")
    parser.add_argument("--offline", action="store_true", help="check the files that are there, and download nothing")
    add_modes(parser, quiet=None, command="tasks")


def _add_generate(actions: Commands[Parser]) -> None:
    parser = actions.add_parser(
        "generate",
        help="make up a suite's files, for trying things out",
        description="Write files in exactly a suite's format, for all its tasks, from text that comes with Python.\n"
        "What is scored on them compares with nothing published. The same arguments give the same bytes.",
        epilog="Examples:\n"
        "  namm tasks generate longbench --to /data/made-up --rows 64\n"
        "  namm tasks generate ruler --to /data/made-up --length 1024 --model small-llama",
    )
    parser.add_argument("suite", metavar="SUITE", help=SUITES_HELP)
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="folder to stage suites in")
    parser.add_argument("--rows", type=count, default=32, metavar="N", help="rows of each task")
    parser.add_argument("--length", type=count, default=512, metavar="N", help="of a context, in tokens")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="text to write from (default: Python's own)")
    parser.add_argument(
        "--words",
        dest="in_words",
        action="store_true",
        help="longbench: trec, triviaqa and samsum in the words that small-llama knows",
    )
    parser.add_argument("--model", help="whose tokenizer counts (default: pieces of words, roughly), as for `show`")
    add_modes(parser, quiet=None, command="tasks")

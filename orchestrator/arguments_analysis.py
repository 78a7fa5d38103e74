"""The commands of ``namm`` for people who look at results: what was forgotten, what the tables say, reports."""

from __future__ import annotations

from pathlib import Path

from orchestrator.parsing import Commands, Parser, add_model, add_modes, count, pause, ratio
from tasks.token_kinds import LANGUAGES


def add_explain(commands: Commands[Parser]) -> None:
    """``namm explain``."""
    parser = commands.add_parser(
        "explain",
        help="show what a memory kept and dropped of a text, token by token, and when",
        description="Let a model read a text under a memory, and show for every token, layer and KV head how\n"
        "important it was at each update and at which one it was dropped: the text shaded in colour here; a page with\n"
        "sliders over updates, layers and heads; and two Parquet tables.",
        epilog="Examples:\n"
        "  namm explain runs/small-seed0 --text prompt.txt\n"
        "  namm explain runs/small-seed0/champion --model ./my-llama --text main.py --folder explained/main\n"
        "  namm explain h2o --kept-ratio 0.2 --text prompt.txt\n\n"
        "The page is one file that works without a network; open it from the disk.",
    )
    parser.add_argument("memory", metavar="MEMORY", help="folder of a saved memory, a run folder, or a rival's name")
    parser.add_argument("--text", required=True, metavar="FILE", help="text to read; - reads standard input")
    add_model(parser)
    add_language(parser)
    parser.add_argument(
        "--kept-ratio",
        type=ratio,
        metavar="RATIO",
        help="of a rival: tokens that it may hold after an update / tokens of the text (default: 0.25)",
    )
    parser.add_argument("--folder", type=Path, default=Path("explained"), metavar="DIR", help="for page and tables")
    add_modes(parser, quiet=None, command="explain")


def add_kinds(commands: Commands[Parser]) -> None:
    """``namm kinds``."""
    parser = commands.add_parser(
        "kinds",
        help="count which kinds of tokens a memory forgets: comments, function words, facts",
        description="Let a model read texts under a memory, and count which kinds of tokens it still holds after its\n"
        "last update, by layer and KV head, beside random and H2O, which hold exactly as many tokens in every head.\n"
        "Writes a page with charts, and the counts as Parquet.",
        epilog="Examples:\n"
        "  namm kinds runs/small-seed0                                held-out examples of the run's own tasks\n"
        "  namm kinds runs/small-seed0 --text main.py --text essay.txt --model ./my-llama\n"
        "  namm kinds memories/published --model meta-llama/Llama-3.2-1B@COMMIT --text main.py --device cuda",
    )
    parser.add_argument("memory", metavar="MEMORY", help="folder of a saved memory, or a run folder")
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="a text to read, again for more of them (default: held-out examples of the run's tasks)",
    )
    add_model(parser)
    add_language(parser)
    parser.add_argument("--examples", type=count, default=16, metavar="N", help="most of each task, without --text")
    parser.add_argument("--folder", type=Path, default=Path("kinds"), metavar="DIR", help="for page and tables")
    add_modes(parser, quiet=None, command="kinds")


def add_query(commands: Commands[Parser]) -> None:
    """``namm query``."""
    parser = commands.add_parser(
        "query",
        help="ask the tables of a run in SQL",
        description="Ask the tables of a run in SQL, also while it is alive (DuckDB, the extra `analysis`). Beside\n"
        "the tables there are views for common questions; without a question both are listed.",
        epilog="Examples:\n"
        "  namm query runs/small-seed0\n"
        '  namm query runs/small-seed0 "SELECT * FROM fitness ORDER BY generation"\n'
        '  namm query s3://bucket/runs/first "SELECT layer, kept_ratio FROM kept_by_layer WHERE generation = 7" --json',
    )
    parser.add_argument("folder", metavar="RUN", help="the run folder: a path, or an address like s3://bucket/folder")
    parser.add_argument("sql", nargs="?", metavar="SQL", help="the question (default: list tables and views)")
    parser.add_argument("--format", choices=("table", "csv"), default="table", help="of what is printed")
    add_modes(parser, quiet=None, command="query")


def add_report(commands: Commands[Parser]) -> None:
    """``namm report``."""
    parser = commands.add_parser(
        "report",
        help="make one page about a run, with charts, tables and the queries behind every number",
        description="Make one static page about a run: what was asked, how it evolved, how it compares with its\n"
        "rivals, what is kept where and what is forgotten, what it cost, and how to repeat it. `namm evolve` makes it\n"
        "at the end of every run; this command makes it again at any time after the first generation.",
        epilog="Examples:\n"
        "  namm report runs/small-seed0\n"
        "  namm report runs/small-seed0 --output report.html --pdf report.pdf\n"
        "  namm report /runs/llama3-8b --trace always --device cuda     follows tokens on a large model too",
    )
    parser.add_argument("folder", metavar="RUN", help="the run folder: a path, or an address like s3://bucket/folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: report.html in the run folder)")
    parser.add_argument("--pdf", type=Path, metavar="FILE", help="the same as PDF, by Chromium")
    parser.add_argument(
        "--trace",
        choices=("auto", "always", "never"),
        default="auto",
        help="load the model and follow tokens of held-out examples; auto: unless done before, for small models here",
    )
    parser.add_argument("--device", help="torch device to follow tokens on (default: the run's own, model.device)")
    add_modes(parser, quiet=None, command="report")


def add_store(commands: Commands[Parser]) -> None:
    """``namm store``."""
    parser = commands.add_parser(
        "store",
        help="describe the tables of a run, or make few large files of many small ones",
        description="describe: the tables of a run, with their rows, files, bytes and version.\n"
        "compact: one file for every fifty finished generations in place of one each. The rows stay as they are, and\n"
        "a compacted run can be read, queried, reported and resumed like any other.",
        epilog="Examples:\n  namm store describe runs/small-seed0\n  namm store compact s3://bucket/runs/first",
    )
    parser.add_argument("action", choices=("describe", "compact"), help="what to do")
    parser.add_argument("folder", metavar="RUN", help="the run folder: a path, or an address like s3://bucket/folder")
    add_modes(parser, quiet=None, command="store")


def add_language(parser: Parser) -> None:
    """Which kinds of tokens are told apart."""
    parser.add_argument(
        "--language",
        default="auto",
        choices=("auto", *LANGUAGES),
        help="which kinds of tokens to tell apart: those of Python, of English prose, or of generated documents",
    )


def add_compare(commands: Commands[Parser]) -> None:
    """``namm compare``."""
    parser = commands.add_parser(
        "compare",
        help="put several runs into one table and on one page",
        description="Put several runs beside each other: results on held-out examples, fitness over the generations,\n"
        "what is kept where, what they cost, and the settings that differ.",
        epilog="Examples:\n"
        "  namm compare runs/small-seed0 runs/small-seed1\n"
        "  namm compare runs/cheap s3://bucket/runs/dear --output prices.html",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="run folders: paths, or addresses like s3://bucket/folder"
    )
    parser.add_argument("--output", type=Path, default=Path("comparison.html"), metavar="FILE", help="file of the page")
    add_modes(parser, quiet=None, command="compare")


def add_watch(commands: Commands[Parser]) -> None:
    """``namm watch``."""
    parser = commands.add_parser(
        "watch",
        help="show a run live: generations, workers, curves, the last lines of its log",
        description="Show a run live in a terminal until it ends, from its journal alone, so that watching costs the\n"
        "run nothing. Elsewhere than in a terminal: a line for every generation.",
        epilog="Examples:\n  namm watch runs/small-seed0\n  namm watch s3://bucket/runs/first --every 30",
    )
    parser.add_argument("folder", metavar="RUN", help="the run folder: a path, or an address like s3://bucket/folder")
    parser.add_argument("--every", type=pause, default=2, metavar="SECONDS", help="between two looks at the journal")
    add_modes(parser, quiet=None, command="watch")


ANALYSIS = (add_explain, add_kinds, add_report, add_compare, add_query, add_store, add_watch)
"""All of them, in the order of the help."""

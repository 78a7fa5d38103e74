"""``namm transfer``, its options, and the help that teaches them."""

from __future__ import annotations

from pathlib import Path

from orchestrator.parsing import Commands, Parser, add_modes, count


def add_transfer(commands: Commands[Parser]) -> None:
    """``namm transfer``."""
    parser = commands.add_parser(
        "transfer",
        help="carry a memory, untouched, to other models and problems",
        description="Compare a memory with the full cache and with rivals at equal bytes on models that it was not\n"
        "evolved on, with its feature statistics as evolved and as re-estimated on the new model. Small models of\n"
        "this project are trained when they are first asked for, and kept in ~/.cache/namm ($NAMM_CACHE).",
        epilog="Examples:\n"
        "  namm transfer runs/small-seed0 --to language                  three small Llamas of other shapes\n"
        "  namm transfer runs/small-seed0 --to vision                    a small model that watches made-up clips\n"
        "  namm transfer runs/small-seed0 --to control                   a Decision Transformer for HalfCheetah\n"
        "  namm transfer runs/small-seed0 --to deep-llama --tasks facts_code-512 --examples 32\n"
        "  namm transfer runs/paper --to ./my-model --tasks longbench/qasper --data /data/tasks\n"
        "  namm transfer runs/small-seed0 --to mqa-llama cluster.address=in-process --output mqa.json",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="MEMORY|key=value",
        help="folder of a saved memory, or a run folder (its champion), also by address; and settings, like "
        "cluster.workers=1 or evaluation.lengths=[512]",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="MODEL,MODEL",
        help="language (all small Llamas of other shapes), deep-llama, mqa-llama, wide-llama; vision, shapes-vlm; "
        "control, cheetah-dt; a folder in Hugging Face format, or a hub id with its commit, ID@COMMIT",
    )
    parser.add_argument(
        "--tasks",
        metavar="TASK,TASK",
        help="as `namm evaluate` takes them (default: facts_*-256); about clips: shapes, longvideobench, mlvu or "
        "mlvu-2_needle; of a Decision Transformer an environment, as in Hopper-v5",
    )
    parser.add_argument(
        "--preset", metavar="PRESET|FILE.yaml", help="placement, examples and cluster to use (default: small)"
    )
    parser.add_argument("--data", metavar="DIR", help="where the data of the tasks is staged (default: $NAMM_TASKS)")
    parser.add_argument("--examples", type=count, metavar="N", help="most held-out examples of each task")
    parser.add_argument("--rivals", metavar="NAME,NAME|none", help="rivals to compare with (default: all)")
    parser.add_argument(
        "--statistics",
        choices=("evolved", "re-estimated", "both"),
        default="both",
        help="of the features: as the memory has them, or gathered with the new model's full cache",
    )
    parser.add_argument(
        "--other-version",
        action="store_true",
        help="let a Decision Transformer act in another version of its environment than it has learned from",
    )
    parser.add_argument(
        "--max-steps",
        type=count,
        metavar="N",
        help="cut episodes after so many steps (default: the environment's)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result here: .json (all of it) or .md")
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="of what is printed")
    add_modes(parser, quiet="show no progress", command="transfer")

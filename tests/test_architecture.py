"""Imports go one way, three libraries live in one room each, and nothing is ever unpickled."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "tasks": {"tasks"},
    "workers.memory": {"workers.memory"},
    "workers": {"tasks", "workers"},
    "orchestrator": {"tasks", "workers", "orchestrator"},
    "deploy": set(),
    "namm": {"workers"},
}
"""Room -> the rooms of this project that it may import; nobody may import ``deploy`` or ``namm``."""

MAY_USE = {
    "tasks": {"numpy"},
    "workers": {"numpy", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "triton"},
}
"""Libraries of the rooms that run on workers: a machine with an accelerator needs no others."""

MAY_USE_LATE = {
    "tasks.choubun": {"lm_eval", "fugashi"},
    "tasks.corpus_task": {"tokenizers"},
    "tasks.fetching": {"huggingface_hub"},
    "tasks.lm_eval_adapter": {"lm_eval", "datasets"},
    "tasks.profiles": {"lm_eval"},
    "tasks.rows": {"datasets", "pyarrow"},
    "tasks.writers.choubun": {"pyarrow"},
    "tasks.writers.ruler": {"lm_eval", "nltk"},
    "workers.harness": {"lm_eval"},
}
"""Module -> optional libraries that it may import besides, inside functions or for types only: what needs none of
them works without."""

ONLY_IN = {
    "ray": r"orchestrator\.fleet(_\w+)?",
    "nevergrad": r"orchestrator\.search",
    "cma": r"orchestrator\.search",
    "mlflow": r"orchestrator\.tracking_mlflow",
}
"""Library -> the modules that know it, as a pattern."""

CHECKPOINT_READER = "workers.memory.published"
"""May call ``torch.load(…, weights_only=True)``: the published implementation stores nothing but such a pickle, and
torch's restricted reader makes tensors and plain values of it, or refuses."""

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PROJECT = {"orchestrator", "workers", "tasks", "deploy", "namm", "tests"}


def violations(module: str, source: str) -> list[str]:
    """What the source of ``module`` (a dotted name) does against the rules, one sentence each."""
    tree = ast.parse(source)
    at_once = imported(tree, module, at_once=True)
    found = [
        complaint
        for name in sorted(imported(tree, module))
        for complaint in import_violations(module, name, at_once=name in at_once)
    ]
    excused = {id(node.func) for node in ast.walk(tree) if module == CHECKPOINT_READER and reads_restricted(node)}
    return found + [
        f"{module}:{node.lineno} unpickles" for node in ast.walk(tree) if unpickles(node) and id(node) not in excused
    ]


def import_violations(module: str, name: str, *, at_once: bool) -> Iterator[str]:
    """What is wrong with ``module`` importing ``name``, when it is imported itself or later."""
    library = name.partition(".")[0]
    if UNPICKLERS & set(name.split(".")) or name == "torch.load":
        yield f"{module} imports {name}: nothing is unpickled"
    if library in ONLY_IN and not re.fullmatch(ONLY_IN[library], module):
        yield f"{module} imports {library}: only {ONLY_IN[library]} may"
    if library in PROJECT:
        if not any(within(name, allowed) for allowed in MAY_IMPORT[room_of(module)]):
            yield f"{module} imports {name}: {room_of(module)} may only import {sorted(MAY_IMPORT[room_of(module)])}"
    elif library not in sys.stdlib_module_names and (at_once or library not in MAY_USE_LATE.get(module, ())):
        rooms = [room for room in MAY_USE if within(module, room) and library not in MAY_USE[room]]
        yield from (f"{module} imports {library}: {room} may only use {sorted(MAY_USE[room])}" for room in rooms)


def imported(tree: ast.Module, module: str, *, at_once: bool = False) -> set[str]:
    """Dotted names of all that is imported: at the top, inside functions, for types only, and by ``import_module``.

    Those that are imported ``at_once`` are neither inside functions nor for types only.
    """
    names: set[str] = set()
    for node in nodes_run_at_once(tree) if at_once else ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=base, level=0):
                names |= {f"{base}.{alias.name}" for alias in node.names}
            case ast.ImportFrom(module=base, level=level):
                package = ".".join([*module.split(".")[:-level], *([base] if base else [])])
                names |= {f"{package}.{alias.name}" for alias in node.names}
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]):
                names |= {text} if name in ("import_module", "__import__") else set()
    return names


def nodes_run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """All but what stands inside functions, or under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
        yield child
        yield from nodes_run_at_once(child)


def unpickles(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
            return True
        case ast.keyword(arg="allow_pickle", value=value):
            return not (isinstance(value, ast.Constant) and value.value is False)
    return False


def reads_restricted(node: ast.AST) -> bool:
    """Whether it is a call with ``weights_only=True`` in plain sight."""
    return isinstance(node, ast.Call) and any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in node.keywords
    )


def room_of(module: str) -> str:
    return max((room for room in MAY_IMPORT if within(module, room)), key=len)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_files() -> list[Path]:
    folders = [ROOT / room for room in MAY_IMPORT if "." not in room and (ROOT / room).is_dir()]
    return sorted([*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))])


def test_the_project_keeps_its_rules():
    files = project_files()
    assert {module_name(file) for file in files} >= {"orchestrator.config", "workers.unit", "tasks.task"}
    assert [line for file in files for line in violations(module_name(file), file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tasks.generated", "from workers.unit import Unit"),
        ("tasks.generated", "import yaml"),
        ("tasks.generated", "def late():\n    import datasets"),
        ("tasks.rows", "import datasets"),
        ("tasks.rows", "try:\n    import datasets\nexcept ImportError:\n    pass"),
        ("tasks.rows", "class Reader:\n    import datasets"),
        ("workers.evaluator", "import orchestrator.config"),
        ("workers.evaluator", "def late():\n    from orchestrator import config"),
        ("workers.evaluator", "if TYPE_CHECKING:\n    from orchestrator.config import RunConfig"),
        ("workers.evaluator", "import rich.table"),
        ("workers.memory.namm", "from workers.unit import Unit"),
        ("workers.memory.namm", "from workers import unit"),
        ("workers.memory.namm", "from .. import unit"),
        ("workers.memory.namm", "from ..unit import Unit"),
        ("workers.memory.namm", "from tasks.task import Split"),
        ("workers.memory.namm", "importlib.import_module('tasks.task')"),
        ("orchestrator.config", "import deploy"),
        ("orchestrator.config", "import namm"),
        ("orchestrator.config", "from tests.helpers import toy"),
        ("orchestrator.config", "import ray"),
        ("orchestrator.cli", "from ray.util import metrics"),
        ("orchestrator.evolution", "import nevergrad as ng"),
        ("orchestrator.evolution", "__import__('mlflow')"),
        ("orchestrator.fleeting", "import ray"),
        ("workers.evaluator", "import ray"),
        ("orchestrator.store", "import pickle"),
        ("orchestrator.store", "from ray import cloudpickle"),
        ("workers.memory.pretrained", "weights = torch.load(path)"),
        ("workers.memory.pretrained", "from torch import load"),
        ("workers.memory.pretrained", "torch.load(path, weights_only=True)"),
        ("workers.memory.published", "torch.load(path)"),
        ("workers.memory.published", "torch.load(path, weights_only=False)"),
        ("workers.memory.published", "torch.load(path, weights_only=restricted)"),
        ("workers.memory.published", "read = torch.load"),
        ("workers.memory.published", "from torch import load"),
        ("workers.memory.published", "import pickle"),
        ("orchestrator.store", "np.load(path, allow_pickle=True)"),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert violations(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.fleet", "import ray"),
        ("orchestrator.search", "import nevergrad as ng\nimport cma"),
        ("orchestrator.tracking_mlflow", "from mlflow import MlflowClient"),
        ("orchestrator.config", "from workers.memory.specs import NammSettings\nfrom tasks import registry"),
        ("orchestrator.presets", "import yaml\nresources.files('deploy')"),
        ("workers.evaluator", "import torch\nfrom tasks.task import Task\nfrom .memory import namm"),
        ("workers.memory.namm", "from . import scorer\nfrom workers.memory.scorer import score\nimport dataclasses"),
        ("tasks.rows", "def late():\n    import datasets"),
        ("tasks.rows", "if TYPE_CHECKING:\n    import datasets"),
        ("namm", "from workers.memory.memory import Memory"),
        ("orchestrator.store", "np.load(path, allow_pickle=False)"),
        ("workers.memory.published", "torch.load(path, map_location='cpu', weights_only=True)"),
    ],
)
def test_what_the_rules_allow_is_not_complained_about(module, source):
    assert violations(module, source) == []


@pytest.mark.slow
def test_workers_and_tasks_import_on_a_machine_without_the_orchestrators_libraries():
    # yaml stays: transformers itself imports it through huggingface_hub; MAY_USE above keeps it out of our own files.
    absent = ["ray", "mlflow", "nevergrad", "cma", "pyarrow", "rich", "pydantic"]
    absent += ["lm_eval", "datasets", "nltk", "fugashi"]  # of extras
    modules = [name for name in map(module_name, project_files()) if within(name, "workers") or within(name, "tasks")]
    # Triton's own kernels: ``kernels`` imports them only where Triton is.
    modules = [module for module in modules if not module.startswith("workers.memory.fused_")]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"  # None there makes an import fail and a probe find nothing
        f"[importlib.import_module(name) for name in {modules!r}]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr

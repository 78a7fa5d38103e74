"""``import namm`` costs next to nothing beyond transformers, and brings nothing of the orchestrator along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import namm

ROOT = Path(__file__).parents[1]

SCRIPT = """
import json, sys, time
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
import safetensors.numpy, transformers.masking_utils
config = LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config)
before, started = set(sys.modules), time.perf_counter()
import namm
memory = namm.Memory.from_pretrained(sys.argv[1])
imported = time.perf_counter()
cache = memory.cache(model)
attached = time.perf_counter()
seconds = {"import": imported - started, "attach": attached - imported}
print(json.dumps({"modules": sorted(set(sys.modules) - before), "seconds": seconds}))
"""
"""Run by ``tests/benchmarks/bench_import.py`` too."""

NOT_FOR_USERS = {"ray", "mlflow", "nevergrad", "cma", "pyarrow", "pydantic", "rich", "yaml", "orchestrator", "tasks"}


def cost_of_import(memory: Path) -> dict:
    """Modules and seconds that namm takes in a fresh process that has imported transformers."""
    command = [sys.executable, "-c", SCRIPT, str(memory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def save_a_memory(folder: Path) -> None:
    """Any memory: what it decides costs nothing here."""
    import numpy as np

    from workers.memory.specs import NammSettings, NammSpec

    settings = NammSettings()
    namm.Memory(NammSpec(settings=settings), np.zeros(settings.genome_size, np.float32)).save_pretrained(folder)


def test_importing_and_attaching_brings_nothing_but_our_own_modules(tmp_path):
    save_a_memory(tmp_path)
    modules = cost_of_import(tmp_path)["modules"]
    libraries = {name.partition(".")[0] for name in modules}
    assert libraries & NOT_FOR_USERS == set()
    assert {name for name in modules if name.partition(".")[0] == "workers"} <= {
        name for name in modules if name == "workers" or name.startswith("workers.memory")
    }
    # A few of the standard library and of huggingface_hub may come; nothing that takes long.
    assert len(modules) < 60, modules


def test_what_users_get_is_listed_and_there():
    assert all(hasattr(namm, name) for name in namm.__all__)
    assert {"Memory", "MemoryCache", "MemoryFileError", "UnsupportedUseError"} <= set(namm.__all__)

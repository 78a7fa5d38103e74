"""A batch that runs out of memory, for real: in a process that may take no more than it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.workers.memory.tiny import drive, random_ids, tiny_model
from workers.memory.errors import UnsupportedUseError
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll
from workers.memory.room import explain_lack_of_room, is_lack_of_room

ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, resource
from pathlib import Path
import torch
from tests.workers.memory.tiny import random_ids, rival, tiny_model
from workers.memory.attention import memory_attached
from workers.memory.hooks import hooked_cache

torch.set_num_threads(1)
model, memory = tiny_model(), rival("h2o", 8)
model.generate(random_ids(2, 20), past_key_values=hooked_cache(model, memory), max_new_tokens=2, do_sample=False)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 200_000_000, resource.RLIM_INFINITY))
large, said = random_ids(512, 500), []
for way in ("cache", "attached"):
    try:
        if way == "cache":
            model.generate(large, past_key_values=hooked_cache(model, memory), max_new_tokens=2, do_sample=False)
        else:
            with memory_attached(model, memory) as cache:
                model(large, past_key_values=cache, use_cache=True)
    except RuntimeError as error:
        said.append({"message": str(error).splitlines()[0], "notes": error.__notes__})
small = hooked_cache(model, memory)
text = model.generate(random_ids(2, 20), past_key_values=small, max_new_tokens=2, do_sample=False)
print(json.dumps({"said": said, "afterwards": list(text.shape), "attention": model.config._attn_implementation}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_batch_without_room_is_named_with_the_remedy_and_the_model_works_on():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["said"]) == 2
    for one in found["said"]:
        assert "DefaultCPUAllocator" in one["message"]
        (note,) = one["notes"]
        assert note.startswith("no room for this batch under a memory (its cache holds ")
        assert "fewer texts at once" in note
        assert "prefill_chunk_size" in note
        assert "\n" not in note
    assert found["afterwards"] == [2, 22]
    assert found["attention"] == "eager"


class Failing(KeepAll):
    """Fails in the second layer, once."""

    update_every = 8

    def __init__(self) -> None:
        super().__init__()
        self.fails = True

    def decide(self, view):
        if view.layer == 1 and self.fails:
            self.fails = False
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decide(view)


def test_a_cache_that_was_torn_by_a_failed_call_is_refused():
    """Its first layer has read what its second has not: the next token would be at two positions."""
    model, ids = tiny_model(), random_ids(1, 20)
    cache = hooked_cache(model, Failing())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        model(ids, past_key_values=cache, use_cache=True)
    assert "take a new cache" in caught.value.__notes__[0]
    for _ in range(2):
        with pytest.raises(UnsupportedUseError, match=r"failed half way.* take a new cache"):
            model(ids, past_key_values=cache, use_cache=True)
    cache.reset()
    expected, _ = drive(model, KeepAll(), ids)
    torch.testing.assert_close(model(ids, past_key_values=cache, use_cache=True).logits, expected)


def test_a_refused_call_does_not_tear_the_cache():
    model, ids = tiny_model(), random_ids(1, 20)
    cache = hooked_cache(model, KeepAll())
    model(ids[:, :10], past_key_values=cache, use_cache=True)
    with pytest.raises(UnsupportedUseError):
        model(ids[:, 10:], past_key_values=cache, use_cache=True, attention_mask=torch.ones(1, 3, dtype=torch.long))
    ours = model(ids[:, 10:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(ours, model(ids).logits[:, 10:])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (None, False),
    ],
)
def test_lack_of_room_is_told_from_other_errors(error, expected):
    assert is_lack_of_room(error) is expected
    explain_lack_of_room(error, hooked_cache(tiny_model(), KeepAll()))
    assert bool(getattr(error, "__notes__", None)) is expected

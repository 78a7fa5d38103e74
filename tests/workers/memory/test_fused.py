"""The Triton kernels compute what the portable path computes: in Triton's interpreter here, on the device where one is.

The interpreter is chosen when the kernels are defined, so that they run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from workers.memory.features import SpectralSums
from workers.memory.options import AttentionOptions
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings
from workers.memory.watching import attend

SETTINGS = NammSettings(update_every=64)
CASES = {
    "first-block": {"rows": 1, "heads": 2, "group": 2, "held": 0, "new": 64, "size": 16},
    "after-an-eviction": {"rows": 2, "heads": 2, "group": 4, "held": 45, "new": 48, "size": 32},
    "one-head-a-group": {"rows": 1, "heads": 3, "group": 1, "held": 130, "new": 144, "size": 16},
    "ragged": {"rows": 2, "heads": 2, "group": 2, "held": 70, "new": 32, "size": 16, "ragged": True},
}


def some_slots(rows, heads, held, new, size, device, dtype, ragged=False, **_):
    """Slots with traces, evicted from where ``ragged``, then with the tokens of a block."""
    generator = torch.Generator().manual_seed(held + new)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    channels = SETTINGS.num_bins + SETTINGS.hop
    slots = Slots.nothing(normal(rows, heads, 0, size), normal(rows, heads, 0, size), channels)
    if held:
        slots = slots.append(normal(rows, heads, held, size), normal(rows, heads, held, size), 0)
        slots = slots.with_trace(torch.rand(rows, heads, held, channels, generator=generator).to(device))
        if ragged:
            keep = torch.rand(rows, heads, held, generator=generator) < 0.5
            keep[..., -1] = True
            slots = slots.select(keep.to(device))
    slots = slots.append(normal(rows, heads, new, size), normal(rows, heads, new, size), held)
    return slots.with_trace(slots.full_trace())


def differences(case: str, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Of the output and of the trace between kernels and float32 in the portable path, relative by norm."""
    from workers.memory import fused

    shape = CASES[case]
    slots = some_slots(device=device, dtype=dtype, **shape)
    options = AttentionOptions(scaling=1.3 * shape["size"] ** -0.5)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(
        shape["rows"], shape["heads"] * shape["group"], shape["new"], shape["size"], generator=generator
    ).to(device, dtype)
    with torch.no_grad():
        assert fused.can_serve(query, slots, options, SETTINGS)
        output, trace = fused.attend_and_observe(query, slots, options, SETTINGS)
        exact = Slots(slots.keys.float(), slots.values.float(), slots.positions, slots.trace, slots.empty)
        sums = SpectralSums(exact.trace, shape["new"], SETTINGS)
        expected = attend(query.float(), exact, shape["held"], options, sums)
    vacant = slots.positions < 0
    trace = trace.masked_fill(vacant[..., None], 0)
    expected_trace = sums.trace.masked_fill(vacant[..., None], 0)
    pairs = ((output, expected), (trace, expected_trace))
    return tuple(float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_compute_what_the_portable_path_computes(case):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.workers.memory.test_fused", case]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=250)
    assert ended.returncode == 0, ended.stderr
    output, trace = map(float, ended.stdout.split())
    assert output < 1e-5
    assert trace < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_compute_it_on_the_device(case, dtype):
    output, trace = differences(case, torch.device("cuda"), dtype)
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    assert output < limit
    assert trace < limit


@pytest.mark.gpu
def test_the_scorers_attention_is_as_exact_as_without_the_kernel():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 700, 96, generator=generator)
    query, key, value = qkv.split(32, dim=-1)
    from workers.memory import fused

    with torch.no_grad():
        ours = fused.attend_causally(*(part.cuda() for part in (query, key, value))).cpu().double()
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True
    )
    assert float((ours - expected).norm() / expected.norm()) < 5e-6


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*differences(sys.argv[1], torch.device("cpu"), torch.float32))

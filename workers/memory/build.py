"""From a plain description to a memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from workers.memory.allocation import HeadAllocation
from workers.memory.heuristics import HEURISTICS
from workers.memory.memory import KeepAll, Memory
from workers.memory.namm import Namm
from workers.memory.specs import MemorySpec, NammSpec


def build_memory(spec: MemorySpec, genomes: npt.NDArray[np.float32]) -> Memory:
    """The memory that ``spec`` describes, under ``genomes`` float32 ``[G, genome_size]`` where it has any.

    ``full`` and ``truncation`` keep everything: the latter shortens the prompt before the model reads it.
    """
    if isinstance(spec, NammSpec):
        block = torch.from_numpy(np.ascontiguousarray(genomes))
        if spec.settings.choice != "network":
            return HeadAllocation(spec.settings, block, spec.threshold)
        return Namm(spec.settings, block, spec.normalisation, spec.threshold)
    if spec.name in ("full", "truncation"):
        return KeepAll()
    return HEURISTICS[spec.name](spec)

"""What to say when there is no room for a batch: PyTorch tells how many bytes it wanted, not what would help."""

from __future__ import annotations

import torch

from workers.memory.cache import MemoryCache

REMEDY = (
    "give it fewer texts at once, let generate read them in pieces (prefill_chunk_size=512), turn the memory's dial "
    "down (memory.at), or load the model in fewer bits; take a new cache, because this one may be torn"
)


def is_lack_of_room(error: BaseException | None) -> bool:
    """Whether an accelerator, or the machine, had no memory left."""
    # For the CPU PyTorch has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def explain_lack_of_room(error: BaseException | None, cache: MemoryCache) -> None:
    """Add to such an error how much the cache holds, and what to do; Python shows it below the error's own message.

    The error stays what it is, because whoever called may catch ``torch.OutOfMemoryError`` and try with less.
    """
    if error is None or not is_lack_of_room(error):
        return
    held = f"its cache holds {cache.cache_bytes:,} bytes, the memory {cache.state_bytes:,} of its own"
    error.add_note(f"no room for this batch under a memory ({held}): {REMEDY}")

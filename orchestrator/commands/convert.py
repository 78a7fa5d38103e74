"""What ``namm convert`` does: memories from checkpoints of the published implementation, and checkpoints from memories.

A command and not only two functions, because whoever has a ``ckpt.pt`` at hand wants ``namm evaluate`` on it next, and
may have no wish to write Python.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.terminal import Answer, facts
from workers.memory.pretrained import PretrainedMemory
from workers.memory.published import export_checkpoint, import_checkpoint

SUFFIX = ".pt"


def convert(source: str, target: Path) -> Answer:
    """Read ``source``, a checkpoint if it ends in ``.pt`` and else a saved memory, and write the other to ``target``.

    Raises:
        InputError: both are checkpoints, or neither is.
        MemoryFileError: the source cannot be read, the target cannot be written, or there is no such architecture.
    """
    is_import = source.endswith(SUFFIX)
    if is_import == (target.suffix == SUFFIX):
        raise InputError(
            f"one of {source} and {target} must be a checkpoint, with a name in {SUFFIX}, and the other the folder of "
            "a memory: name them so"
        )
    memory = import_checkpoint(source) if is_import else PretrainedMemory.from_pretrained(source)
    if is_import:
        memory.save_pretrained(target)
    else:
        export_checkpoint(memory, target)
    document = {
        "from": source,
        "to": str(target),
        "genome_size": len(memory.genome),
        "genome_sha256": hashlib.sha256(memory.genome.tobytes()).hexdigest(),
        "has_statistics": memory.spec.normalisation is not None,
    }
    pairs = [
        ("written", str(target)),
        ("genome", f"{document['genome_size']:,} numbers, sha256 {document['genome_sha256']}"),
        ("normalisation", "with its statistics" if document["has_statistics"] else "none: raw features"),
    ]
    return Answer(document, [facts(pairs)])

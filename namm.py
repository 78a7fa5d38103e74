"""The public face for people who only use a memory.

>>> from namm import Memory
>>> memory = Memory.from_pretrained("runs/first/champion")
>>> memory.generate(model, **inputs)
>>> model.generate(**inputs, past_key_values=memory.cache(model))
"""

from workers.memory.attention import memory_attached as attached
from workers.memory.cache import MemoryCache
from workers.memory.errors import DialError, MemoryFileError, UnsupportedUseError
from workers.memory.pretrained import PretrainedMemory as Memory
from workers.memory.published import export_checkpoint, import_checkpoint

__all__ = [
    "DialError",
    "Memory",
    "MemoryCache",
    "MemoryFileError",
    "UnsupportedUseError",
    "attached",
    "export_checkpoint",
    "import_checkpoint",
]

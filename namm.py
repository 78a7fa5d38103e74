"""The public face for people who only use a memory.

>>> from namm import Memory, attached
>>> memory = Memory.from_pretrained("runs/first/champion").build()
>>> with attached(model, memory) as cache:
...     model.generate(**inputs, past_key_values=cache)
"""

from workers.memory.attention import memory_attached as attached
from workers.memory.cache import MemoryCache
from workers.memory.errors import MemoryFileError, UnsupportedUseError
from workers.memory.pretrained import PretrainedMemory as Memory

__all__ = ["Memory", "MemoryCache", "MemoryFileError", "UnsupportedUseError", "attached"]

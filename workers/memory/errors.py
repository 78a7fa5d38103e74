"""What can go wrong with a memory; every message is one line that names the thing and the remedy.

MemoryFileError(ValueError)      a saved memory that cannot be read or written, or of another version or size
UnsupportedUseError(ValueError)  something that a cache that forgets cannot do (padding, beams, no cache passed)
"""

from __future__ import annotations


class MemoryFileError(ValueError):
    """A saved memory is missing, damaged, of another version or genome size, or it cannot be written."""


class UnsupportedUseError(ValueError):
    """The model was called in a way that a cache that forgets cannot serve."""

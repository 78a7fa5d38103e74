"""What can go wrong with a memory; every message is one line that names the thing and the remedy.

MemoryFileError(ValueError)      a saved memory that cannot be read or written, or of another version or size
UnsupportedUseError(ValueError)  something that a cache that forgets cannot do (padding, beams, no cache passed)
DialError(ValueError)            no threshold keeps what was asked for, or nothing was given to find it with
"""

from __future__ import annotations


class MemoryFileError(ValueError):
    """A saved memory is missing, damaged, of another version or genome size, or it cannot be written."""


class UnsupportedUseError(ValueError):
    """The model was called in a way that a cache that forgets cannot serve."""


class DialError(ValueError):
    """The dial cannot be turned to where it was asked to be."""

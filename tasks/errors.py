"""What can be wrong with a task.

ValueError
└── TaskError   a setting of a task is not possible; the message names the key and the remedy
"""

from __future__ import annotations


class TaskError(ValueError):
    """A task cannot be built from its settings."""

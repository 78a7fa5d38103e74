"""What can go wrong in a worker before it scores anything; memories have errors of their own in ``memory/errors.py``.

ValueError
├── ModelError    the model cannot be loaded or used
└── PromptError   a prompt cannot be given to the model as the settings say
"""

from __future__ import annotations


class ModelError(ValueError):
    """The model cannot be loaded or used; one line with the remedy."""


class PromptError(ValueError):
    """A prompt cannot be given to the model as the settings say; one line with the remedy."""

"""What can go wrong in a worker before it scores anything; memories have errors of their own in ``memory/errors.py``.

ValueError
└── ModelError   the model cannot be loaded or used
"""

from __future__ import annotations


class ModelError(ValueError):
    """The model cannot be loaded or used; one line with the remedy."""

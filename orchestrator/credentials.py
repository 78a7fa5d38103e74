"""What must never be shown: user and password in addresses, and secrets among their parameters."""

from __future__ import annotations

import re

CREDENTIALS = re.compile(r'://(?:[^/\s]*|[^/\s:]*:[^\s"]*)@')
"""Up to the last ``@`` before the first slash; behind a colon also beyond slashes, which Amazon's secret keys have."""

_PARAMETERS = re.compile(
    r"([?&;](?:odbc_connect|[^=&;\s\"]*(?:pass(?:word|wd|phrase)|pwd|secret|token|credential|signature|access_?key"
    r"|api_?key)[^=&;\s\"]*)=)[^&;\s\"]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """``text`` with what is secret in any address in it as ``***``: for logs, messages and files."""
    return _PARAMETERS.sub(r"\1***", CREDENTIALS.sub("://***@", text))

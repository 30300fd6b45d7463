"""Keys and holders may be longer than any index allows: they are looked up by their digest."""

from __future__ import annotations

import hashlib


def digest(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()

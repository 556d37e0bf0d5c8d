"""What the terminal says of a public link: when it ends, and a QR code for a phone."""

import io
from datetime import datetime, timedelta

import segno

_LASTS = timedelta(days=7)  # Gradio's tunnel ends then at the latest


def public_link_text(address: str, now: datetime) -> str:
    """Text for the terminal. The link ends with this program, and a week after `now` at the latest."""
    code = io.StringIO()
    segno.make(address, error="l").terminal(code, border=2, compact=True)
    ends = now + _LASTS
    return (
        f"Public link: {address}\n"
        f"It ends with this program, and on {ends:%A, %d %B, at %H:%M} at the latest. With a phone's camera:\n"
        f"{code.getvalue()}"
    )

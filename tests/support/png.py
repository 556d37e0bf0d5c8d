"""PNG files that no imaging library would write."""

import struct
import zlib


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, rows)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

"""What the server answers, and to whom: addresses, uploads, limits, headers. No panel."""

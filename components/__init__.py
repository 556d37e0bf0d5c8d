"""The page: one `build_…()` per panel, Gradio only; the engine is the only door to the model."""

import inspect
from typing import Any

_file_of = inspect.getfile


def _file_outside_gradio(named: Any) -> str:
    """Raises OSError for classes of Gradio."""
    if isinstance(named, type) and named.__module__.startswith("gradio."):
        raise OSError("not looked for")
    return _file_of(named)


# Whenever Gradio is imported, it parses each component's source and writes a stub for editors beside it, which takes a
# good part of the import. It leaves out classes that have no file.
inspect.getfile = _file_outside_gradio  # type: ignore[assignment]
try:
    import gradio  # noqa: F401
finally:
    inspect.getfile = _file_of

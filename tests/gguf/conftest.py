"""The demo model as GGUF files, made once by llama.cpp's converter."""

from pathlib import Path

import pytest
from gguf_files import converted
from places import REPOSITORY

from gemma3_core.gguf import checkpoint

DEMO_MODEL = REPOSITORY / "assets" / "demo_model"


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory) -> Path:
    """The folders that stand for GGUF files are made here, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        checkpoint._cache_folder.cache_clear()
        yield checkpoint._cache_folder()
    checkpoint._cache_folder.cache_clear()


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory) -> Path:
    """model.gguf in float32, with mmproj-model.gguf beside it."""
    return converted(DEMO_MODEL, tmp_path_factory.mktemp("demo"))

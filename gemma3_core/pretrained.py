"""What every model class can do: from_pretrained, save_pretrained, device, dtype, tied weights."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from gemma3_core.config import AnyConfig, Gemma3TextConfig, read_config
from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.generation import GenerationConfig
from gemma3_core.hub import resolve_folder, write_json
from gemma3_core.weights import build_on_meta, is_tied, load_weights, parse_dtype, save_weights, stored_dtype

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


class PreTrainedModel(nn.Module):
    """Base of the model classes."""

    config: Any
    config_class: ClassVar[type]

    def __init__(self, config: AnyConfig):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}."
            )
        self.config = config
        self.generation_config = GenerationConfig.from_dict({}, self.config)
        self.eager = False
        """True runs the open form of attention ("eager"), False torch's fused one ("sdpa")."""

    @property
    def text_config(self) -> Gemma3TextConfig:
        return getattr(self.config, "text_config", self.config)

    @property
    def decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Loads a checkpoint in the Hub's layout, strictly: each tensor there, none left over.

        dtype None or "auto" is the checkpoint's own. device_map is "auto", or a device; None is the CPU.
        Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(folder_or_hub_id, revision, token)
        config = read_config(folder)
        model = build_on_meta(lambda: cls(config))
        assert isinstance(model, cls)
        model.set_attention(attn_implementation)
        load_weights(model, folder, parse_dtype(dtype, stored_dtype(config)), pick_device(device_map or "cpu"))
        model.tie_weights()
        model.generation_config = GenerationConfig.from_pretrained(folder, model.config)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, generation_config.json and model.safetensors in the Hub's layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(self.dtype).removeprefix("torch.")
        data = {**self.config.to_dict(), "architectures": [type(self).__name__], "dtype": dtype}
        data.pop("torch_dtype", None)
        write_json(folder / "config.json", data)
        self.generation_config.save_pretrained(folder)
        save_weights(self, folder)

    def set_attention(self, implementation: str) -> None:
        """ "sdpa" (torch's fused attention) or "eager" (open, slower; gives attention weights either way)."""
        if implementation not in ATTENTION_IMPLEMENTATIONS:
            raise UnsupportedOptionError(
                f"attn_implementation={implementation!r} is not supported; use 'sdpa' or 'eager'."
            )
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.eager = implementation == "eager"

    def tie_weights(self) -> None:
        """Lets the head share the embedding's weight where the config says so."""
        head = getattr(self, "lm_head", None)
        if isinstance(head, nn.Linear) and is_tied(self.config):
            head.weight = self.decoder.embed_tokens.weight


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, else MPS, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

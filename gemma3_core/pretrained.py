"""What every model class can do: from_pretrained, save_pretrained, device, dtype, tied weights."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import nn

from gemma3_core.config import AnyConfig, Gemma3TextConfig, read_config
from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError
from gemma3_core.generation_config import GenerationConfig, read_generation_config
from gemma3_core.hub import resolve_folder, write_json
from gemma3_core.int4_linear import Int4Linear, require_int4
from gemma3_core.quantization import Int4Plan, TorchAoConfig, count_weights, install_int4, quantized
from gemma3_core.weights import build_on_meta, is_tied, load_weights, parse_dtype, save_weights, stored_dtype

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")

LOADING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "low_cpu_mem_usage": (True, False),  # weights are never held twice, whatever is said
        "use_safetensors": (True,),
        "weights_only": (True,),
        "trust_remote_code": (False,),  # no code of a checkpoint is ever run
        "ignore_mismatched_sizes": (False,),
        "output_loading_info": (False,),
        "subfolder": ("",),
        "use_kernels": (False,),
        "offload_buffers": (False,),
    }
)
"""Options of transformers' from_pretrained that are taken at values that change nothing."""

SAVING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"safe_serialization": (True,), "is_main_process": (True,), "push_to_hub": (False,), "save_peft_format": (True,)}
)
"""The same of save_pretrained."""


def refuse_options(
    where: str, options: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
) -> None:
    """UnsupportedOptionError that names every option which is neither None nor at a value that changes nothing."""
    asked = [
        name
        for name, value in options.items()
        if value is not None and not (isinstance(value, bool | str) and value in neutral.get(name, ()))
    ]
    if asked:
        raise UnsupportedOptionError(f"{where} does not support {', '.join(sorted(asked))}. Leave it out.")


class PreTrainedModel(nn.Module):
    """Base of the model classes."""

    config: Any
    config_class: ClassVar[type]

    def __init__(self, config: AnyConfig):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}. For a "
                "checkpoint that sees pictures take Gemma3ForConditionalGeneration, for one that reads text only "
                "Gemma3ForCausalLM, for either AutoModelForCausalLM."
            )
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(self.config)
        self.eager = False
        """True runs the open form of attention ("eager"), False torch's fused one ("sdpa")."""
        self.int4_plan: Int4Plan | None = None
        """Which layers hold int4 weights; None in full precision."""

    @property
    def text_config(self) -> Gemma3TextConfig:
        return getattr(self.config, "text_config", self.config)

    @property
    def decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        inner: Any = getattr(self, "model", None)
        return self if inner is None else inner.decoder

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where the model has none."""
        return getattr(self, "lm_head", None)

    def get_decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        return self.decoder

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many weights the model has, a tied head's once; without embeddings where asked for."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        left_out = [
            parameter
            for parameter in self.parameters()
            if (only_trainable and not parameter.requires_grad) or (exclude_embeddings and id(parameter) in embeddings)
        ]
        # int4 weights are no parameters, and are not trainable.
        total = sum(p.numel() for p in self.parameters()) if only_trainable else count_weights(self)
        return total - sum(parameter.numel() for parameter in left_out)

    is_gradient_checkpointing = False

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Not supported: raises UnsupportedOptionError."""
        raise UnsupportedOptionError(
            "Gradient checkpointing is not supported: train with shorter rows, or smaller batches."
        )

    def gradient_checkpointing_disable(self) -> None:
        """Nothing to do: it is never on."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: AnyConfig | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        quantization_config: TorchAoConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **unknown: Any,
    ) -> Self:
        """Loads a checkpoint in the Hub's layout, strictly: each tensor there, none left over.

        dtype (torch_dtype is its older name) None or "auto" is the checkpoint's own. device_map is "auto", or a device
        for the whole model ({"": device} too); None is the CPU. attn_implementation is "sdpa" (None too) or "eager".
        quantization_config makes int4 weights of a checkpoint in full precision; one that was saved with int4
        weights needs none. Layers that stay in full precision although they are candidates are named in the log.
        `config` stands in for the folder's config.json. Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        refuse_options("from_pretrained", unknown, LOADING)
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise UnsupportedOptionError(f"dtype={dtype} and torch_dtype={torch_dtype} differ. Give dtype alone.")
        folder = resolve_folder(
            pretrained_model_name_or_path,
            revision,
            token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config = read_config(folder) if config is None else config
        model = build_on_meta(lambda: cls(config))
        assert isinstance(model, cls)
        model.set_attention("sdpa" if attn_implementation is None else attn_implementation)
        weights = parse_dtype(torch_dtype if dtype is None else dtype, stored_dtype(config))
        return model._filled(folder, weights, pick_device(_one_device(device_map)), quantization_config)

    def _filled(
        self, folder: Path, dtype: torch.dtype | None, where: torch.device, quantization_config: TorchAoConfig | None
    ) -> Self:
        """The weights of a checkpoint in a model that has none yet, on their device, in int4 where asked for."""
        if not isinstance(quantization_config, TorchAoConfig | None):
            raise UnsupportedOptionError(
                f"quantization_config must be a TorchAoConfig, got {type(quantization_config).__name__}."
            )
        stored = _stored_int4(self.config, quantization_config)
        if stored or quantization_config:
            require_int4(where)
        if stored:
            install_int4(self, stored)
        # To be quantised, weights are read on the CPU, where they stay on disk, and go to the device one by one.
        load_weights(self, folder, dtype, torch.device("cpu") if quantization_config and not stored else where)
        self.tie_weights()
        self.generation_config = read_generation_config(folder, self.config)
        model = quantized(self, quantization_config, where) if quantization_config and not stored else self
        if model.int4_plan:
            model.to(where, model.dtype)
            model.int4_plan.warn()
        return model

    def save_pretrained(self, save_directory: str | Path, **unknown: Any) -> None:
        """Writes config.json, generation_config.json and model.safetensors in the Hub's layout.

        int4 weights are written as they are, in a form that fits any device. Raises UnsupportedOptionError.
        """
        refuse_options("save_pretrained", unknown, SAVING)
        if self.int4_plan is None and any(isinstance(module, Int4Linear) for module in self.modules()):
            raise UnsupportedOptionError("A part of an int4 model can't be saved alone. Save the whole model.")
        if not isinstance(save_directory, str | Path) or not str(save_directory).strip():
            raise CheckpointError(f"save_pretrained needs a folder to write to, got {save_directory!r}.")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; give a folder to write to.")
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(self.dtype).removeprefix("torch.")
        data = {**self.config.to_diff_dict(), "architectures": [type(self).__name__], "dtype": dtype}
        for name in ("torch_dtype", "quantization_config"):
            data.pop(name, None)
        if self.int4_plan:
            data["quantization_config"] = self.int4_plan.config.to_dict()
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

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """transformers' name of `set_attention`."""
        self.set_attention(attn_implementation)

    def tie_weights(self) -> None:
        """Lets the head share the embedding's weight where the config says so."""
        head = getattr(self, "lm_head", None)
        if isinstance(head, nn.Linear) and is_tied(self.config):
            head.weight = self.decoder.embed_tokens.weight


def _stored_int4(config: AnyConfig, asked: TorchAoConfig | None) -> TorchAoConfig | None:
    """How the checkpoint's weights are quantised; None for full precision. UnsupportedOptionError if not as asked."""
    data = config.extra.get("quantization_config")
    if data is None:
        return None
    stored = TorchAoConfig.from_dict(data)
    if asked not in (None, stored):
        raise UnsupportedOptionError(
            f"The checkpoint holds int4 weights already, by {stored}; they can't be made again by {asked}. "
            "Leave quantization_config out, or load the checkpoint in full precision."
        )
    return stored


def _one_device(device_map: str | int | torch.device | Mapping[str, Any] | None) -> str | torch.device:
    """The one device that a device_map names. UnsupportedOptionError where it spreads the model over several."""
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise UnsupportedOptionError(
                f"device_map={dict(device_map)} spreads the model; one device holds it here. Use 'auto' or one device."
            )
        device_map = devices.pop()
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        return torch.device("cuda", device_map)
    return "cpu" if device_map is None else device_map  # type: ignore[return-value]


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, else MPS, else the CPU. UnsupportedOptionError for what is no device."""
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError):
            raise UnsupportedOptionError(
                f"device {device!r} is none that this program runs on; use 'auto', 'cuda', 'mps' or 'cpu'."
            ) from None
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if chosen.type == "cuda" and (chosen.index or 0) >= cuda:
            raise UnsupportedOptionError(
                f"device {str(device)!r} asks for CUDA device {chosen.index or 0}, and this machine has {cuda}. Use "
                "'auto' or 'cpu', or install a torch build with CUDA."
            )
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise UnsupportedOptionError("There is no MPS device on this machine. Use 'auto' or 'cpu'.")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

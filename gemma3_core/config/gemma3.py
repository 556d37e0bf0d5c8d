"""Configurations: config.json in the Hub's older and newer spelling.

This is the one place for the facts of the architecture (layer kinds, rotary bases, scales). Defaults are
those of the reference classes in transformers 5.23 (`models/gemma3`, `models/siglip`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from gemma3_core.config.base import (
    CONFIG_FILE,
    JsonConfig,
    json_object,
    positive_number,
    positive_whole,
    require_few_layers,
    require_positive,
)
from gemma3_core.config.rope import GLOBAL, LOCAL, ROPE_FIELDS, RopeParameters, read_rope
from gemma3_core.errors import ConfigError
from gemma3_core.files.hub import read_json

SUPPORTED_ACTIVATION = "gelu_pytorch_tanh"
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
DEFAULT_PATTERN = 6
"""Every sixth layer is global by default."""


@dataclass(init=False)
class Gemma3TextConfig(JsonConfig):
    """The decoder. Lengths in tokens, widths in features; `extra` keeps fields we do not know.

    The rotary embedding is given as `rope_parameters` (one entry a layer kind), as the older `rope_theta`,
    `rope_local_base_freq` and `rope_scaling`, or as `rope`; layer kinds as `layer_types` or `sliding_window_pattern`.
    """

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = SUPPORTED_ACTIVATION
    max_position_embeddings: int = 131_072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None
    rope: Mapping[str, RopeParameters] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool = False

    model_type: ClassVar[str] = "gemma3_text"
    _settable: ClassVar[frozenset[str]] = frozenset({"use_cache", "tie_word_embeddings", *TOKEN_IDS})
    base_config_key: ClassVar[str] = "text_config"
    _also_read: ClassVar[frozenset[str]] = JsonConfig._also_read | {
        *ROPE_FIELDS,
        "sliding_window_pattern",
        "_sliding_window_pattern",
    }
    _superseded: ClassVar[Mapping[str, tuple[str, ...]]] = {**JsonConfig._superseded, "rope_parameters": ("rope",)}

    def _read(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._read(values)
        given = [name for name in ROPE_FIELDS if name in values]
        if values.get("rope") is None:
            values["rope"] = read_rope(values)
        elif given:
            raise ConfigError(f"rope and {', '.join(given)} configure the same; give rope_parameters alone.")
        patterns = [values.pop(name, None) for name in ("sliding_window_pattern", "_sliding_window_pattern")]
        if values.get("layer_types") is None:
            given_layers = values.get("num_hidden_layers")
            layers = Gemma3TextConfig.num_hidden_layers if given_layers is None else given_layers
            require_few_layers("num_hidden_layers", positive_whole("num_hidden_layers", layers))
            every = positive_whole("sliding_window_pattern", patterns[0] or patterns[1] or DEFAULT_PATTERN)
            values["layer_types"] = [GLOBAL if (i + 1) % every == 0 else LOCAL for i in range(layers)]
        if isinstance(values["layer_types"], list):
            values["layer_types"] = tuple(values["layer_types"])
        return values

    def _complete(self) -> None:
        super()._complete()
        require_positive(self, _integer_fields(self))
        for name in ("query_pre_attn_scalar", "rms_norm_eps"):
            positive_number(name, getattr(self, name))
        if self.final_logit_softcapping is not None:
            positive_number("final_logit_softcapping", self.final_logit_softcapping)
        rope = self.rope or {}
        if set(rope) != {LOCAL, GLOBAL} or not all(isinstance(one, RopeParameters) for one in rope.values()):
            raise ConfigError(f"rope must hold RopeParameters for {LOCAL} and {GLOBAL}; give rope_parameters instead.")
        require_few_layers("num_hidden_layers", self.num_hidden_layers)
        self._check_layer_types()
        if self.num_attention_heads % self.num_key_value_heads:
            heads, shared = self.num_attention_heads, self.num_key_value_heads
            raise ConfigError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({shared}).")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id ({self.pad_token_id}) is not in the vocabulary of {self.vocab_size} tokens."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, got {self.head_dim}.")
        _require_activation("hidden_activation", self.hidden_activation)
        for name in ("attn_logit_softcapping", "use_bidirectional_attention", "attention_dropout"):
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not supported: no Gemma 3 chat model uses it.")

    def _check_layer_types(self) -> None:
        kinds = self.layer_types or ()
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(f"layer_types names {len(kinds)} layers, num_hidden_layers is {self.num_hidden_layers}.")
        if unknown := set(kinds) - {LOCAL, GLOBAL}:
            raise ConfigError(f"layer_types may hold {LOCAL} and {GLOBAL}, got {sorted(unknown)}.")
        if LOCAL in kinds or self.sliding_window is not None:
            require_positive(self, ["sliding_window"])

    @property
    def rope_parameters(self) -> dict[str, dict[str, Any]]:
        """The rotary embedding in the newer spelling: one entry per layer kind."""
        return {kind: rope.to_dict() for kind, rope in (self.rope or {}).items()}

    @property
    def attention_scale(self) -> float:
        """Factor on query-key products (Gemma 3 report: query_pre_attn_scalar ** -0.5)."""
        return float(self.query_pre_attn_scalar) ** -0.5

    @property
    def num_key_value_groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def layer_type(self, layer_index: int) -> str:
        """LOCAL or GLOBAL."""
        assert self.layer_types is not None
        return self.layer_types[layer_index]

    def window(self, layer_type: str) -> int | None:
        """How many keys back a query of such a layer can attend; None is no limit."""
        return self.sliding_window if layer_type == LOCAL else None

    def rope_for(self, layer_type: str) -> RopeParameters:
        assert self.rope is not None
        return self.rope[layer_type]

    def to_dict(self) -> dict[str, Any]:
        """The newer spelling, which both transformers 5 and we read."""
        data = super().to_dict()
        del data["rope"]
        return {**data, "rope_parameters": self.rope_parameters}


@dataclass(init=False)
class SiglipVisionConfig(JsonConfig):
    """The SigLIP encoder. `image_size` and `patch_size` in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = SUPPORTED_ACTIVATION
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = True
    """SigLIP's pooling head, which Gemma 3 does not use: always False inside a Gemma3Config."""

    model_type: ClassVar[str] = "siglip_vision_model"
    base_config_key: ClassVar[str] = "vision_config"

    def _complete(self) -> None:
        super()._complete()
        require_positive(self, _integer_fields(self))
        positive_number("layer_norm_eps", self.layer_norm_eps)
        require_few_layers("vision num_hidden_layers", self.num_hidden_layers)
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ConfigError(f"vision hidden_size ({self.hidden_size}) must be a multiple of its heads ({heads}).")
        _require_activation("vision hidden_act", self.hidden_act)
        if self.attention_dropout:
            raise ConfigError(f"vision attention_dropout={self.attention_dropout!r} is not supported; set it to 0.")

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size


@dataclass(init=False)
class Gemma3Config(JsonConfig):
    """Pictures and text: decoder, encoder and what joins them. The two parts can be dicts."""

    text_config: Gemma3TextConfig = field(default_factory=Gemma3TextConfig)
    vision_config: SiglipVisionConfig = field(default_factory=lambda: SiglipVisionConfig(vision_use_head=False))
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255_999
    eoi_token_index: int = 256_000
    image_token_index: int = 262_144
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    eos_token_id: int | list[int] | None = None

    model_type: ClassVar[str] = "gemma3"
    _settable: ClassVar[frozenset[str]] = frozenset({"use_cache", "tie_word_embeddings", "eos_token_id"})
    _spellings: ClassVar[Mapping[str, str]] = {
        **JsonConfig._spellings,
        "image_token_id": "image_token_index",
        "boi_token_id": "boi_token_index",
        "eoi_token_id": "eoi_token_index",
    }

    def _named(self, parts: tuple[Any, ...], values: Mapping[str, Any]) -> dict[str, Any]:
        """The two parts may be positional, in either order, as in transformers' documentation."""
        kinds = {"text_config": Gemma3TextConfig, "vision_config": SiglipVisionConfig}
        named: dict[str, Any] = {}
        for part in parts:
            name = next((name for name, kind in kinds.items() if isinstance(part, kind)), None)
            if name is None or name in named or name in values:
                raise ConfigError(
                    "Gemma3Config takes one SiglipVisionConfig and one Gemma3TextConfig by position, got "
                    f"{', '.join(type(each).__name__ for each in parts)}. Nothing else can be given without a name."
                )
            named[name] = part
        return named

    def _read(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._read(values)
        for name, read in (("text_config", self._read_text), ("vision_config", self._read_vision)):
            if values.get(name) is not None:
                values[name] = read(values[name], values)
        return values

    @staticmethod
    def _read_text(given: Any, values: Mapping[str, Any]) -> Gemma3TextConfig:
        if isinstance(given, Gemma3TextConfig):
            return given
        data = json_object("text_config", given)
        tied = values.get("tie_word_embeddings")
        data.setdefault("tie_word_embeddings", True if tied is None else tied)
        return Gemma3TextConfig.from_dict(data)

    @staticmethod
    def _read_vision(given: Any, _: Mapping[str, Any]) -> SiglipVisionConfig:
        if isinstance(given, SiglipVisionConfig):
            return given.replace(vision_use_head=False) if given.vision_use_head else given
        data = json_object("vision_config", given)
        if data.get("vision_use_head"):
            raise ConfigError("vision_use_head=true is not supported: Gemma 3's encoder has no pooling head.")
        return SiglipVisionConfig.from_dict({**data, "vision_use_head": False})

    def _complete(self) -> None:
        super()._complete()
        require_positive(self, ["mm_tokens_per_image"])

    @property
    def tokens_per_side(self) -> int:
        """Soft tokens along one side of a picture. Raises ConfigError where they don't divide the patches.

        Only loading a checkpoint and reading pictures check this: as in transformers, the class defaults
        (14 patches a side, 256 soft tokens) are allowed in a configuration and a model.
        """
        side = math.isqrt(self.mm_tokens_per_image)
        if side * side != self.mm_tokens_per_image or self.vision_config.patches_per_side % side:
            raise ConfigError(
                f"mm_tokens_per_image ({self.mm_tokens_per_image}) must be a square whose side divides the "
                f"encoder's {self.vision_config.patches_per_side} patches a side."
            )
        return side

    @property
    def use_cache(self) -> bool:
        """The decoder's: whether a forward pass keeps a KV cache where the call doesn't say."""
        return self.text_config.use_cache

    def _set(self, name: str, value: Any) -> None:
        if name == "use_cache":
            self.text_config.use_cache = value
        else:
            super()._set(name, value)

    def get_text_config(self) -> Gemma3TextConfig:
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        data = {
            **super().to_dict(),
            "text_config": self.text_config.to_dict(),
            "vision_config": self.vision_config.to_dict(),
        }
        if self.eos_token_id is None:  # not a field of the reference, but published files hold it
            del data["eos_token_id"]
        return data

    def to_diff_dict(self) -> dict[str, Any]:
        parts = {"text_config": self.text_config.to_diff_dict(), "vision_config": self.vision_config.to_diff_dict()}
        return {**super().to_diff_dict(), **parts}


AnyConfig = Gemma3Config | Gemma3TextConfig


def read_config(folder: Path) -> AnyConfig:
    """Reads config.json of a checkpoint folder. Raises CheckpointError, ConfigError."""
    return config_from(read_json(folder / CONFIG_FILE))


def config_from(data: dict[str, Any]) -> AnyConfig:
    """The configuration that a config.json describes. Raises ConfigError."""
    kind = data.get("model_type")
    if kind == Gemma3Config.model_type:
        return Gemma3Config.from_dict(data)
    if kind == Gemma3TextConfig.model_type:
        return Gemma3TextConfig.from_dict(data)
    raise ConfigError(f"config.json says model_type {kind!r}; this program runs 'gemma3' and 'gemma3_text'.")


def _integer_fields(config: JsonConfig) -> list[str]:
    return [f.name for f in fields(config) if f.type is int]


def _require_activation(name: str, value: str) -> None:
    if value != SUPPORTED_ACTIVATION:
        raise ConfigError(f"{name}={value!r} is not supported; Gemma 3 uses {SUPPORTED_ACTIVATION!r}.")

"""Configurations: read and write config.json in the Hub's older and newer spelling.

Every fact of the architecture (layer kinds, rotary bases, scales) is decided here, once. Defaults are
those of the reference classes in transformers 5.23 (`models/gemma3`, `models/siglip`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from gemma3_core.errors import ConfigError
from gemma3_core.hub import read_json

LOCAL = "sliding_attention"
GLOBAL = "full_attention"
DEFAULT_ROPE_THETA = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}
SUPPORTED_ACTIVATION = "gelu_pytorch_tanh"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one layer kind: base `theta`, positions divided by `factor`."""

    theta: float
    factor: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        if self.factor == 1.0:
            return {"rope_type": "default", "rope_theta": self.theta}
        return {"rope_type": "linear", "factor": self.factor, "rope_theta": self.theta}


@dataclass(frozen=True)
class _JsonConfig:
    """What the three configurations share: reading and writing JSON, keeping unknown fields."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed (the original is frozen)."""
        return replace(self, **changes)

    @classmethod
    def _split_known(cls, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        names = {f.name for f in fields(cls)} - {"extra"}
        known = {k: v for k, v in data.items() if k in names}
        return known, {k: v for k, v in data.items() if k not in names}


@dataclass(frozen=True)
class Gemma3TextConfig(_JsonConfig):
    """The decoder. Lengths in tokens, widths in features; `extra` keeps fields we do not know."""

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
    sliding_window: int = 4096
    layer_types: tuple[str, ...] | None = None
    rope: Mapping[str, RopeParameters] | None = None
    final_logit_softcapping: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    model_type = "gemma3_text"

    def __post_init__(self) -> None:
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", _alternating_layers(self.num_hidden_layers, 6))
        if self.rope is None:
            object.__setattr__(self, "rope", {k: RopeParameters(t) for k, t in DEFAULT_ROPE_THETA.items()})
        self._validate()

    def _validate(self) -> None:
        _require_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window",
                          "max_position_embeddings")  # fmt: skip
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id ({self.pad_token_id}) lies outside the vocabulary of {self.vocab_size} tokens."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, got {self.head_dim}.")
        if len(self.layer_types or ()) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types names {len(self.layer_types or ())} layers, "
                f"num_hidden_layers is {self.num_hidden_layers}."
            )
        unknown = set(self.layer_types or ()) - {LOCAL, GLOBAL}
        if unknown:
            raise ConfigError(f"layer_types may hold {LOCAL} and {GLOBAL}, got {sorted(unknown)}.")
        _require_activation("hidden_activation", self.hidden_activation)

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
        """Keys that a query of such a layer reaches back over; None is no limit."""
        return self.sliding_window if layer_type == LOCAL else None

    def rope_for(self, layer_type: str) -> RopeParameters:
        assert self.rope is not None
        return self.rope[layer_type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Both spellings: `rope_scaling`/`rope_theta`/`sliding_window_pattern` and `rope_parameters`."""
        data = dict(data)
        for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
            if data.get(name):
                raise ConfigError(f"{name}={data[name]!r} is not supported: no Gemma 3 chat model uses it.")
            data.pop(name, None)
        rope = _read_rope(data)
        pattern = data.pop("sliding_window_pattern", None) or data.pop("_sliding_window_pattern", None) or 6
        known, extra = cls._split_known(data)
        known = {k: v for k, v in known.items() if k in _NULLABLE or v is not None}
        if known.get("layer_types") is not None:
            known["layer_types"] = tuple(known["layer_types"])
        else:
            layers = known.get("num_hidden_layers", cls.num_hidden_layers)
            known["layer_types"] = _alternating_layers(layers, pattern)
        return cls(**known, rope=rope, extra=_drop_head(extra))

    def to_dict(self) -> dict[str, Any]:
        """The newer spelling, which both transformers 5 and we read."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "rope", "layer_types")}
        data["layer_types"] = list(self.layer_types or ())
        data["rope_parameters"] = {kind: rope.to_dict() for kind, rope in (self.rope or {}).items()}
        return {**self.extra, **data, "model_type": self.model_type}


@dataclass(frozen=True)
class SiglipVisionConfig(_JsonConfig):
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
    extra: Mapping[str, Any] = field(default_factory=dict)

    model_type = "siglip_vision_model"

    def __post_init__(self) -> None:
        _require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_channels", "image_size", "patch_size")  # fmt: skip
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision hidden_size ({self.hidden_size}) must be a multiple of its heads ({self.num_attention_heads})."
            )
        _require_activation("vision hidden_act", self.hidden_act)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        data = dict(data)
        if data.pop("vision_use_head", False):
            raise ConfigError("vision_use_head=true is not supported: Gemma 3's encoder has no pooling head.")
        known, extra = cls._split_known(data)
        return cls(**{k: v for k, v in known.items() if v is not None}, extra=_drop_head(extra))

    def to_dict(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **data, "vision_use_head": False, "model_type": self.model_type}


@dataclass(frozen=True)
class Gemma3Config(_JsonConfig):
    """Pictures and text: decoder, encoder and what joins them."""

    text_config: Gemma3TextConfig = field(default_factory=Gemma3TextConfig)
    vision_config: SiglipVisionConfig = field(default_factory=SiglipVisionConfig)
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255_999
    eoi_token_index: int = 256_000
    image_token_index: int = 262_144
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    eos_token_id: int | list[int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    model_type = "gemma3"

    def __post_init__(self) -> None:
        _require_positive(self, "mm_tokens_per_image")
        side = self.tokens_per_side
        if side * side != self.mm_tokens_per_image or self.vision_config.patches_per_side % side:
            raise ConfigError(
                f"mm_tokens_per_image ({self.mm_tokens_per_image}) must be a square whose side divides the "
                f"encoder's {self.vision_config.patches_per_side} patches a side."
            )

    @property
    def tokens_per_side(self) -> int:
        """Soft tokens along one side of a picture's square."""
        return int(self.mm_tokens_per_image**0.5)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        known, extra = cls._split_known(data)
        known = {k: v for k, v in known.items() if v is not None}
        text = _object("text_config", known.pop("text_config", {}))
        vision = _object("vision_config", known.pop("vision_config", {}))
        for new, old in (("image_token_id", "image_token_index"), ("boi_token_id", "boi_token_index"),
                         ("eoi_token_id", "eoi_token_index")):  # fmt: skip
            if new in extra:
                known.setdefault(old, extra.pop(new))
        text.setdefault("tie_word_embeddings", known.get("tie_word_embeddings", True))
        return cls(
            text_config=Gemma3TextConfig.from_dict(text),
            vision_config=SiglipVisionConfig.from_dict(vision),
            **known,
            extra=_drop_head(extra),
        )

    def to_dict(self) -> dict[str, Any]:
        names = [f.name for f in fields(self) if f.name not in ("extra", "text_config", "vision_config")]
        data = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        sub = {"text_config": self.text_config.to_dict(), "vision_config": self.vision_config.to_dict()}
        return {**self.extra, **data, **sub, "model_type": self.model_type}


AnyConfig = Gemma3Config | Gemma3TextConfig


def read_config(folder: Path) -> AnyConfig:
    """config.json of a checkpoint folder. CheckpointError where it is missing, ConfigError where wrong."""
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if kind == Gemma3Config.model_type:
        return Gemma3Config.from_dict(data)
    if kind == Gemma3TextConfig.model_type:
        return Gemma3TextConfig.from_dict(data)
    raise ConfigError(f"config.json says model_type {kind!r}; this program runs 'gemma3' and 'gemma3_text'.")


_NULLABLE = ("pad_token_id", "eos_token_id", "bos_token_id", "final_logit_softcapping")


def _alternating_layers(num_layers: int, pattern: int) -> tuple[str, ...]:
    return tuple(GLOBAL if (i + 1) % pattern == 0 else LOCAL for i in range(num_layers))


def _drop_head(extra: dict[str, Any]) -> dict[str, Any]:
    # model_type is a class attribute here; keeping the read one as well would let the two differ.
    return {k: v for k, v in extra.items() if k != "model_type"}


def _read_rope(data: dict[str, Any]) -> dict[str, RopeParameters]:
    """Takes every rotary field out of `data` and returns one entry per layer kind."""
    newer = _object("rope_parameters", data.pop("rope_parameters", None) or {})
    if newer and not newer.keys() & {LOCAL, GLOBAL}:
        raise ConfigError(f"rope_parameters must hold one entry each for {LOCAL} and {GLOBAL}, got {sorted(newer)}.")
    scaling = _object("rope_scaling", data.pop("rope_scaling", None) or {})
    theta = {GLOBAL: data.pop("rope_theta", None), LOCAL: data.pop("rope_local_base_freq", None)}
    older = {GLOBAL: scaling, LOCAL: {}}
    given = {k: {**older[k], **_object(f"rope_parameters of {k}", newer.get(k) or {})} for k in (GLOBAL, LOCAL)}
    return {k: _rope(given[k], theta[k] or DEFAULT_ROPE_THETA[k]) for k in (GLOBAL, LOCAL)}


def _object(name: str, value: Any) -> dict[str, Any]:
    """A copy of a JSON object in the config. ConfigError where it is something else."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a JSON object, got {value!r}.")
    return dict(value)


def _rope(data: Mapping[str, Any], theta: float) -> RopeParameters:
    kind = data.get("rope_type", data.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"Rotary embedding of type {kind!r} is not supported; Gemma 3 uses 'default' and 'linear'.")
    factor = float(data.get("factor", 1.0)) if kind == "linear" else 1.0
    return RopeParameters(theta=float(data.get("rope_theta", theta)), factor=factor)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of 1 or more, got {value!r}.")


def _require_activation(name: str, value: str) -> None:
    if value != SUPPORTED_ACTIVATION:
        raise ConfigError(f"{name}={value!r} is not supported; Gemma 3 uses {SUPPORTED_ACTIVATION!r}.")

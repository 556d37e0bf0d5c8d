"""The rotary embedding in config.json, in the older and the newer spelling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma3_core.config.base import json_object, positive_number
from gemma3_core.errors import ConfigError

LOCAL = "sliding_attention"
GLOBAL = "full_attention"
DEFAULT_ROPE_THETA = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one layer kind: base `theta`, positions divided by `factor`.

    Raises ConfigError where one of them is no number above 0.
    """

    theta: float
    factor: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the file, kept for saving."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", positive_number("rope_theta", self.theta))
        object.__setattr__(self, "factor", positive_number("The rotary embedding's factor", self.factor))

    def to_dict(self) -> dict[str, Any]:
        if self.factor == 1.0:
            return {**self.extra, "rope_type": "default", "rope_theta": self.theta}
        return {**self.extra, "rope_type": "linear", "factor": self.factor, "rope_theta": self.theta}


def read_rope(data: dict[str, Any]) -> dict[str, RopeParameters]:
    """Removes every rotary field from `data` and returns one entry per layer kind. Raises ConfigError."""
    newer = json_object("rope_parameters", data.pop("rope_parameters", None) or {})
    if newer and not newer.keys() & {LOCAL, GLOBAL}:
        raise ConfigError(f"rope_parameters must hold one entry each for {LOCAL} and {GLOBAL}, got {sorted(newer)}.")
    scaling = json_object("rope_scaling", data.pop("rope_scaling", None) or {})
    theta = {GLOBAL: data.pop("rope_theta", None), LOCAL: data.pop("rope_local_base_freq", None)}
    # As in transformers, rope_scaling is for global layers and wins over the newer spelling.
    older = {GLOBAL: scaling, LOCAL: {}}
    given = {k: {**json_object(f"rope_parameters of {k}", newer.get(k) or {}), **older[k]} for k in (GLOBAL, LOCAL)}
    return {
        kind: _rope(given[kind], DEFAULT_ROPE_THETA[kind] if theta[kind] is None else theta[kind])
        for kind in (GLOBAL, LOCAL)
    }


def _rope(data: dict[str, Any], theta: Any) -> RopeParameters:
    older, newer = data.pop("type", None), data.pop("rope_type", None)
    kind = newer or older or "default"
    if kind not in ("default", "linear"):
        raise ConfigError(f"Rotary embedding of type {kind!r} is not supported; Gemma 3 uses 'default' and 'linear'.")
    if data.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError(f"partial_rotary_factor={data['partial_rotary_factor']!r} is not supported; leave it out.")
    factor, base = data.pop("factor", None), data.pop("rope_theta", None)
    if kind == "default" or factor is None:
        factor = 1.0
    return RopeParameters(theta if base is None else base, factor, data)

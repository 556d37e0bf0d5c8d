"""GenerationConfig: how to sample and where to stop; reads and writes generation_config.json.

The names, defaults and their order of precedence are those of transformers 5.23.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack

from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config
from gemma3_core.errors import SamplingError, UnsupportedOptionError
from gemma3_core.files.hub import HubOptions, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json
from gemma3_core.generation.sampling import SamplingParams, SamplingSettings

FILE_NAME = "generation_config.json"

DEFAULT_NEW_TOKENS = 20
"""The default of transformers."""

DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "min_length": 0,
    "use_cache": True,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
}
"""Options that neither the call nor the checkpoint sets."""

CACHES = ("dynamic", "static", "hybrid")
"""Values of cache_implementation. All mean our one cache: full length on global layers, a ring on local ones."""

_OFF_AT_ZERO = """
    early_stopping use_mtp epsilon_cutoff eta_cutoff no_repeat_ngram_size renormalize_logits remove_invalid_values
    token_healing output_attentions output_hidden_states encoder_no_repeat_ngram_size is_assistant low_memory
    penalty_alpha diversity_penalty
"""
_OFF_AT_ONE = """
    num_beams typical_p encoder_repetition_penalty length_penalty guidance_scale num_return_sequences num_beam_groups
"""
_OFF_AT: Mapping[str, tuple[Any, ...]] = {
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    "disable_compile": (True, False),  # nothing is compiled
}
_ALWAYS_EFFECTIVE = """
    max_time cache_config top_h bad_words_ids forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens sequence_bias watermarking_config decoder_start_token_id
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_ensemble_weight speculation_type
    compile_config dola_layers constraints force_words_ids
"""

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(_ALWAYS_EFFECTIVE.split(), ()),
    **dict.fromkeys(_OFF_AT_ZERO.split(), (0,)),  # False is 0
    **dict.fromkeys(_OFF_AT_ONE.split(), (1,)),
    **_OFF_AT,
}
"""Options of transformers that are not supported, with the values at which they do nothing (None does so too)."""


class GenerationConfig:
    """The options of `generate`; None means that an option is not set. Lengths are in tokens.

    Unsupported options of transformers can be set and are saved again, but `generate` refuses those that would have
    an effect. Raises UnsupportedOptionError for unknown names.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    max_cache_len: int | None = None
    prefill_chunk_size: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __init__(self, **options: Any):
        self._kept: dict[str, Any] = {}
        """Unsupported options, and unknown entries of a file."""
        for name, value in options.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in UNSUPPORTED:
            self._kept[name] = value
        elif name in self.names() or name == "_kept":
            # Ids may come as a tensor or an array; a file holds numbers.
            plain = value.tolist() if name.endswith("_token_id") and hasattr(value, "tolist") else value
            super().__setattr__(name, plain)
        else:
            raise UnsupportedOptionError(f"GenerationConfig does not know {name}. Check its spelling.")

    def __getattr__(self, name: str) -> Any:
        # Called only for names that are not attributes.
        if name in UNSUPPORTED:
            return self._kept.get(name)
        raise AttributeError(f"GenerationConfig has no {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options that are supported."""
        return tuple(GenerationConfig.__annotations__)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | Path,
        config_file_name: str = FILE_NAME,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Reads generation_config.json of a folder or Hub id. Raises CheckpointError where there is none."""
        folder = resolve_folder(pretrained_model_name, weights=False, **hub)
        return cls.from_dict(read_json(folder / config_file_name))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The options in a file's content; other entries are kept for saving."""
        known = {name: value for name, value in config_dict.items() if name in cls.names()}
        config = cls(**known)
        config._kept.update({name: value for name, value in config_dict.items() if name not in known})
        return config

    @classmethod
    def from_model_config(cls, model_config: AnyConfig) -> Self:
        """The special ids of a model's config; a multimodal config's own win over its decoder's."""
        text = model_config.text_config if isinstance(model_config, Gemma3Config) else model_config
        config = cls()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            own = getattr(model_config, name, None)
            setattr(config, name, getattr(text, name, None) if own is None else own)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, and the kept entries."""
        chosen = {name: getattr(self, name) for name in self.names() if getattr(self, name) is not None}
        return {**self._kept, **chosen}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes `to_dict` to generation_config.json. Raises CheckpointError, UnsupportedOptionError."""
        write_json(folder_to_save_in(save_directory, options) / FILE_NAME, self.to_dict())

    def update(self, **options: Any) -> dict[str, Any]:
        """Sets the options that are known, supported or not; returns the others."""
        for name in (known := [name for name in options if name in self.names() or name in UNSUPPORTED]):
            setattr(self, name, options[name])
        return {name: value for name, value in options.items() if name not in known}

    def over(self, below: "GenerationConfig") -> "GenerationConfig":
        """A new config: this one's options, then those of `below`, then DEFAULTS."""
        merged = GenerationConfig(**DEFAULTS)
        merged.update(**below.to_dict())
        merged.update(**self.to_dict())
        return merged

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer; none if eos_token_id is not set."""
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)

    @property
    def pad_id(self) -> int | None:
        """What fills a row after its end: pad_token_id, else the first stop id; None without either."""
        return self.pad_token_id if self.pad_token_id is not None else next(iter(self.stop_ids), None)

    def require_supported(self) -> None:
        """Raises UnsupportedOptionError that names every unsupported option with an effect."""
        asked = [
            f"{name}={value!r}"
            for name, value in sorted(self._kept.items())
            if name in UNSUPPORTED and value is not None
            if not (isinstance(value, bool | int | float | str) and value in UNSUPPORTED[name])
        ]
        if asked:
            raise UnsupportedOptionError(
                f"generate does not support {', '.join(asked)}. Leave it out, or take it out of "
                "model.generation_config."
            )

    def sampling_params(self, seed: int | None = None) -> SamplingParams:
        """How tokens are sampled; a filter that is not set keeps everything. Raises SamplingError out of range."""
        if self.do_sample and self.temperature == 0.0:
            raise SamplingError(
                "temperature must be above 0 where do_sample is True, got 0. Use do_sample=False for greedy."
            )
        heat = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(
            heat if self.do_sample else 0.0,
            self.top_k or 0,
            1.0 if self.top_p is None else self.top_p,
            seed,
            self.min_p,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )

    def sampling(self) -> SamplingSettings:
        """The checkpoint's sampling, as settings that a visitor may change."""
        own = GenerationConfig().over(self)
        return SamplingSettings(**vars(own.sampling_params()))


def read_generation_config(folder: Path, config: AnyConfig) -> GenerationConfig:
    """generation_config.json of a checkpoint folder; without stop ids there, those of the model's config."""
    data = read_json(folder / FILE_NAME, optional=True)
    own = GenerationConfig.from_model_config(config)
    if not data:
        return own
    read = GenerationConfig.from_dict(data)
    if read.eos_token_id is None:
        read.eos_token_id = own.eos_token_id
    return read

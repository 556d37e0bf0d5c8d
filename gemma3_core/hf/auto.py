"""Auto classes, which pick the class that a checkpoint's config.json describes, and `pipeline`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from gemma3_core.adapters.config import base_of
from gemma3_core.config.base import CONFIG_FILE
from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, Gemma3TextConfig, read_config
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.files.hub import HubOptions, pop_hub_options, resolve_folder
from gemma3_core.files.saving import refuse_options
from gemma3_core.hf.pipelines import ImageTextToTextPipeline, Pipeline, TextGenerationPipeline
from gemma3_core.models.classification import Gemma3ForSequenceClassification, Gemma3TextForSequenceClassification
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
from gemma3_core.models.pretrained import PreTrainedModel, pick_device
from gemma3_core.models.text import Gemma3ForCausalLM, Gemma3TextModel
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


class _AutoModel:
    """Picks a model class by the type of the config."""

    _classes: ClassVar[dict[type, type[PreTrainedModel]]]

    def __init__(self) -> None:
        raise UnsupportedOptionError(
            f"{type(self).__name__} makes no object of its own: use {type(self).__name__}.from_pretrained(folder)."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """A model of the class that fits the checkpoint in a folder or at a Hub id.

        `options` are those of that class's from_pretrained: dtype, device_map, attn_implementation,
        quantization_config. Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        hub = pop_hub_options(options)
        config = options.get("config")
        if config is None:
            # Without weights first, so that the wrong kind of checkpoint is refused before a large download.
            config = _config_of(pretrained_model_name_or_path, hub)
        return cls._kind(config).from_pretrained(pretrained_model_name_or_path, **hub, **options)

    @classmethod
    def from_config(cls, config: AnyConfig) -> Any:
        """A model of the class that fits, with random weights."""
        return cls._kind(config)(config)

    @classmethod
    def _kind(cls, config: AnyConfig) -> type[PreTrainedModel]:
        kind = cls._classes.get(type(config))
        if kind is None:
            taken, got = " or ".join(c.__name__ for c in cls._classes), type(config).__name__
            advice = ": 270M and 1B read text only, use AutoModelForCausalLM." if got == "Gemma3TextConfig" else "."
            raise UnsupportedOptionError(f"{cls.__name__} takes {taken}, got {got}{advice}")
        return kind


def _config_of(source: str | Path, hub: HubOptions) -> AnyConfig:
    """The config of a checkpoint, or of the base that an adapter names."""
    folder = resolve_folder(source, weights=False, **hub)
    if (base := base_of(folder)) is not None:
        folder = resolve_folder(base.source, weights=False, **base.hub_options(hub))
    return read_config(folder)


def _base_of(source: str | Path, hub: Mapping[str, Any]) -> tuple[str | Path, dict[str, Any]]:
    """The checkpoint with config and processor, and its options: `source` itself, or the base that an adapter names."""
    base = base_of(resolve_folder(source, weights=False, **hub))
    return (source, dict(hub)) if base is None else (base.source, base.hub_options(hub))


class AutoModelForCausalLM(_AutoModel):
    """Gemma3ForCausalLM for text-only checkpoints, else Gemma3ForConditionalGeneration."""

    _classes: ClassVar = {Gemma3TextConfig: Gemma3ForCausalLM, Gemma3Config: Gemma3ForConditionalGeneration}


class AutoModelForImageTextToText(_AutoModel):
    """Gemma3ForConditionalGeneration; a text-only checkpoint is refused."""

    _classes: ClassVar = {Gemma3Config: Gemma3ForConditionalGeneration}


class AutoModel(_AutoModel):
    """The model without a head: Gemma3TextModel for text-only checkpoints, else Gemma3Model."""

    _classes: ClassVar = {Gemma3TextConfig: Gemma3TextModel, Gemma3Config: Gemma3Model}


class AutoModelForSequenceClassification(_AutoModel):
    """Gemma3TextForSequenceClassification for text-only checkpoints, else Gemma3ForSequenceClassification.

    Besides every model's options, `from_pretrained` takes num_labels, id2label, label2id and problem_type.
    """

    _classes: ClassVar = {
        Gemma3TextConfig: Gemma3TextForSequenceClassification,
        Gemma3Config: Gemma3ForSequenceClassification,
    }


class AutoTokenizer:
    """Gemma3Tokenizer, the only one."""

    from_pretrained = Gemma3Tokenizer.from_pretrained


class AutoProcessor:
    """Gemma3Processor; for a checkpoint that reads text only, its Gemma3Tokenizer."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Gemma3Processor | Gemma3Tokenizer:
        """The processor of a folder or Hub id, with the tensor image processor (`backend="pil"` for the other).

        No weights are downloaded. `options` as for Gemma3Processor (padding_side="left", …). Raises
        CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **pop_hub_options(options))
        if (folder / CONFIG_FILE).is_file() and isinstance(read_config(folder), Gemma3TextConfig):
            return AutoTokenizer.from_pretrained(folder, **options)
        processor = Gemma3Processor.from_pretrained(folder, **options)
        processor.tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return processor


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: AnyConfig | None = None,
    tokenizer: Gemma3Tokenizer | str | Path | None = None,
    feature_extractor: None = None,
    image_processor: Any = None,
    video_processor: None = None,
    processor: Gemma3Processor | str | Path | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: None = None,
    **options: Any,
) -> Pipeline:
    """A pipeline for "image-text-to-text" or "text-generation"; the default task is the checkpoint's.

    `model` is a folder, a Hub id, or a model, which needs `processor` (or `tokenizer`) beside it. Of an adapter's
    folder or id, the processor is its base's. `device` is a number (-1 is the CPU), a name or a torch.device; without
    one the first accelerator, else the CPU. model_kwargs go to from_pretrained, `options` to every call. Raises
    CheckpointError, ConfigError, UnsupportedOptionError.
    """
    refused: dict[str, Any] = {"config": config, "feature_extractor": feature_extractor}
    refused |= {"video_processor": video_processor, "pipeline_class": pipeline_class}
    refuse_options("pipeline", {**refused, "trust_remote_code": trust_remote_code or None})
    if model is None:
        raise UnsupportedOptionError("pipeline needs model=: a folder, a Hub id or a model. None is chosen for you.")
    if not isinstance(model_kwargs, Mapping | None):
        raise UnsupportedOptionError(f"model_kwargs must be a dict of options, got {model_kwargs!r}.")
    place = _placement(device, device_map, dtype, options.pop("torch_dtype", None), model_kwargs or {})
    source = model if isinstance(model, str | Path) else None
    hub: HubOptions = {"revision": revision, "token": token}
    base, of_base = (None, dict(hub)) if source is None else _base_of(source, hub)
    kind = _pipeline_class(task, model if base is None else base, of_base)
    sees = kind is ImageTextToTextPipeline
    if source is not None:
        models = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = models.from_pretrained(source, **hub, **place)
    elif device is not None or device_map is not None:
        model = model.to(place["device_map"])
    if not sees:
        given = tokenizer or getattr(processor, "tokenizer", None)
        chosen = _loaded_part(given, AutoTokenizer, base, of_base if given is None else hub)
        return kind(model, chosen, **options)
    if processor is None and isinstance(tokenizer, Gemma3Tokenizer) and image_processor is not None:
        soft_tokens = model.config.mm_tokens_per_image
        processor = Gemma3Processor(image_processor, tokenizer, image_seq_length=soft_tokens)
    elif image_processor is not None or tokenizer is not None:
        raise UnsupportedOptionError("Give processor=, or tokenizer= and image_processor= together, as objects.")
    part_options = {**(of_base if processor is None else hub), **({} if use_fast else {"use_fast": False})}
    chosen = _loaded_part(processor, AutoProcessor, base, part_options)
    if not isinstance(chosen, Gemma3Processor):
        raise UnsupportedOptionError(f"image-text-to-text needs a Gemma3Processor, got {type(chosen).__name__}.")
    return kind(model, chosen.tokenizer, chosen, **options)


def _pipeline_class(
    task: str | None, model: Any, hub: Mapping[str, Any]
) -> type[ImageTextToTextPipeline | TextGenerationPipeline]:
    if task is None:
        config = getattr(model, "config", None) or read_config(resolve_folder(model, weights=False, **hub))
        return ImageTextToTextPipeline if isinstance(config, Gemma3Config) else TextGenerationPipeline
    for kind in (ImageTextToTextPipeline, TextGenerationPipeline):
        if kind.task == task:
            return kind
    tasks = f"{ImageTextToTextPipeline.task} and {TextGenerationPipeline.task}"
    raise UnsupportedOptionError(f"There is no task {task!r} here; Gemma 3 does {tasks}.")


def _placement(
    device: Any, device_map: Any, dtype: Any, torch_dtype: Any, model_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The options of from_pretrained, with device_map and dtype."""
    if device is not None and (device_map is not None or "device_map" in model_kwargs):
        raise UnsupportedOptionError("device and device_map both place the model. Give one of them.")
    if device_map is None:
        device_map = model_kwargs.get("device_map", _device(device))
    rest = {name: value for name, value in model_kwargs.items() if name not in ("dtype", "torch_dtype")}
    in_kwargs = model_kwargs.get("dtype", model_kwargs.get("torch_dtype"))
    if dtype in (None, "auto"):
        dtype = torch_dtype or in_kwargs or dtype
    elif in_kwargs is not None:
        raise UnsupportedOptionError("dtype is given twice: to pipeline and in model_kwargs. Give it once.")
    return {**rest, "device_map": device_map, "dtype": dtype}


def _device(device: int | str | torch.device | None) -> Any:
    """As in transformers, a number is an accelerator's (the CPU if there is none); -1 is the CPU."""
    if device is None:
        return "auto"
    if not isinstance(device, int):
        return device
    if device < 0:
        return "cpu"
    return f"cuda:{device}" if torch.cuda.is_available() else pick_device("auto")


def _loaded_part(given: Any, auto: Any, source: str | Path | None, options: Mapping[str, Any]) -> Any:
    """The processor or tokenizer: the given object, or loaded from the given folder or the checkpoint."""
    if given is not None and not isinstance(given, str | Path):
        return given
    if given is None and source is None:
        name = "processor" if auto is AutoProcessor else "tokenizer"
        raise UnsupportedOptionError(
            f"A model needs {name}= beside it; or give the folder as model=, which holds both."
        )
    return auto.from_pretrained(given or source, **options)

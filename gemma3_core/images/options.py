"""The options of an image processor and preprocessor_config.json."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image

from gemma3_core.errors import ConfigError, require_known
from gemma3_core.model_inputs import tensor_kind

_CHANNEL_ORDERS = ("channels_first", "channels_last")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "data_format": _CHANNEL_ORDERS,
    "input_data_format": (None, *_CHANNEL_ORDERS),
    "disable_grouping": (None, True, False),
}
_SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})
_SIZE_ADVICE = (
    "give a number of pixels, or height and width, shortest_edge (with or without longest_edge) or max_height and "
    "max_width, each 1 or more."
)
# Keys of files that say nothing about pixels.
_IGNORED = {"image_processor_type", "feature_extractor_type", "processor_class", "image_seq_length"}


@dataclass(frozen=True)
class ImageSize:
    """What a picture is resized to, in pixels: height and width, or a bound on its edges that keeps its shape.

    Reads like the dict of the config file: `size["height"]`, `dict(size)`. Raises ConfigError for other bounds.
    """

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    max_height: int | None = None
    max_width: int | None = None

    def __post_init__(self) -> None:
        given = dict(self)
        if set(given) not in _SIZES or not all(_is_whole(value) and value > 0 for value in given.values()):
            raise ConfigError(f"size is {given}; {_SIZE_ADVICE}")

    @classmethod
    def of(cls, value: Any, default_to_square: bool = True) -> "ImageSize":
        """From any spelling of the reference: a number, (height, width) or a dict."""
        if isinstance(value, ImageSize):
            return value
        if _is_whole(value):
            return cls(height=value, width=value) if default_to_square else cls(shortest_edge=value)
        if isinstance(value, list | tuple) and len(value) == 2:
            return cls(height=value[0], width=value[1])
        is_dict = isinstance(value, Mapping) or hasattr(value, "shortest_edge")  # transformers' SizeDict is no dict
        content = {name: number for name, number in dict(value).items() if number is not None} if is_dict else {}
        if not is_dict or not content.keys() <= cls.__annotations__.keys():
            raise ConfigError(f"size is {value!r}; {_SIZE_ADVICE}")
        return cls(**content)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter([(f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None])

    def __getitem__(self, name: str) -> int:
        return dict(self)[name]

    def for_picture(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing. The rounding is transformers' own, so that no size differs."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        if self.max_height is not None and self.max_width is not None:
            scale = min(self.max_height / height, self.max_width / width)
            return max(1, int(height * scale)), max(1, int(width * scale))
        assert self.shortest_edge is not None
        return _by_edges(height, width, self.shortest_edge, self.longest_edge)


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json; the defaults are those of the published Gemma 3 checkpoints.

    `size` is what pictures and crops are resized to and `pan_and_scan_min_crop_size` the shortest side of a crop,
    both in pixels. Tensors are processed on `device`; None leaves them where they are. Raises ConfigError for values
    that no picture could be processed with.
    """

    size: ImageSize = field(default_factory=lambda: ImageSize(height=896, width=896))
    resample: int = Image.Resampling.BILINEAR
    do_convert_rgb: bool = True
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_pan_and_scan: bool = False
    pan_and_scan_min_crop_size: int = 256
    pan_and_scan_max_num_crops: int = 4
    pan_and_scan_min_ratio_to_activate: float = 1.2
    default_to_square: bool = True
    data_format: str = "channels_first"
    input_data_format: str | None = None
    device: torch.device | None = None
    disable_grouping: bool | None = None
    return_tensors: str | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_type(f.name, f.type, getattr(self, f.name))
        if not _is_whole(self.resample) or self.resample not in list(Image.Resampling):
            names = ", ".join(f"{int(r)} ({r.name.lower()})" for r in sorted(Image.Resampling))
            raise ConfigError(f"resample is {self.resample!r}; Pillow's filters are {names}.")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            self._set(name, getattr(value, "value", value))  # transformers' enums hold the strings
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
        self._set("return_tensors", tensor_kind(self.return_tensors))
        self._set("size", ImageSize.of(self.size, self.default_to_square))
        self._set("image_mean", _per_channel("image_mean", self.image_mean))
        self._set("image_std", _per_channel("image_std", self.image_std))
        if 0 in self.image_std:
            raise ConfigError(f"image_std is {self.image_std}; pixels are divided by it, so no number may be 0.")
        self._set("device", None if self.device is None else _device(self.device))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ImageProcessorConfig":
        """Null means the published default. Raises UnsupportedOptionError for keys of other processors."""
        return cls().with_options(content)

    def with_options(self, options: Mapping[str, Any]) -> "ImageProcessorConfig":
        """A copy with other values; None changes nothing. Raises UnsupportedOptionError for unknown options."""
        known = self.__annotations__
        wanted = {name for name, value in options.items() if value is not None and value is not False}
        require_known("The image processor", wanted - _IGNORED, known)
        changes = {name: value for name, value in options.items() if name in known and value is not None}
        return replace(self, **changes) if changes else self

    def to_dict(self) -> dict[str, Any]:
        """The Hub's spelling, without options of one machine or one call."""
        left_out = {"device", "disable_grouping", "return_tensors", "input_data_format", "default_to_square"}
        values = {name: getattr(self, name) for name in self.__annotations__ if name not in left_out}
        return {
            **values,
            "image_mean": list(self.image_mean),
            "image_processor_type": "Gemma3ImageProcessor",
            "image_std": list(self.image_std),
            "resample": int(self.resample),
            "size": dict(self.size),
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _check_type(name: str, kind: Any, value: Any) -> None:
    """Raises ConfigError for a value that a field of this type can't have; other types are checked elsewhere."""
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be True or False.")
    if kind is int and name != "resample" and not (_is_whole(value) and value > 0):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
    if kind is float and not (_is_number(value) and 0 < value < math.inf):
        raise ConfigError(f"{name} is {value!r}; it must be a number above 0.")


def _by_edges(height: int, width: int, shortest: int, longest: int | None) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    target: float = shortest
    if longest is not None and long / short * shortest > longest:
        target = longest * short / long
    new_short = round(target)
    # transformers does not resize a picture whose shorter side fits already
    new_long = long if new_short == short and longest is not None else int(target * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise ConfigError(f"{name} is {value!r}; it must be a number, or three: for red, green and blue.")
    return tuple(float(number) for number in numbers)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f'device is {device!r}; give one such as "cpu", "cuda" or "cuda:1".') from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

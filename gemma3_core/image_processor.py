"""RGB pictures -> what the encoder gets: pan & scan crops, squares of one size, normalised pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.hub import read_json, resolve_folder, write_json
from gemma3_core.images import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image


@dataclass(frozen=True)
class Box:
    """Part of a picture, in pixels; right and bottom are the first column and row outside it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json; the values here are those of the published Gemma 3 checkpoints.

    `size` is the side of the encoder's square and `pan_and_scan_min_crop_size` the shortest side
    of a crop, both in pixels.
    """

    size: int = 896
    resample: int = Image.Resampling.BILINEAR
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    do_pan_and_scan: bool = False
    pan_and_scan_min_crop_size: int = 256
    pan_and_scan_max_num_crops: int = 4
    pan_and_scan_min_ratio_to_activate: float = 1.2

    def __post_init__(self) -> None:
        """Raises ConfigError for values that no picture could be processed with."""
        if self.size < 1 or self.pan_and_scan_min_crop_size < 1 or self.pan_and_scan_max_num_crops < 1:
            raise ConfigError("size, pan_and_scan_min_crop_size and pan_and_scan_max_num_crops must be 1 or more.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0 in self.image_std:
            raise ConfigError("image_mean and image_std must be three numbers each, and image_std not 0.")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ImageProcessorConfig":
        """Null means the published default. Raises UnsupportedOptionError for keys of other processors."""
        given = {key: value for key, value in content.items() if value is not None}
        for key, value in given.items():
            _check_option(key, value)
        values = {key: value for key, value in given.items() if key in cls.__annotations__}
        if "size" in values:
            values["size"] = _side(values["size"])
        for key in ("image_mean", "image_std"):
            if key in values:
                values[key] = _per_channel(values[key])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The Hub's spelling."""
        values = {name: getattr(self, name) for name in self.__annotations__}
        return {
            **values,
            "do_convert_rgb": True,
            "do_resize": True,
            "image_mean": list(self.image_mean),
            "image_processor_type": "Gemma3ImageProcessor",
            "image_std": list(self.image_std),
            "resample": int(self.resample),
            "size": {"height": self.size, "width": self.size},
        }


@dataclass(frozen=True)
class ImageInputs:
    """`pixel_values` [N, 3, S, S], float32: each picture followed by its crops; `num_crops` has one
    count per picture. Also readable by key, like the reference's result."""

    pixel_values: torch.Tensor
    num_crops: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return {"pixel_values": self.pixel_values, "num_crops": self.num_crops}[name]


def pan_and_scan_boxes(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> list[Box]:
    """One row or one column of equal crops along the longer side; empty where there are none.

    From the Gemma 3 report (arXiv 2503.19786, section 2.1), with the arithmetic of transformers:
    as many crops as the sides' ratio, rounded half up. The last crop may be a few pixels shorter.
    """
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        return []
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop_width, crop_height = math.ceil(width / columns), math.ceil(height / rows)
    if min(crop_width, crop_height) < min_crop_size:
        return []
    corners = [(x * crop_width, y * crop_height) for y in range(rows) for x in range(columns)]
    return [
        Box(left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left, top in corners
        if left < width and top < height
    ]


def explain_pan_and_scan(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> str:
    """One plain sentence: how many crops a picture gets, or why it gets none."""
    picture = f"{width} x {height}"
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        shape = "square" if width == height else "nearly square"
        return f"{picture} is {shape}: crops begin when one side is {min_ratio_to_activate:g} times the other."
    boxes = pan_and_scan_boxes(width, height, min_crop_size, max_num_crops, min_ratio_to_activate)
    if boxes:
        crops = "1 crop" if len(boxes) == 1 else f"{len(boxes)} crops"
        return f"{picture} is {'wide' if width > height else 'tall'}: {crops} beside the whole picture."
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop = f"{math.ceil(width / columns)} x {math.ceil(height / rows)}"
    return (
        f"{picture} is too small for crops: each would be {crop} pixels, "
        f"and the shorter side must be at least {min_crop_size}."
    )


def _grid(width: int, height: int, min_crop_size: int, max_num_crops: int) -> tuple[int, int]:
    """Columns and rows of crops, before asking whether each is large enough."""
    longer, shorter = max(width, height), min(width, height)
    count = min(longer // min_crop_size, math.floor(longer / shorter + 0.5))
    count = min(max_num_crops, max(2, count))
    return (count, 1) if width >= height else (1, count)


class Gemma3ImageProcessorPil:
    """The back end that resizes with Pillow; its pixels equal those of transformers' bit for bit."""

    def __init__(self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.config = config or ImageProcessorConfig()
        self.limits = limits

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Gemma3ImageProcessorPil":
        return cls(ImageProcessorConfig.from_dict(content))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, token: str | None = None
    ) -> "Gemma3ImageProcessorPil":
        """Read preprocessor_config.json, or the `image_processor` of processor_config.json (where
        newer transformers writes it); the published values where there is neither."""
        folder = resolve_folder(source, revision, token)
        nested = read_json(folder / "processor_config.json", optional=True).get("image_processor")
        return cls.from_dict(nested or read_json(folder / "preprocessor_config.json", optional=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "preprocessor_config.json", self.config.to_dict())

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        do_pan_and_scan: bool | None = None,
        pan_and_scan_min_crop_size: int | None = None,
        pan_and_scan_max_num_crops: int | None = None,
        pan_and_scan_min_ratio_to_activate: float | None = None,
    ) -> ImageInputs:
        """One picture or several, in anything `load_image` reads; None means the config's value."""
        processor = self.with_options(
            do_pan_and_scan=do_pan_and_scan,
            pan_and_scan_min_crop_size=pan_and_scan_min_crop_size,
            pan_and_scan_max_num_crops=pan_and_scan_max_num_crops,
            pan_and_scan_min_ratio_to_activate=pan_and_scan_min_ratio_to_activate,
        )
        pictures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
        groups = [processor.squares(load_image(picture, self.limits)) for picture in pictures]
        return ImageInputs(
            pixel_values=self.pixel_values([square for group in groups for square in group]),
            num_crops=tuple(len(group) - 1 for group in groups),
        )

    def with_options(self, **options: Any) -> "Gemma3ImageProcessorPil":
        """The same processor with other settings (fields of ImageProcessorConfig); None changes nothing."""
        changes = {name: value for name, value in options.items() if value is not None}
        return type(self)(replace(self.config, **changes), self.limits) if changes else self

    def boxes(self, width: int, height: int) -> list[Box]:
        """The crops that a picture of this size gets under the current settings."""
        if not self.config.do_pan_and_scan:
            return []
        return pan_and_scan_boxes(width, height, *_pan_and_scan_settings(self.config))

    def explain(self, width: int, height: int) -> str:
        """One plain sentence on the crops of a picture of this size, if pan & scan is on."""
        return explain_pan_and_scan(width, height, *_pan_and_scan_settings(self.config))

    def squares(self, picture: Image.Image) -> list[Image.Image]:
        """The RGB squares exactly as the encoder sees them: the whole picture, then its crops."""
        boxes = self.boxes(*picture.size)
        parts = [picture, *(picture.crop((box.left, box.top, box.right, box.bottom)) for box in boxes)]
        side = self.config.size
        return [part.resize((side, side), resample=self.config.resample) for part in parts]

    def pixel_values(self, squares: Sequence[Image.Image]) -> torch.Tensor:
        """N RGB squares -> [N, 3, S, S], float32, rescaled and normalised (-1 to 1 as published)."""
        side = self.config.size
        result = np.empty((len(squares), 3, side, side), dtype=np.float32)
        for index, square in enumerate(squares):
            result[index] = _normalised(np.asarray(square), self.config).transpose(2, 0, 1)
        return torch.from_numpy(result)


def _normalised(pixels: np.ndarray, config: ImageProcessorConfig) -> np.ndarray:
    """[S, S, 3] of 0 to 255. The steps' precisions are the reference's, so that no bit differs:
    rescaling in float64 and rounded to float32, normalising in float32."""
    if config.do_rescale:
        # Equal to rescaling each pixel: there are only 256 values to rescale.
        pixels = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)[pixels]
    if config.do_normalize:
        mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
        pixels = (pixels.astype(np.float32) - mean) / std
    return pixels


def _pan_and_scan_settings(config: ImageProcessorConfig) -> tuple[int, int, float]:
    return (
        config.pan_and_scan_min_crop_size,
        config.pan_and_scan_max_num_crops,
        config.pan_and_scan_min_ratio_to_activate,
    )


# Keys that say what this processor does anyway, and names of classes.
_FIXED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "default_to_square": True,
    "data_format": "channels_first",
}
_NAMES = {"image_processor_type", "feature_extractor_type", "processor_class", "image_seq_length"}


def _check_option(key: str, value: Any) -> None:
    if key in ImageProcessorConfig.__annotations__ or key in _NAMES:
        return
    if key not in _FIXED and value is False:  # a step that isn't wanted and doesn't exist
        return
    if key not in _FIXED or value != _FIXED[key]:
        raise UnsupportedOptionError(f"The image processor's option {key}={value!r} is not supported.")


def _side(size: Any) -> int:
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else [size, size]
    if not isinstance(sides[0], int) or sides[0] != sides[1]:
        raise ConfigError(f"size is {size!r}; the encoder needs a square, an equal height and width in pixels.")
    return sides[0]


def _per_channel(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),) * 3

"""RGB pictures -> what the encoder gets: pan & scan crops, tiles of one size, normalised pixels.

There are two back ends: Gemma3ImageProcessor works with tensors, on a GPU where there is one, and
Gemma3ImageProcessorPil with Pillow. Resized bilinear, as published, their tiles differ by one 8-bit
step at most (bicubic by more: it overshoots, and they clamp that at different points).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gemma3_core.errors import ImageError, UnsupportedOptionError
from gemma3_core.files.hub import pop_hub_options, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json
from gemma3_core.images.arrays import as_8_bit, flat_pictures, is_array, open_array
from gemma3_core.images.crops import Crops, checked_crops, even_crops
from gemma3_core.images.limits import DEFAULT_LIMITS, ImageLimits
from gemma3_core.images.load import ImageSource, load_image
from gemma3_core.images.options import ImageProcessorConfig, ImageSize
from gemma3_core.images.pan_and_scan import Box, explain_pan_and_scan, pan_and_scan_boxes
from gemma3_core.model_inputs import ModelInputs

Tile = Image.Image | np.ndarray | torch.Tensor
"""A picture or a part of one: a PIL picture, an array [H, W, C] or a tensor [C, H, W]; usually of 8 bits a color."""

_CLASS_SIZE = ImageSize(height=224, width=224)  # the default of the reference's classes; the published files say 896
_OPTIONS = frozenset(ImageProcessorConfig.__annotations__)
_BAND_PIXELS = 4_000_000
_TORCH_MODES: dict[int, str] = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
_BANDED = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_SCALE_REFUSED = "reduce the scale factor"  # in CUDA's RuntimeError: its antialiasing kernel lacks shared memory


class ImageProcessor(ABC):
    """What both back ends share: settings, crops, and the way from pictures to ModelInputs."""

    backend: str
    model_input_names: ClassVar = ["pixel_values", "num_crops"]

    def __init__(
        self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS, **options: Any
    ) -> None:
        """`options` are fields of ImageProcessorConfig. Without a config the size is 224, as in transformers.
        Raises ConfigError, UnsupportedOptionError."""
        self.config = (config or ImageProcessorConfig(size=_CLASS_SIZE)).with_options(options)
        self.limits = limits
        self._check_config()

    @abstractmethod
    def _check_config(self) -> None:
        """Raises UnsupportedOptionError for what the back end can't do."""

    def __getattr__(self, name: str) -> Any:
        """The settings, by their names in transformers: `processor.size`, `processor.do_pan_and_scan`, …"""
        if name in _OPTIONS and "config" in self.__dict__:
            return getattr(self.config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """`processor.do_pan_and_scan = True` changes the setting of this processor."""
        if name in _OPTIONS:
            name, value = "config", type(self)(replace(self.config, **{name: value})).config
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(ImageProcessorConfig.from_dict(content))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Reads preprocessor_config.json, or the `image_processor` of processor_config.json, where newer transformers
        writes it; without either the published values apply. `options` (HubOptions aside) win over both."""
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **pop_hub_options(options))
        nested = read_json(folder / "processor_config.json", optional=True).get("image_processor")
        content = nested or read_json(folder / "preprocessor_config.json", optional=True)
        return cls.from_dict({**content, **options})

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        return self.config.to_dict()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> list[str]:
        """Writes preprocessor_config.json; returns its path. Raises CheckpointError, UnsupportedOptionError."""
        path = folder_to_save_in(save_directory, options) / "preprocessor_config.json"
        write_json(path, self.to_dict())
        return [str(path)]

    def preprocess(
        self, images: ImageSource | Sequence[Any], crops: Sequence[Crops] | None = None, **options: Any
    ) -> ModelInputs:
        """`pixel_values`, each picture followed by its crops, and `num_crops`, one count per picture.

        `images` is one picture, a batch [N, …] or a list (of lists) of them, in anything `load_image`
        reads. `crops` has one entry per picture, which replaces pan & scan's. `options` hold for this call;
        None means the processor's own. `pixel_values` is a list [3, H, W] by default and one tensor
        [N, 3, H, W] with `return_tensors="pt"` or "np".
        """
        processor, pictures = self.with_options(**options), flat_pictures(images)
        wanted = [None] * len(pictures) if crops is None else list(crops)
        if len(wanted) != len(pictures):
            raise ImageError(f"crops has {len(wanted)} entries for {len(pictures)} pictures; give one per picture.")
        groups = [processor.tiles(processor._open(one), own) for one, own in zip(pictures, wanted, strict=True)]
        tiles = [tile for group in groups for tile in group]
        return ModelInputs(
            {"pixel_values": processor._collect(tiles), "num_crops": [len(group) - 1 for group in groups]},
            tensor_type=processor.config.return_tensors,
        )

    __call__ = preprocess

    def with_options(self, **options: Any) -> Self:
        """The same processor with other settings (fields of ImageProcessorConfig); None changes nothing."""
        if options.get("image_seq_length") is not None:
            raise UnsupportedOptionError("image_seq_length belongs to Gemma3Processor; give it when you make that.")
        return type(self)(self.config, self.limits, **options)

    def boxes(self, width: int, height: int, crops: Crops = None) -> list[Box]:
        """The crops of a picture of this size: `crops`, or those of the current settings. Raises ImageError for boxes
        that don't fit."""
        if crops == "auto":
            return even_crops(width, height, max(self.config.size.for_picture(height, width)))
        if crops is not None:
            return checked_crops(crops, width, height)
        return pan_and_scan_boxes(width, height, *self._pan_and_scan) if self.config.do_pan_and_scan else []

    def explain(self, width: int, height: int) -> str:
        """One plain sentence on the crops of a picture of this size, if pan & scan is on."""
        return explain_pan_and_scan(width, height, *self._pan_and_scan)

    @property
    def _pan_and_scan(self) -> tuple[int, int, float]:
        config = self.config
        ratio = config.pan_and_scan_min_ratio_to_activate
        return config.pan_and_scan_min_crop_size, config.pan_and_scan_max_num_crops, ratio

    def tiles(self, picture: Tile, crops: Crops = None) -> list[Tile]:
        """The whole picture and its crops (see `boxes`), resized, exactly as the encoder sees them: `pixel_values`
        takes them."""
        return self.cut(picture, self.boxes(*self._size(picture), crops))

    @abstractmethod
    def cut(self, picture: Tile, boxes: Sequence[Box]) -> list[Tile]:
        """As `tiles`, with boxes that `boxes` gave."""

    @abstractmethod
    def _size(self, picture: Tile) -> tuple[int, int]:
        """A picture's width and height."""

    def tile_pictures(self, picture: Image.Image, crops: Crops = None) -> list[Image.Image]:
        """The tiles as RGB pictures."""
        return [as_picture(tile) for tile in self.tiles(picture, crops)]

    @abstractmethod
    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        """N tiles of one size -> [N, 3, H, W], rescaled and normalised (-1 to 1, float32, as published)."""

    def _open(self, source: Any) -> Tile:
        """An 8-bit RGB picture, or an array [C, H, W] where the caller gave one or wants other colors."""
        if is_array(source):
            return open_array(source, self.config, self.limits)
        if isinstance(source, Image.Image) and not self.config.do_convert_rgb and source.mode != "RGB":
            last = replace(self.config, input_data_format="channels_last")
            return open_array(np.asarray(source), last, self.limits)
        return load_image(source, self.limits)

    def _collect(self, tiles: Sequence[Tile]) -> Any:
        """[N, C, H, W] where all tiles are of one size and a tensor was asked for, else a list [C, H, W]."""
        one_size = len({tile.size if isinstance(tile, Image.Image) else tile.shape for tile in tiles}) <= 1
        if self.config.return_tensors is not None and one_size:
            return self._in_data_format(self.pixel_values(tiles))
        values = [self._in_data_format(self.pixel_values([tile])[0]) for tile in tiles]
        return [value.numpy() for value in values] if self.backend == "pil" else values

    def _in_data_format(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if self.config.data_format == "channels_first" else pixels.movedim(-3, -1)

    def _check_channels(self, channels: int) -> None:
        if self.config.do_normalize and channels != 3:
            advice = "Leave do_convert_rgb on, or set do_normalize=False."
            raise ImageError(f"The picture has {channels} channels and image_mean has 3 numbers. {advice}")


class Gemma3ImageProcessor(ImageProcessor):
    """The back end that resizes tensors, antialiased, on `device`; bilinear, within one 8-bit step of transformers'."""

    backend = "torchvision"

    def _check_config(self) -> None:
        if self.config.resample not in _TORCH_MODES:
            raise UnsupportedOptionError(
                "The tensor image processor resizes to the nearest pixel (0), bilinear (2) or bicubic (3), not "
                f'resample={self.config.resample}. Take backend="pil".'
            )

    def to(self, device: torch.device | str) -> Self:
        """The same processor at work on another device."""
        return self.with_options(device=device)

    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        config = self.config
        if not tiles:
            return torch.empty(0, 3, *config.size.for_picture(1, 1), device=config.device)
        tensors = [_as_tensor(tile) for tile in tiles]
        device = config.device or tensors[0].device
        pixels = torch.stack([tensor.to(device) for tensor in tensors])
        scale = config.rescale_factor if config.do_rescale else 1.0
        if not config.do_normalize:
            return pixels * scale if config.do_rescale else pixels
        self._check_channels(pixels.shape[1])
        # Rescaled and normalised in one step, as in the reference: mean and deviation are scaled up to levels.
        mean, std = (
            torch.tensor(values, device=device)[:, None, None] * (1.0 / scale)
            for values in (config.image_mean, config.image_std)
        )
        return pixels.float().sub_(mean).div_(std)

    def _size(self, picture: Tile) -> tuple[int, int]:
        return picture.size if isinstance(picture, Image.Image) else (picture.shape[-1], picture.shape[-2])

    def cut(self, picture: Tile, boxes: Sequence[Box]) -> list[Tile]:
        on_cpu = self.config.device is None or self.config.device.type == "cpu"
        if isinstance(picture, Image.Image) and on_cpu and self.config.do_resize and self.config.resample in _BANDED:
            whole = Box(0, 0, *picture.size)
            return [self._resize_in_bands(picture, box) for box in (whole, *boxes)]
        pixels = _as_tensor(picture)
        pixels = pixels.to(self.config.device or pixels.device)
        parts = [pixels, *(pixels[:, box.top : box.bottom, box.left : box.right] for box in boxes)]
        return list(self._resize_parts(parts)) if self.config.do_resize else list(parts)

    def _resize_in_bands(self, picture: Image.Image, box: Box) -> torch.Tensor:
        """A part of a picture, resized across and then down, as torch does with 8-bit numbers.

        It is resized across band by band, so that a large picture is never in memory twice.
        """
        width, height = box.right - box.left, box.bottom - box.top
        size, mode = self.config.size.for_picture(height, width), _TORCH_MODES[self.config.resample]
        rows = max(1, _BAND_PIXELS // width)
        narrow = []
        for top in range(box.top, box.bottom, rows):
            band = _as_tensor(picture.crop((box.left, top, box.right, min(top + rows, box.bottom))))
            narrow.append(_resize(band[None], (band.shape[1], size[1]), mode))
        return _resize(torch.cat(narrow, dim=2), size, mode)[0]

    def _resize_parts(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Parts of one shape are resized together where that is faster: everywhere but on CPUs, by default."""
        apart = self.config.disable_grouping
        if apart is None:
            apart = parts[0].device.type == "cpu"
        groups: dict[Any, list[int]] = {}
        for index, part in enumerate(parts):
            groups.setdefault(index if apart else tuple(part.shape), []).append(index)
        resized: dict[int, torch.Tensor] = {}
        for indices in groups.values():
            batch = parts[indices[0]][None] if len(indices) == 1 else torch.stack([parts[i] for i in indices])
            size = self.config.size.for_picture(*batch.shape[-2:])
            resized |= zip(indices, _resize(batch, size, _TORCH_MODES[self.config.resample]), strict=True)
        return [resized[index] for index in range(len(parts))]


class Gemma3ImageProcessorPil(ImageProcessor):
    """The back end that resizes with Pillow; its pixels equal those of transformers' bit for bit."""

    backend = "pil"

    def _check_config(self) -> None:
        if self.config.device is not None and self.config.device.type != "cpu":
            device = self.config.device
            raise UnsupportedOptionError(f'backend="pil" works on the CPU, not on {device}; leave one of them out.')

    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        if not tiles:
            return torch.empty(0, 3, *self.config.size.for_picture(1, 1))
        arrays = [np.atleast_3d(np.asarray(tile)) for tile in tiles]
        self._check_channels(arrays[0].shape[-1])
        pixels = np.stack([_normalised(array, self.config) for array in arrays])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _size(self, picture: Tile) -> tuple[int, int]:
        return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])

    def cut(self, picture: Tile, boxes: Sequence[Box]) -> list[Tile]:
        if isinstance(picture, Image.Image):
            parts: list[Tile] = [picture, *(picture.crop(box) for box in boxes)]
        else:
            parts = [picture, *(picture[box.top : box.bottom, box.left : box.right] for box in boxes)]
        return [self._resize(part) for part in parts] if self.config.do_resize else parts

    def _open(self, source: Any) -> Tile:
        """A PIL picture wherever it is 8-bit RGB; else an array [H, W, C]."""
        if isinstance(source, torch.Tensor) and source.dtype != torch.bfloat16:  # numpy has no bfloat16
            source = source.detach().cpu().numpy()
        picture = super()._open(source)
        if isinstance(picture, torch.Tensor):
            picture = picture.cpu().numpy()
        if not isinstance(picture, np.ndarray):
            return picture
        pixels = np.ascontiguousarray(picture.transpose(1, 2, 0))
        if pixels.dtype.kind == "f" and self.config.do_rescale and self.config.do_resize:
            pixels = as_8_bit(pixels / np.float32(255.0) if float(pixels.max()) <= 1.0 else pixels)
        return Image.fromarray(pixels) if pixels.dtype == np.uint8 and pixels.shape[-1] == 3 else pixels

    def _resize(self, part: Any) -> Tile:
        was_array = isinstance(part, np.ndarray)
        picture, was_unit = _levels(part) if was_array else (part, False)
        height, width = self.config.size.for_picture(picture.height, picture.width)
        resized = picture.resize((width, height), resample=self.config.resample)
        if was_unit:
            return (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
        return np.asarray(resized) if was_array else resized


def image_processor_class(backend: str | None) -> type[ImageProcessor]:
    """The back end by its name in transformers: "torchvision" (tensors; the default) or "pil"."""
    for kind in (Gemma3ImageProcessor, Gemma3ImageProcessorPil):
        if backend in (kind.backend, None):
            return kind
    raise UnsupportedOptionError(f'backend={backend!r} is not known; use "torchvision" (tensors) or "pil".')


def _as_tensor(tile: Tile) -> torch.Tensor:
    """A picture as [C, H, W]. Its memory stays [H, W, C], which resizes fastest."""
    if isinstance(tile, torch.Tensor):
        return tile
    if isinstance(tile, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tile))
    return torch.from_numpy(np.array(tile)).permute(2, 0, 1)


def as_picture(tile: Tile) -> Image.Image:
    """A tile of `tiles` as an RGB picture."""
    if isinstance(tile, Image.Image):
        return tile
    assert isinstance(tile, torch.Tensor), "Pillow's back end keeps pictures as pictures"
    return Image.fromarray(tile.permute(1, 2, 0).cpu().numpy())


def _levels(part: np.ndarray) -> tuple[Image.Image, bool]:
    """[H, W, C] -> an 8-bit picture, and whether its values went from 0 to 1. As in the reference, each part is
    judged by itself and fractions of a level are cut off. Raises ImageError for other values."""
    whole = part.dtype == np.uint8 or np.allclose(part, part.astype(int))
    low, high = float(part.min()), float(part.max())
    if low < 0 or high > (255 if whole else 1):
        raise ImageError(
            f"The array's values go from {low:g} to {high:g}; for resizing with Pillow they must be whole numbers "
            "from 0 to 255, or from 0 to 1. The tensor back end takes any."
        )
    levels = part if whole else (part.astype(np.float64) * 255).astype(np.float32)
    levels = levels.astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels), not whole


def _resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, *size] on the same device, and on the CPU where the device's kernel refuses the scale or
    lacks memory.

    torch resizes 8-bit numbers on CPUs alone (in whole numbers, like Pillow); elsewhere they go through float32.
    """
    through_float = pixels.dtype == torch.uint8 and pixels.device.type != "cpu"
    try:
        return (_resize_through_float if through_float else _interpolate)(pixels, size, mode)
    except RuntimeError as error:
        if _SCALE_REFUSED not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        return _interpolate(pixels.cpu(), size, mode).to(pixels.device)


def _resize_through_float(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Bicubic overshoots, so the result is clamped to 0 and 255."""
    return _interpolate(pixels.float(), size, mode).round_().clamp_(0, 255).to(torch.uint8)


def _interpolate(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if mode == "nearest-exact":
        return F.interpolate(pixels, size, mode=mode)
    return F.interpolate(pixels, size, mode=mode, antialias=True, align_corners=False)


def _normalised(pixels: np.ndarray, config: ImageProcessorConfig) -> np.ndarray:
    """[H, W, C] of 0 to 255. The steps have the reference's precisions, so that no bit differs: rescaled in float64
    and rounded to float32, then normalised in float32 (or in the array's own floats)."""
    if config.do_rescale and pixels.dtype == np.uint8:
        # Equal to rescaling each pixel: there are only 256 values to rescale.
        pixels = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)[pixels]
    elif config.do_rescale:
        pixels = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    if config.do_normalize:
        pixels = pixels if pixels.dtype.kind == "f" else pixels.astype(np.float32)
        mean, std = np.array(config.image_mean, pixels.dtype), np.array(config.image_std, pixels.dtype)
        pixels = (pixels - mean) / std
    return pixels

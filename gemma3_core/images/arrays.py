"""Arrays and tensors that hold pictures -> channels first, RGB, in numbers that both back ends work with."""

from typing import Any

import numpy as np
import torch

from gemma3_core.errors import ImageError
from gemma3_core.images.load import ImageLimits, as_8_bit, check_pixels
from gemma3_core.images.options import ImageProcessorConfig

_CHANNELS = (1, 3, 4)
Pixels = np.ndarray | torch.Tensor


def is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray | torch.Tensor)


def flat_pictures(images: Any) -> list[Any]:
    """One picture, a batch [N, …] of them, a list, or a list of lists -> a flat list of pictures."""
    if is_array(images) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in flat_pictures(item)]
    return [images]


def open_array(array: Pixels, config: ImageProcessorConfig, limits: ImageLimits) -> Pixels:
    """[H, W], [H, W, C] or [C, H, W] -> [C, H, W], uint8 or float, RGB if the config says so.

    Whole numbers are levels from 0 to 255 (16 bits are brought to 8). Floats keep their values, except
    colors from 0 to 1 under `do_rescale`: these become levels first, for rescaling them again would turn
    every picture black. Raises ImageError for what is no picture.
    """
    pixels = _channels_first(array, config.input_data_format)
    check_pixels(pixels.shape[-1], pixels.shape[-2], limits)
    pixels = _numbers(pixels, config.do_rescale)
    if not config.do_convert_rgb:
        return pixels
    is_float = pixels.is_floating_point() if isinstance(pixels, torch.Tensor) else pixels.dtype.kind == "f"
    return _rgb(pixels, white=1.0 if is_float and not config.do_rescale else 255.0)


def _channels_first(array: Pixels, order: str | None) -> Pixels:
    """Where both ends could be channels, the first is, as in the reference."""
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ImageError(f"An array of shape {list(array.shape)} is no picture; give [H, W], [H, W, C] or [C, H, W].")
    if order is None:
        order = "channels_first" if array.shape[0] in _CHANNELS else "channels_last"
    channels = array.shape[0] if order == "channels_first" else array.shape[-1]
    if channels not in _CHANNELS:
        raise ImageError(
            f"An array of shape {list(array.shape)}, read {order.replace('_', ' ')}, has {channels} channels; "
            "1 (gray), 3 (RGB) or 4 (RGBA) are expected. Say input_data_format, or change the array."
        )
    if order == "channels_first":
        return array
    return array.permute(2, 0, 1) if isinstance(array, torch.Tensor) else np.moveaxis(array, -1, 0)


def _numbers(pixels: Pixels, do_rescale: bool) -> Pixels:
    """-> uint8 or floats."""
    if isinstance(pixels, torch.Tensor):
        if pixels.dtype == torch.uint8:
            return pixels
        if not pixels.is_floating_point():
            levels = torch.from_numpy(as_8_bit(pixels.cpu().numpy()))
            return levels.to(pixels.device)
        pixels = pixels.detach().float()
    elif pixels.dtype.kind != "f":
        return as_8_bit(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"The array's values go from {low:g} to {high:g}; colors are finite numbers.")
    return pixels * 255.0 if do_rescale and low >= 0.0 and high <= 1.0 else pixels


def _rgb(pixels: Pixels, white: float) -> Pixels:
    """Gray three times; transparency on white."""
    if pixels.shape[0] == 3:
        return pixels
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1) if isinstance(pixels, torch.Tensor) else np.repeat(pixels, 3, axis=0)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > white:
        raise ImageError(
            f"The values of an array with transparency go from {low:g} to {high:g}; 0 to {white:g} is expected."
        )
    if isinstance(pixels, torch.Tensor):
        opacity = pixels[3:].double() / white
        blended = opacity * pixels[:3] + (1 - opacity) * white
        return blended.to(pixels.dtype) if pixels.is_floating_point() else blended.round().to(pixels.dtype)
    share = pixels[3:] / white
    mixed = share * pixels[:3] + (1 - share) * white
    return mixed.astype(pixels.dtype) if pixels.dtype.kind == "f" else np.round(mixed).astype(pixels.dtype)

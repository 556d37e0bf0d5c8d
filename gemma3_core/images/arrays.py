"""Arrays and tensors that hold pictures -> channels first, RGB, in numbers that both back ends work with."""

from typing import Any

import numpy as np
import torch

from gemma3_core.errors import ImageError
from gemma3_core.images.limits import ImageLimits, check_pixels
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

    Whole numbers are levels from 0 to 255 (16 bits are scaled to 8). Floats keep their values, with one exception:
    colors from 0 to 1 under `do_rescale` become levels, because rescaling them again would turn every picture black.
    Raises ImageError for arrays that are not pictures.
    """
    pixels = channels_first(array, config.input_data_format)
    check_pixels(pixels.shape[-1], pixels.shape[-2], limits)
    if not _is_float(pixels):
        return _rgb(_integers(pixels), white=255.0) if config.do_convert_rgb else _integers(pixels)
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"The array's values go from {low:g} to {high:g}; colors are finite numbers.")
    if config.do_rescale and low >= 0.0 and high <= 1.0:
        pixels = pixels * 255.0
    return _rgb(pixels, white=255.0 if config.do_rescale else 1.0) if config.do_convert_rgb else pixels


def channels_first(array: Any, order: str | None = None) -> Any:
    """-> [C, H, W]. Where both ends could be channels, the first is, as in the reference. Raises ImageError."""
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


def as_8_bit(values: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 over 257, bool to 0 and 255, floats from 0 to 1 times 255. Raises ImageError."""
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An array of {values.dtype} is no picture; give 8-bit numbers, or floats from 0 to 1.")
    low, high = float(values.min()), float(values.max())
    limit = 1.0 if values.dtype.kind == "f" and high <= 1.0 else 255.0
    if not (low >= 0.0 and high <= limit):  # also for NaN
        raise ImageError(f"The array's values go from {low:g} to {high:g}; 0 to 1 (floats) or 0 to 255 is expected.")
    return np.rint(values * (255.0 / limit)).astype(np.uint8)


def _is_float(pixels: Pixels) -> bool:
    return pixels.is_floating_point() if isinstance(pixels, torch.Tensor) else pixels.dtype.kind == "f"


def _integers(pixels: Pixels) -> Pixels:
    """Whole numbers of any type -> uint8, on the same device."""
    if isinstance(pixels, np.ndarray):
        return as_8_bit(pixels)
    return pixels if pixels.dtype == torch.uint8 else torch.from_numpy(as_8_bit(pixels.cpu().numpy())).to(pixels.device)


def _rgb(pixels: Any, white: float) -> Pixels:
    """Gray three times; transparency on white."""
    is_tensor = isinstance(pixels, torch.Tensor)
    if pixels.shape[0] == 3:
        return pixels
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1) if is_tensor else np.repeat(pixels, 3, axis=0)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > white:
        raise ImageError(f"An array with transparency must hold 0 to {white:g}, got {low:g} to {high:g}.")
    opacity = (pixels[3:].double() if is_tensor else pixels[3:]) / white
    blended = opacity * pixels[:3] + (1 - opacity) * white
    if not _is_float(pixels):
        blended = blended.round()
    return blended.to(pixels.dtype) if is_tensor else blended.astype(pixels.dtype)

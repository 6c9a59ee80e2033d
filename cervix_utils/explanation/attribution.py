"""Where a network's answer comes from: Integrated Gradients, Grad-CAM and occlusion, by captum."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor, nn
from torchvision.transforms import Normalize
from torchvision.transforms.functional import gaussian_blur

from cervix_utils.data.images import BACKGROUND
from cervix_utils.training import losses, networks

BASELINES = ["white", "background", "blurred"]
LAYERS = ["layer4", "features", "trunk_output"]  # where torchvision's convolutions end
BATCH, MOST = 32, 512  # images in one pass, points on the way of an image
Function = Callable[[Tensor], Tensor]


class AttributionError(ValueError):
    """A map cannot be made or makes no sense; the message says which input, and what is needed."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Computes in float32 whatever the caller has set: a GPU takes TF32 unasked in cuDNN.

    Maps were off by 15 % with TF32. Also switches off an autocast that an interrupted cell left on.
    """
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    whole = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with whole, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        matmul.fp32_precision = before


def to_float(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 (n, 3, s, s) -> float32 in 0..1, not yet normalised."""
    return torch.from_numpy(images).to(device).float() / 255


class FromPixels(nn.Module):
    """A network that takes RGB in 0..1: it normalises, so that a white baseline is really white.

    Answers with outputs (n, k), or with the severity score (n,) of ``grades`` classes, regressed or
    expected (paper H, section 4). For evaluation alone: batch norms are folded, nothing is trained.
    """

    def __init__(self, model: nn.Module, mean: list[float], std: list[float], grades: int = 0):
        super().__init__()
        self.model = networks.fold_batch_norms(model).requires_grad_(False)
        self.normalize, self.grades = Normalize(mean, std), grades

    def forward(self, pixels: Tensor) -> Tensor:
        inputs = self.normalize(pixels)
        outputs = self.model(inputs.contiguous(memory_format=torch.channels_last))
        return losses.score(outputs) if self.grades else outputs


def baseline(kind: str, pixels: Tensor, masks=None) -> Tensor:
    """Starting images (n, 3, s, s) in 0..1 for ``pixels`` of that shape, of one of BASELINES.

    ``white`` (paper H), ``background`` (mean colour of each cell's own background, index 4 of its
    ``masks`` (n, s, s); the median of the picture's edge where a mask has none), ``blurred``.
    AttributionError for another kind.
    """
    if kind == "white":
        return torch.ones_like(pixels)
    if kind == "blurred":
        side = pixels.shape[-1]
        return gaussian_blur(pixels, side // 4 * 2 + 1, side / 10)
    if kind == "background":
        return _background(pixels, masks)[:, :, None, None].expand_as(pixels)
    raise AttributionError(f"unknown baseline '{kind}': known are {', '.join(BASELINES)}")


def _background(pixels: Tensor, masks: np.ndarray) -> Tensor:
    """Colour (n, 3) of the background of each image."""
    inside = torch.from_numpy(masks == BACKGROUND).to(pixels)[:, None]
    colour = (pixels * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
    rows, columns = pixels[..., [0, -1], :].flatten(2), pixels[..., [0, -1]].flatten(2)
    edge = torch.cat([rows, columns], dim=2).median(dim=2).values
    return torch.where(inside.any(dim=(2, 3)), colour, edge)


def _layer(network: FromPixels) -> nn.Module:
    """The layer that Grad-CAM looks at, one of LAYERS; AttributionError where there is none."""
    layers = dict(network.model.named_children())
    if found := [layers[name] for name in LAYERS if name in layers]:
        return found[0]
    words = f"Grad-CAM needs a network with a layer called {' or '.join(LAYERS)}"
    raise AttributionError(f"{words}; this one has: {', '.join(layers) or 'none'}")


@full_float32()
def grad_cam(network: FromPixels, pixels: Tensor, target=None) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017) of outputs (``target``: int64 (n,)) or a severity score.

    Returns (n, s, s): evidence for it (ReLU), one value a cell of the layer's grid (a 32nd of the
    picture's side in a ResNet), scaled up and smoothed.
    """
    cam = LayerGradCam(network, _layer(network))
    inputs = pixels.detach().requires_grad_()
    maps = cam.attribute(inputs, target=target, relu_attributions=True)
    maps = nn.functional.interpolate(maps, pixels.shape[-2:], mode="bilinear")
    return maps[:, 0].detach().cpu().numpy()


@full_float32()
@torch.no_grad()
def occlusion(function: Function, pixels: Tensor, start: Tensor, target=None) -> np.ndarray:
    """Fall of ``function`` when a square shows ``start`` instead (Zeiler and Fergus 2014).

    Squares of an eighth of the side overlap by half; a pixel has the mean of those over it:
    (n, s, s) in units of the function.
    """
    side = max(pixels.shape[-1] // 8, 2)
    window, strides = (3, side, side), (3, side // 2, side // 2)
    maps = Occlusion(function).attribute(pixels, window, strides, start, target, None, 8)
    return maps[:, 0].cpu().numpy()


class Gradients(NamedTuple):
    """Integrated Gradients of n images."""

    maps: np.ndarray  # (n, s, s) in units of the function, summed over colours
    deltas: np.ndarray  # (n,) sum of a map minus the difference that it explains
    steps: np.ndarray  # (n,) points on the way of each image


@full_float32()
def integrated_gradients(
    function: Function, pixels: Tensor, start: Tensor, steps=16, bound=np.inf
) -> Gradients:
    """Integrated Gradients (Sundararajan et al. 2017) from ``start`` to ``pixels``.

    The way is cut into segments of two points of Gauss and Legendre, ``steps`` points at first,
    each integrated by captum. What a segment's sum lacks to the difference of the function over it
    is its own delta. In every image whose delta, or root of the summed squares of its segments'
    deltas (for errors that cancel), is above ``bound``, the segments with at least half of the
    largest delta are halved, until both are below or MOST points are used.

    Raises AttributionError for gradients that are not finite.
    """
    images = zip(pixels.split(1), start.split(1), strict=True)
    parts = [_refined(function, *image, steps, bound) for image in images]
    result = Gradients(*map(np.stack, zip(*parts)))
    if len(damaged := np.flatnonzero(~np.isfinite(result.deltas))):
        words = f"the gradients of image {damaged[0]} are not finite"
        raise AttributionError(f"{words}: the network or the image is damaged")
    return result


def smoothed_gradients(function: Function, pixels: Tensor, start: Tensor) -> np.ndarray:
    """Integrated Gradients averaged over 5 copies of ``pixels`` with noise of the spread 0.1
    (SmoothGrad, Smilkov et al. 2017): (n, s, s) in units of the function."""
    draw = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(5, *pixels.shape, generator=draw).to(pixels)
    maps = [integrated_gradients(function, pixels + each, start, 32).maps for each in noise]
    return np.mean(maps, axis=0)


@full_float32()
@torch.no_grad()
def answers(function: Function, pixels: Tensor, target: Tensor | None = None) -> np.ndarray:
    """``function`` (n,), or its output ``target`` (n,), for many images, BATCH at a time."""
    values = torch.cat([function(batch) for batch in pixels.split(BATCH)])
    if target is not None:
        values = values.gather(1, target[:, None])[:, 0]
    return values.cpu().numpy()


def _refined(function: Function, pixels: Tensor, start: Tensor, steps: int, bound: float):
    """(map (s, s), delta, points) of one image (1, 3, s, s): segments of its way, from low to high
    (n,) in 0..1, are halved where they fall short."""
    edges = np.linspace(0, 1, max(steps // 2, 1) + 1)
    low, high = edges[:-1], edges[1:]
    maps, errors = _segments(function, pixels, start, low, high)
    while (cut := _to_halve(errors, bound)).any():
        middle = (low[cut] + high[cut]) / 2
        halves = np.append(low[cut], middle), np.append(middle, high[cut])
        low, high = (np.append(old[~cut], new) for old, new in zip((low, high), halves))
        made = _segments(function, pixels, start, *halves)
        maps, errors = (np.concatenate([a[~cut], b]) for a, b in zip((maps, errors), made))
    return maps.sum(axis=0), errors.sum(), 2 * len(errors)


def _segments(function: Function, pixels: Tensor, start: Tensor, low, high) -> list[np.ndarray]:
    """Maps (n, s, s) of the segments ``low`` to ``high`` (n,) of the way of one image; what their
    sums have more than the change of the function."""
    places, ends = np.unique([high, low], return_inverse=True)
    way = start + torch.tensor(places).to(pixels).view(-1, 1, 1, 1) * (pixels - start)
    values, captum, maps = answers(function, way).astype(float), IntegratedGradients(function), []
    for segments in torch.tensor(ends).split(BATCH // 2, dim=1):
        colours = captum.attribute(*way[segments], n_steps=2)  # of Gauss and Legendre
        maps.append(colours.sum(dim=1).detach().cpu().numpy())
    maps = np.concatenate(maps)
    return [maps, maps.sum(axis=(1, 2), dtype=float) - (values[ends[0]] - values[ends[1]])]


def _to_halve(errors: np.ndarray, bound: float) -> np.ndarray:
    """Which segments are halved next; none where the image has converged or has MOST points."""
    too_far = max(abs(errors.sum()), np.sqrt((errors**2).sum())) > bound
    cut = too_far & (2 * np.abs(errors) >= np.abs(errors).max())
    return cut & (2 * (len(errors) + cut.sum()) <= MOST)

"""Where a network's answer comes from: Integrated Gradients, Grad-CAM and occlusion, by captum."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from captum.attr import GuidedGradCam, IntegratedGradients, LayerGradCam, NoiseTunnel, Occlusion
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from cervix_utils.data.images import BACKGROUND
from cervix_utils.training import losses, networks

BASELINES = ["white", "background", "mean", "blurred"]
LAYERS = ["layer4", "features", "trunk_output"]  # where torchvision's convolutions end
TOGETHER, BATCH, MOST = 8, 32, 512  # images refined at once, images in one pass, points an image
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
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.grades = grades
        self.to(next(model.parameters()).device)

    def forward(self, pixels: Tensor) -> Tensor:
        inputs = (pixels - self.mean) / self.std
        outputs = self.model(inputs.contiguous(memory_format=torch.channels_last))
        return losses.score(outputs) if self.grades else outputs


def baseline(kind: str, pixels: Tensor, masks=None, mean=None) -> Tensor:
    """Starting images (n, 3, s, s) in 0..1 for ``pixels`` of that shape, of one of BASELINES.

    ``white`` (paper H), ``background`` (mean colour of each cell's own background, index 4 of its
    ``masks`` (n, s, s); the median of the picture's edge where a mask has none), ``mean`` (the
    mean training picture, a tensor (3, s, s)), ``blurred``. AttributionError where what it needs is
    missing.
    """
    if kind == "white":
        return torch.ones_like(pixels)
    if kind == "blurred":
        side = pixels.shape[-1]
        return gaussian_blur(pixels, side // 4 * 2 + 1, side / 10)
    if kind == "mean" and mean is not None:
        return mean.to(pixels).expand_as(pixels)
    if kind == "background" and masks is not None:
        return _background(pixels, masks)[:, :, None, None].expand_as(pixels)
    known = "white, background (needs masks), mean (needs a mean picture), blurred"
    raise AttributionError(f"baseline '{kind}' cannot be made: known are {known}")


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
    for name in LAYERS:
        if name in layers:
            return layers[name]
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
def guided_grad_cam(network: FromPixels, pixels: Tensor, target=None) -> np.ndarray:
    """Guided Grad-CAM (Selvaraju et al. 2017, section 3.2) as ``grad_cam``, summed over colours."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks on ReLU cannot see a value that is overwritten
    guided = GuidedGradCam(network, _layer(network))
    inputs = pixels.detach().requires_grad_()
    with warnings.catch_warnings(action="ignore"):  # captum announces its hooks
        maps = guided.attribute(inputs, target=target, interpolate_mode="bilinear")
    return maps.sum(dim=1).detach().cpu().numpy()


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
    largest delta are halved, until both are below or MOST points are used. Segments of 8 images
    share batches of 32.

    Raises AttributionError for a baseline of another shape, or gradients that are not finite.
    """
    if start.shape != pixels.shape:
        shapes = f"the baseline has shape {tuple(start.shape)}, the images {tuple(pixels.shape)}"
        raise AttributionError(f"{shapes}: give one baseline an image")
    parts = []
    for images, origins in zip(pixels.split(TOGETHER), start.split(TOGETHER)):
        ways = _Ways(function, images, origins)
        parts.append(_refined(ways, steps, bound))
    result = Gradients(*map(np.concatenate, zip(*parts)))
    damaged = np.flatnonzero(~np.isfinite(result.deltas))
    if len(damaged):
        words = f"the gradients of image {damaged[0]} are not finite"
        raise AttributionError(f"{words}: the network or the image is damaged")
    return result


@full_float32()
def smoothed_gradients(function: Function, pixels: Tensor, start: Tensor, target=None):
    """Integrated Gradients averaged over 5 copies of ``pixels`` with noise of the spread 0.1, by
    captum (SmoothGrad, Smilkov et al. 2017): (n, s, s) in units of the function."""
    tunnel, maps = NoiseTunnel(IntegratedGradients(function)), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for images, origins in zip(pixels.split(TOGETHER), start.split(TOGETHER)):
            how = {"baselines": origins, "target": target, "internal_batch_size": BATCH}
            colours = tunnel.attribute(images, "smoothgrad", 5, 1, 0.1, n_steps=32, **how)
            maps.append(colours.sum(dim=1).detach().cpu().numpy())
    return np.concatenate(maps)


@full_float32()
@torch.no_grad()
def answers(function: Function, pixels: Tensor, target: Tensor | None = None) -> np.ndarray:
    """``function`` (n,), or its output ``target`` (n,), for many images, BATCH at a time."""
    values = torch.cat([function(batch) for batch in pixels.split(BATCH)])
    if target is not None:
        values = values.gather(1, target[:, None])[:, 0]
    return values.cpu().numpy()


class _Ways(NamedTuple):
    """A function and the straight ways from the baselines to a few images.

    A segment of a way is a row of a table: image (index), low and high (places on the way, 0..1),
    begin and end (the function there); once it is integrated, map (s, s) and error (what the map
    has more than end - begin).
    """

    function: Function
    pixels: Tensor
    start: Tensor

    def at(self, image: pd.Series, place: pd.Series) -> Tensor:
        """The pictures at ``place`` (0..1) on the way of ``image`` (index)."""
        image = torch.tensor(image.to_numpy())
        start, pixels = self.start[image], self.pixels[image]
        place = torch.tensor(place.to_numpy()).to(pixels).view(-1, 1, 1, 1)
        return start + place * (pixels - start)

    def values(self, image: pd.Series, place: pd.Series) -> np.ndarray:
        """The function there."""
        return answers(self.function, self.at(image, place)).astype(float)

    def integrate(self, segments: pd.DataFrame) -> pd.DataFrame:
        """``segments`` with their maps and errors."""
        captum, maps = IntegratedGradients(self.function), []
        for first in range(0, len(segments), BATCH // 2):
            batch = segments.iloc[first : first + BATCH // 2]
            ends = (self.at(batch["image"], batch[place]) for place in ("high", "low"))
            colours = captum.attribute(*ends, n_steps=2)  # of Gauss and Legendre
            maps.append(colours.sum(dim=1).detach().cpu().numpy())
        maps = np.concatenate(maps)
        errors = maps.sum(axis=(1, 2), dtype=float) - (segments["end"] - segments["begin"])
        return segments.assign(map=list(maps), error=errors)


def _refined(ways: _Ways, steps: int, bound: float) -> Gradients:
    """``integrated_gradients`` by segments that are halved where they fall short."""
    edges = np.linspace(0, 1, max(steps // 2, 1) + 1)
    points = pd.MultiIndex.from_product([range(len(ways.pixels)), edges], names=["image", "low"])
    segments = points.to_frame(index=False)
    segments["begin"] = ways.values(segments["image"], segments["low"])
    segments[["high", "end"]] = segments.groupby("image")[["low", "begin"]].shift(-1)
    segments = ways.integrate(segments.dropna(subset="high"))
    while (cut := _to_halve(segments, bound)).any():
        whole = segments[cut]
        middle = (whole["low"] + whole["high"]) / 2
        value = ways.values(whole["image"], middle)
        first, second = whole.assign(high=middle, end=value), whole.assign(low=middle, begin=value)
        halves = ways.integrate(pd.concat([first, second]))
        segments = pd.concat([segments[~cut], halves], ignore_index=True)
    image = segments["image"]
    maps = np.stack(segments["map"].groupby(image).sum())
    return Gradients(maps, np.bincount(image, segments["error"]), 2 * np.bincount(image))


def _to_halve(segments: pd.DataFrame, bound: float) -> pd.Series:
    """Which segments are halved next; none where all images have converged or have MOST points."""
    image, errors = segments["image"], segments["error"]
    deltas, squares = np.bincount(image, errors), np.bincount(image, errors**2)
    too_far = np.maximum(np.abs(deltas), np.sqrt(squares)) > bound
    largest = errors.abs().groupby(image).transform("max")
    cut = too_far[image] & (2 * errors.abs() >= largest)
    points = 2 * np.bincount(image, 1 + cut)
    return cut & (points <= MOST)[image]

"""Integrated Gradients: captum's sums over segments of the way from a baseline, cut finer where they fall short."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from torch.backends import cudnn

from cervix_utils import devices
from cervix_utils.attribution import AttributionError

RULES = {"gausslegendre": "gausslegendre", "trapezoid": "riemann_trapezoid", "literal": ""}  # ours -> captum's name
TOGETHER, BATCH = 8, 32  # images refined at the same time; pictures in one pass


class Gradients(NamedTuple):
    """Integrated Gradients of n images. ``maps`` (n, s, s) in units of the function, summed over colours; ``deltas``
    (n,): sum of a map minus the difference that it explains; ``steps`` (n,): steps that each image took."""

    maps: np.ndarray
    deltas: np.ndarray
    steps: np.ndarray


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    pixels: Tensor,
    start: Tensor,
    steps: int = 16,
    method: str = "gausslegendre",
    bound: float = np.inf,
    most: int = 512,
    precision: str = "float32",
) -> Gradients:
    """Integrated Gradients (Sundararajan et al. 2017) of ``function`` from ``start`` to ``pixels``, in units of it.

    The way is cut into segments of two points each, ``steps`` points at first, and captum integrates each segment. What a
    segment's sum lacks to the difference of the function over it is its own delta, so steps go where the function bends:
    in every image whose delta, or root of the summed squares of its segments' deltas, is above ``bound``, the segments
    with at least half of the largest delta are halved, until both are below or ``most`` points are used. The second
    condition is for deltas that are small because errors cancel. Segments of 8 images share batches of 32.

    Deltas compare with F in float32 whatever the ``precision`` of the gradients. Methods: ``gausslegendre``,
    ``trapezoid``, or ``literal``: the sum printed in paper H section 4, m + 1 points of weight 1/m on the whole way, that
    is the closed trapezoid plus half of both ends; it overshoots by about (m + 1) / m, so no bound applies.
    ``precision`` bf16 is faster, but its rounding stays in the map however many steps are taken (benchmarks/README.md).
    Raises AttributionError for a baseline of another shape, an unknown method, or gradients that are not finite.
    """
    if start.shape != pixels.shape:
        raise AttributionError(
            f"the baseline has shape {tuple(start.shape)}, the images {tuple(pixels.shape)}: give one baseline an image"
        )
    if method not in RULES:
        raise AttributionError(f"unknown method '{method}' of integration: known are {', '.join(RULES)}")
    parts = []
    whole = cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)  # on a GPU cuDNN takes TF32 unasked
    with devices.autocast(pixels.device.type, precision), whole:
        for first in range(0, len(pixels), TOGETHER):
            images, origins = pixels[first : first + TOGETHER], start[first : first + TOGETHER]
            if method == "literal":
                part = _literal(function, images, origins, steps)
            else:
                part = _refined(function, images, origins, steps, method, bound, most)
            if not np.isfinite(part.deltas).all():
                index = first + int(np.flatnonzero(~np.isfinite(part.deltas))[0])
                raise AttributionError(
                    f"the gradients of image {index} are not finite (NaN or infinite): the network or the image is damaged"
                )
            parts.append(part)
    return Gradients(*map(np.concatenate, zip(*parts)))


@torch.no_grad()
def _values(function: Callable[[Tensor], Tensor], pixels: Tensor) -> np.ndarray:
    """The function (n,) in float32 at least, 32 at a time."""
    with torch.autocast(pixels.device.type, enabled=False):
        return torch.cat([function(some) for some in pixels.split(BATCH)]).double().cpu().numpy()


def _refined(
    function: Callable[[Tensor], Tensor],
    pixels: Tensor,
    start: Tensor,
    steps: int,
    method: str,
    bound: float,
    most: int,
) -> Gradients:
    """``integrated_gradients`` of a few images at once, by segments of their ways."""
    ig = IntegratedGradients(function)
    exact = 2.0 if method == "trapezoid" else 1.0  # captum weighs n points 1/n, not 1/(n - 1)

    def at(image: np.ndarray, place: np.ndarray) -> Tensor:
        image, place = torch.from_numpy(image), torch.from_numpy(place).to(pixels).view(-1, 1, 1, 1)
        return start[image] + place * (pixels[image] - start[image])

    def integrate(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        found = [
            ig.attribute(at(i, h), at(i, a), n_steps=2, method=RULES[method]).sum(dim=1).detach().cpu().numpy()
            for i, a, h in zip(
                *(np.split(each, range(BATCH // 2, len(image), BATCH // 2)) for each in (image, low, high))
            )
        ]
        return np.concatenate(found) * exact

    n, pieces = len(pixels), max(steps // 2, 1)
    edges = np.linspace(0, 1, pieces + 1)
    image, low, high = np.repeat(np.arange(n), pieces), np.tile(edges[:-1], n), np.tile(edges[1:], n)
    known = _values(function, at(np.repeat(np.arange(n), pieces + 1), np.tile(edges, n))).reshape(n, -1)
    begin, end, maps = known[:, :-1].ravel(), known[:, 1:].ravel(), integrate(image, low, high)
    while True:
        errors = maps.sum(axis=(1, 2), dtype=float) - (end - begin)
        deltas, squares, points = (np.bincount(image, w, n) for w in (errors, errors**2, np.full(len(image), 2)))
        open_ = np.maximum(np.abs(deltas), np.sqrt(squares)) > bound
        largest = np.zeros(n)
        np.fmax.at(largest, image, np.abs(errors))
        split = open_[image] & (2 * np.abs(errors) >= largest[image])
        split &= (points + 2 * np.bincount(image[split], minlength=n) <= most)[image]
        if not split.any():
            break
        i, a, h = image[split], low[split], high[split]
        middle = (a + h) / 2
        value = _values(function, at(i, middle))
        halves = integrate(np.tile(i, 2), np.concatenate([a, middle]), np.concatenate([middle, h]))
        grown = (
            (image, i, i),
            (low, a, middle),
            (high, middle, h),
            (begin, begin[split], value),
            (end, value, end[split]),
        )
        image, low, high, begin, end = (np.concatenate([old[~split], *fresh]) for old, *fresh in grown)
        maps = np.concatenate([maps[~split], halves])
    whole = np.zeros((n, *maps.shape[1:]), dtype=maps.dtype)
    np.add.at(whole, image, maps)
    return Gradients(whole, deltas, points.astype(int))


def _literal(function: Callable[[Tensor], Tensor], pixels: Tensor, start: Tensor, steps: int) -> Gradients:
    """Paper H's sum, image by image: (x - x') sum_{k=0..m} gradient(x' + k/m (x - x')) / m."""
    maps = []
    for image, origin in zip(pixels.split(1), start.split(1)):
        path = origin + torch.linspace(0, 1, steps + 1, device=image.device).view(-1, 1, 1, 1) * (image - origin)
        total = torch.zeros_like(image)
        for points in path.split(BATCH):
            points = points.detach().requires_grad_()
            total += torch.autograd.grad(function(points).sum(), points)[0].sum(dim=0, keepdim=True)
        maps.append(((image - origin) * total / steps).sum(dim=1).detach().cpu().numpy())
    maps = np.concatenate(maps)
    deltas = maps.sum(axis=(1, 2), dtype=float) - (_values(function, pixels) - _values(function, start))
    return Gradients(maps, deltas, np.full(len(maps), steps))

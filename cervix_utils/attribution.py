"""Where a network's answer comes from: Integrated Gradients, Grad-CAM and second opinions, all computed by captum."""

import copy
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import GuidedGradCam, IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from torch import Tensor, nn

from cervix_utils import devices, losses
from cervix_utils.images import BACKGROUND
from cervix_utils.networks import fold_batch_norms

RULES = {"gausslegendre": "gausslegendre", "trapezoid": "riemann_trapezoid", "literal": ""}  # ours -> captum's name
BASELINES = ["white", "background", "mean", "blurred"]


class AttributionError(ValueError):
    """A map cannot be made or makes no sense; the message says which input, and what is needed."""


class Gradients(NamedTuple):
    """Integrated Gradients of n images. ``maps`` (n, s, s) in units of the function, summed over colours; ``deltas``
    (n,): sum of a map minus the difference that it explains; ``steps`` (n,): steps that each image took."""

    maps: np.ndarray
    deltas: np.ndarray
    steps: np.ndarray


def to_float(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 (n, 3, s, s) -> float32 in 0..1, not yet normalised."""
    return torch.from_numpy(images).to(device).float() / 255


class FromPixels(nn.Module):
    """A network that takes RGB in 0..1: normalisation is part of it, so that a white baseline is really white.

    For evaluation alone: the batch norms of a ResNet are folded, and its parameters ask for no gradient.
    """

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = fold_batch_norms(model).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.to(next(model.parameters()).device)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last))


class Severity(nn.Module):
    """What is explained: pixels (n, 3, s, s) -> severity score (n,), the regressed or the expected one (paper H, section 4)."""

    def __init__(self, network: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return losses.score(self.network(pixels))


def baseline(kind: str, pixels: Tensor, masks: np.ndarray | None = None, mean: Tensor | None = None) -> Tensor:
    """Starting images (n, 3, s, s) in 0..1 for ``pixels`` of that shape.

    ``white`` (paper H), ``background`` (mean colour of each cell's own background, mask index 4; the median of the
    picture's edge where a mask has none), ``mean`` (the picture ``mean`` (3, s, s), of training images), ``blurred``.
    AttributionError where what it needs is missing.
    """
    if kind == "white":
        return torch.ones_like(pixels)
    if kind == "blurred":
        from torchvision.transforms.functional import gaussian_blur  # here: torchvision takes two seconds to import

        side = pixels.shape[-1] // 2 * 2 + 1
        return gaussian_blur(pixels, [side // 4 * 2 + 1] * 2, [pixels.shape[-1] / 10] * 2)
    if kind == "mean" and mean is not None:
        return mean.to(pixels).expand_as(pixels)
    if kind == "background" and masks is not None:
        inside = torch.from_numpy(masks == BACKGROUND).to(pixels)[:, None]
        colour = (pixels * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
        edge = torch.cat([pixels[..., 0], pixels[..., -1], pixels[..., 0, :], pixels[..., -1, :]], dim=2)
        colour = torch.where(inside.any(dim=(2, 3)), colour, edge.median(dim=2).values)
        return colour[:, :, None, None].expand_as(pixels)
    needed = {"mean": "needs a mean picture", "background": "needs masks"}
    unknown = f"is unknown: known are {', '.join(BASELINES)}"
    raise AttributionError(f"baseline '{kind}' {needed.get(kind, unknown)}")


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
    """Integrated Gradients (Sundararajan et al. 2017) of ``function`` from ``start`` to ``pixels``, one image at a time.

    ``steps`` double, up to ``most``, until the absolute delta is at most ``bound`` (units of the function); without a
    bound they stay as given. Deltas compare with F in float32 whatever the ``precision`` of the gradients. Methods:
    ``gausslegendre``, ``trapezoid``, or ``literal``: the sum printed in paper H section 4, m + 1 points of weight 1/m,
    that is the closed trapezoid plus half of both ends; it overshoots by about (m + 1) / m, so no bound applies.
    ``precision`` bf16 is faster, but its rounding stays in the map however many steps are taken (benchmarks/README.md).
    Raises AttributionError for a baseline of another shape, an unknown method, or gradients that are not finite.
    """
    if start.shape != pixels.shape:
        raise AttributionError(
            f"the baseline has shape {tuple(start.shape)}, the images {tuple(pixels.shape)}: give one baseline an image"
        )
    if method not in RULES:
        raise AttributionError(f"unknown method '{method}' of integration: known are {', '.join(RULES)}")
    ig = IntegratedGradients(function)
    found = []
    for index, (image, origin) in enumerate(zip(pixels.split(1), start.split(1))):
        with torch.no_grad():
            change = function(image) - function(origin)
        taken = steps
        while True:
            with devices.autocast(pixels.device.type, precision):
                if method == "literal":
                    given = _literal(function, image, origin, taken)
                else:
                    given = ig.attribute(image, origin, n_steps=taken, method=RULES[method], internal_batch_size=32)
                if method == "trapezoid":
                    given = given * taken / (taken - 1)  # captum weighs its n points 1/n, not 1/(n - 1)
            delta = float(given.sum() - change)
            if not np.isfinite(delta):
                raise AttributionError(
                    f"the gradients of image {index} are not finite (NaN or infinite): the network or the image is damaged"
                )
            if abs(delta) <= bound or 2 * taken > most or method == "literal":
                break
            taken *= 2
        found.append((given.sum(dim=1)[0].detach().cpu().numpy(), delta, taken))
    maps, deltas, used = zip(*found)
    return Gradients(np.stack(maps), np.array(deltas), np.array(used))


def _literal(function: Callable[[Tensor], Tensor], image: Tensor, origin: Tensor, steps: int) -> Tensor:
    """Paper H's sum for one image: (x - x') sum_{k=0..m} gradient(x' + k/m (x - x')) / m, shape of ``image``."""
    path = origin + torch.linspace(0, 1, steps + 1, device=image.device).view(-1, 1, 1, 1) * (image - origin)
    total = torch.zeros_like(image)
    for points in path.split(32):
        points = points.detach().requires_grad_()
        total += torch.autograd.grad(function(points).sum(), points)[0].sum(dim=0, keepdim=True)
    return (image - origin) * total / steps


def _layer(network: FromPixels, name: str) -> nn.Module:
    """The layer of ``network`` that Grad-CAM looks at; AttributionError where it has none of this name."""
    if not hasattr(network.model, name):
        layers = ", ".join(dict(network.model.named_children())) or "none"
        raise AttributionError(
            f"Grad-CAM needs a network with a layer called '{name}' (a torchvision ResNet); this one has: {layers}"
        )
    return getattr(network.model, name)


def grad_cam(
    network: FromPixels,
    pixels: Tensor,
    target: Tensor | None = None,
    positive: bool = True,
    enlarge: str = "bilinear",
    layer: str = "layer4",
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017) of a class ``target`` (n,) or, without one, of the severity score: (n, s, s).

    ``positive`` keeps evidence for it alone (ReLU), as the paper defines it. The map has one value a cell of the
    layer's grid (a 32nd of the picture's side for ``layer4``), scaled up by ``enlarge``: ``nearest`` shows that grid.
    """
    cam = LayerGradCam(network if target is not None else Severity(network), _layer(network, layer))
    maps = cam.attribute(pixels.detach().requires_grad_(), target=target, relu_attributions=positive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LayerAttribution.interpolate(maps, pixels.shape[-2:], enlarge)[:, 0].detach().cpu().numpy()


def guided_grad_cam(
    network: FromPixels, pixels: Tensor, target: Tensor | None = None, layer: str = "layer4"
) -> np.ndarray:
    """Guided Grad-CAM (Selvaraju et al. 2017, section 3.2) as ``grad_cam``, summed over colours: (n, s, s)."""
    _layer(network, layer)
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks on ReLU cannot see a value that is overwritten
    explained = network if target is not None else Severity(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum announces its hooks
        found = GuidedGradCam(explained, getattr(network.model, layer)).attribute(
            pixels.detach().requires_grad_(), target=target, interpolate_mode="bilinear"
        )
    return found.sum(dim=1).detach().cpu().numpy()


def occlusion(
    function: Callable[[Tensor], Tensor], pixels: Tensor, start: Tensor, target: Tensor | None = None
) -> np.ndarray:
    """Fall of ``function`` when a square of an eighth of the side shows ``start`` instead (Zeiler and Fergus 2014).

    Squares overlap by half; a pixel has the mean of those over it: (n, s, s) in units of the function.
    """
    side = max(pixels.shape[-1] // 8, 2)
    with torch.no_grad():
        found = Occlusion(function).attribute(
            pixels, (3, side, side), (3, side // 2, side // 2), start, target=target, perturbations_per_eval=8
        )
    return found[:, 0].detach().cpu().numpy()

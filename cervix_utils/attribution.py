"""Where a network's answer comes from: what is explained, baselines, Grad-CAM and second opinions, computed by captum."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import GuidedGradCam, LayerAttribution, LayerGradCam, Occlusion
from torch import Tensor, nn

from cervix_utils import losses
from cervix_utils.images import BACKGROUND
from cervix_utils.networks import fold_batch_norms

BASELINES = ["white", "background", "mean", "blurred"]


class AttributionError(ValueError):
    """A map cannot be made or makes no sense; the message says which input, and what is needed."""


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

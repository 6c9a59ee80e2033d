"""Where a network's answer comes from: Grad-CAM, Integrated Gradients, and shares of attribution inside masks."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import Tensor, nn

from cervix_utils import devices, losses
from cervix_utils.images import BACKGROUND, CYTOPLASM, NUCLEUS
from cervix_utils.networks import fold_batch_norms

REGIONS = {"nucleus": [NUCLEUS], "cytoplasm": [CYTOPLASM], "background": [BACKGROUND], "unknown": [0, 1]}


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


def severity(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function that Integrated Gradients explains: pixels (n, 3, s, s) -> severity score (n,), paper H section 4."""
    return lambda pixels: losses.score(network(pixels))


def baseline(kind: str, pixels: Tensor, masks: np.ndarray | None = None, mean: Tensor | None = None) -> Tensor:
    """Starting images (n, 3, s, s) in 0..1 for ``pixels`` of that shape.

    ``white`` (paper H), ``background`` (mean colour of each cell's own background, mask index 4), ``mean`` (the
    picture ``mean`` (3, s, s), of training images), ``blurred``. ValueError where what it needs is missing.
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
        return colour[:, :, None, None].expand_as(pixels)
    raise ValueError(f"baseline '{kind}' needs {'a mean picture' if kind == 'mean' else 'masks'}, or is unknown")


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    pixels: Tensor,
    start: Tensor,
    steps: int = 16,
    method: str = "gausslegendre",
    precision: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """Integrated Gradients (Sundararajan et al. 2017) of ``function`` from ``start`` to ``pixels``, one image at a time.

    Returns maps (n, s, s), summed over colours, in units of the function, and deltas (n,): sum of the map minus
    (F(pixels) - F(start)), F in float32 whatever the ``precision`` of the gradients. ``literal`` is the sum printed in
    paper H section 4: m + 1 points of weight 1/m, the closed trapezoid plus half of both ends; it overshoots by about
    (m + 1) / m. ``precision`` bf16 is faster, but its
    rounding stays in the map however many steps are taken (see benchmarks/README.md): float32 is the default.
    """
    ig = IntegratedGradients(function)
    maps, deltas = [], []
    for image, origin in zip(pixels.split(1), start.split(1)):
        with devices.autocast(pixels.device.type, precision):
            if method == "literal":
                found = _literal(function, image, origin, steps)
            else:
                found = ig.attribute(image, origin, n_steps=steps, method=method, internal_batch_size=32)
        with torch.no_grad():
            deltas.append((found.sum() - function(image) + function(origin)).cpu().numpy())
        maps.append(found.sum(dim=1).detach().cpu().numpy())
    return np.concatenate(maps), np.concatenate(deltas)


def _literal(function: Callable[[Tensor], Tensor], image: Tensor, origin: Tensor, steps: int) -> Tensor:
    """Paper H's sum for one image: (x - x') sum_{k=0..m} gradient(x' + k/m (x - x')) / m, shape of ``image``."""
    path = origin + torch.linspace(0, 1, steps + 1, device=image.device).view(-1, 1, 1, 1) * (image - origin)
    total = torch.zeros_like(image)
    for points in path.split(32):
        points = points.detach().requires_grad_()
        total += torch.autograd.grad(function(points).sum(), points)[0].sum(dim=0, keepdim=True)
    return (image - origin) * total / steps


def grad_cam(network: FromPixels, pixels: Tensor, target: Tensor, positive: bool = True) -> np.ndarray:
    """Grad-CAM on ``layer4`` (Selvaraju et al. 2017), scaled up to the images: float (n, s, s), logit units.

    ``target``: class index (n,). ``positive`` keeps evidence for the class alone (ReLU), as the paper defines it.
    """
    if not hasattr(network.model, "layer4"):
        raise ValueError("Grad-CAM needs a network with a layer called 'layer4' (a torchvision ResNet)")
    network.model.layer4.requires_grad_(True)
    cam = LayerGradCam(network, network.model.layer4)
    maps = cam.attribute(pixels, target=target, relu_attributions=positive)
    network.model.layer4.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LayerAttribution.interpolate(maps, pixels.shape[-2:], "bilinear")[:, 0].detach().cpu().numpy()


def mask_shares(maps: np.ndarray, masks: np.ndarray, form: str = "signed", least: float = 1e-3) -> pd.DataFrame:
    """Share of each image's attribution in each region (paper H, equations 1 and 2), beside the share of its area.

    maps: float (n, s, s); masks: palette indices (n, s, s). ``form``: ``signed`` (paper), ``absolute`` or
    ``positive``. Columns: at_<region>, area_<region> (both sum to 1), per_area_<region> (their quotient), ratio
    (nucleus / cytoplasm), usable (False where |total| < ``least`` * sum |map|: signed shares explode there).
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps have shape {maps.shape}, masks {masks.shape}: bring both to the same size")
    values = {"signed": maps, "absolute": np.abs(maps), "positive": np.maximum(maps, 0)}[form].astype(float)
    total, size = values.sum(axis=(1, 2)), np.abs(values).sum(axis=(1, 2))
    table = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for region, codes in REGIONS.items():
            inside = np.isin(masks, codes)
            table[f"at_{region}"] = (values * inside).sum(axis=(1, 2)) / total
            table[f"area_{region}"] = inside.mean(axis=(1, 2))
            table[f"per_area_{region}"] = table[f"at_{region}"] / table[f"area_{region}"]
        table["ratio"] = table["at_nucleus"] / table["at_cytoplasm"]
    return pd.DataFrame(table).assign(usable=(np.abs(total) >= least * size) & (size > 0))


def null_maps(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Maps that know no network, from uint8 pictures (n, 3, s, s): ``uniform``, and ``darkness`` against white."""
    dark = 1 - pixels.astype(np.float32).mean(axis=1) / 255
    return {"uniform": np.ones_like(dark), "darkness": dark}

"""Does a map tell what the network does? Deletion, insertion, infidelity and sensitivity, with a random control."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from torch import Tensor

from cervix_utils import attribution, integration
from cervix_utils.attribution import FromPixels
from cervix_utils.explanations import Cells, Explained

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def curve(function: Function, pixels: Tensor, start: Tensor, order: np.ndarray, points: int = 16) -> np.ndarray:
    """``function`` (n, ``points`` + 1) while pixels turn from ``pixels`` into ``start``, an equal number at a time.

    ``order``: int (n, s * s), the pixels of each image, first to go first. The first column is F(pixels), the last F(start).
    """
    n, side = len(pixels), pixels.shape[-1]
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(side**2)[None], axis=1)
    rank = torch.from_numpy(rank.reshape(n, 1, side, side)).to(pixels.device)
    edges = np.linspace(0, side**2, points + 1).round().astype(int)
    found = [function(torch.where(rank < int(edge), start, pixels)).float().cpu().numpy() for edge in edges]
    return np.stack(found, axis=1)


def deletion_insertion(
    function: Function, pixels: Tensor, start: Tensor, maps: np.ndarray, points: int = 16
) -> dict[str, np.ndarray]:
    """Curves (n, ``points`` + 1) of Petsiuk et al. (2018): ``deletion`` takes the pixels with the largest value of ``maps``
    (n, s, s) away first, ``insertion`` puts them into ``start`` first. Signed: what raises the score goes first."""
    order = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    return {
        "deletion": curve(function, pixels, start, order, points),
        "insertion": curve(function, start, pixels, order, points),
    }


def random_orders(maps: np.ndarray, seed: int) -> np.ndarray:
    """Maps of the shape of ``maps`` whose order of pixels is random: the control of deletion and insertion."""
    return np.random.default_rng(seed).random(maps.shape)


def gains(curves: Mapping[str, np.ndarray], control: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Mean distance of each image's curves from the random control's, in units of the function, positive is better:
    columns ``deletion`` (below the control) and ``insertion`` (above it)."""
    return pd.DataFrame(
        {
            "deletion": (control["deletion"] - curves["deletion"]).mean(axis=1),
            "insertion": (curves["insertion"] - control["insertion"]).mean(axis=1),
        }
    )


def infidelity(
    function: Function, pixels: Tensor, start: Tensor, maps: np.ndarray, samples: int = 10, seed: int = 0
) -> np.ndarray:
    """Infidelity (n,) of Yeh et al. (2019), by captum, 0 is best, in squared units of the function.

    What is compared: the sum of a map over a random square (an eighth to a half of the side), and the fall of the
    function when ``start`` is shown there; each image's map is first scaled so that this fits best (captum's
    ``normalize``), so that methods of different units can be compared. The same squares for every method.
    """
    draw, side = np.random.default_rng(seed), pixels.shape[-1]

    def squares(inputs: Tensor, baselines: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.zeros(inputs.shape, device=inputs.device)
        for one in inside:
            width = int(draw.integers(max(side // 8, 1), side // 2 + 1))
            y, x = draw.integers(0, side - width + 1, 2)
            one[:, y : y + width, x : x + width] = 1
        return inside, torch.where(inside > 0, baselines, inputs)

    spread = torch.from_numpy(maps).to(pixels)[:, None].expand_as(pixels) / 3  # captum sums over colours
    with torch.no_grad():
        found = captum_infidelity(
            function,
            squares,
            pixels,
            spread,
            start,
            n_perturb_samples=samples,
            max_examples_per_batch=min(max(32, len(pixels)), samples * len(pixels)),
            normalize=True,
        )
    return found.cpu().numpy()


def max_sensitivity(
    explain: Callable[[Tensor], np.ndarray], pixels: Tensor, samples: int = 4, seed: int = 0
) -> np.ndarray:
    """Largest relative change (n,) of ``explain(pixels)`` (n, s, s) under noise of at most 0.02 a colour value, by captum
    (Yeh et al. 2019): 0 is a map that does not change."""
    torch.manual_seed(seed)

    def tensors(inputs: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs  # captum gives a tuple first, a tensor then
        return (torch.from_numpy(np.ascontiguousarray(explain(inputs))),)

    found = sensitivity_max(tensors, pixels, perturb_radius=0.02, n_perturb_samples=samples)
    return found.detach().cpu().numpy()


def sensitivities(
    network: FromPixels, cells: Cells, explained: Iterable[Explained], steps: int
) -> dict[str, np.ndarray]:
    """``max_sensitivity`` (n,) of each method of ``explained`` (name -> values) on ``cells``; Integrated Gradients with a
    fixed number of ``steps``. Occlusion is left out: it takes hundreds of passes an image and sample of noise. So is the
    average over baselines, which has no baseline of its own."""
    score, found = attribution.Severity(network), {}
    methods = {
        "grad_cam": lambda x, start: attribution.grad_cam(network, x),
        "guided_grad_cam": lambda x, start: attribution.guided_grad_cam(network, x),
        "integrated_gradients": lambda x, start: integration.integrated_gradients(score, x, start, steps).maps,
    }
    for one in explained:
        if one.method in methods and one.baseline in ("", *attribution.BASELINES):
            starts = cells.baseline(one.baseline or "white").split(1)
            explain = methods[one.method]
            found[one.name] = np.concatenate(
                [
                    max_sensitivity(lambda x, s=start: explain(x, s.expand_as(x)), image, seed=index)  # noqa: B023
                    for index, (image, start) in enumerate(zip(cells.pixels.split(1), starts))
                ]
            )
    return found


def measure(
    network: FromPixels, cells: Cells, explained: Sequence[Explained], baseline: str, steps: int, seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, pd.DataFrame]]:
    """(curves, measures) of every method on the same ``cells``, pixels being replaced by their ``baseline`` image.

    curves: ``deletion`` and ``insertion`` -> method -> (n, points + 1), the last method being a random order. measures:
    method -> one row an image: deletion, insertion (``gains``), infidelity, max_sensitivity (NaN where not measured).
    """
    score, pixels, start = attribution.Severity(network), cells.pixels, cells.baseline(baseline)
    maps = {one.name: one.on(cells).maps for one in explained}
    maps["random order"] = random_orders(next(iter(maps.values())), seed)
    drawn = {name: deletion_insertion(score, pixels, start, values) for name, values in maps.items()}
    moved, measures = sensitivities(network, cells, explained, steps), {}
    for name, values in maps.items():
        measures[name] = gains(drawn[name], drawn["random order"]).assign(
            infidelity=infidelity(score, pixels, start, values, seed=seed), max_sensitivity=moved.get(name, np.nan)
        )
    return {way: {name: both[way] for name, both in drawn.items()} for way in ("deletion", "insertion")}, measures

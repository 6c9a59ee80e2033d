"""Which parts of a photograph speak for its cervix type: maps of notebook 2's network (paper C, Fig. 6)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cervix_utils import attribution, datasets, images, metrics, runs


@dataclass(frozen=True)
class Pictured:
    """Photographs named rightly: ``table`` (id, label), uint8 ``pictures`` (n, 3, s, s), method -> ``maps`` (n, s, s)."""

    name: str
    table: pd.DataFrame
    pictures: np.ndarray
    maps: dict[str, np.ndarray]

    def middle(self) -> pd.DataFrame:
        """Share of the positive evidence in the middle quarter of the picture, an even map: 0.25. Rows: methods.

        NaN where no map of a method has any."""
        rows = {}
        for method, maps in self.maps.items():
            side = maps.shape[1] // 4
            evidence = np.maximum(maps, 0)
            total = evidence.sum(axis=(1, 2))
            share = evidence[:, side:-side, side:-side].sum(axis=(1, 2))[total > 0] / total[total > 0]
            mean, lowest, highest = [share.mean(), share.min(), share.max()] if len(share) else [np.nan] * 3
            rows[method] = {"images": len(share), "mean": mean, "lowest": lowest, "highest": highest}
        return pd.DataFrame.from_dict(rows, orient="index")


def explain(folder: Path, data_root: str, seed: int, device: str, grid: bool = False, most: int = 8) -> Pictured:
    """Grad-CAM, Guided Grad-CAM and occlusion of the run in ``folder`` for the type it names.

    On the first ``most`` rightly named test photographs of each type. ``grid``: Grad-CAM's coarse grid stays visible.
    Raises AttributionError where it names none rightly or the data lack its test images.
    """
    run = runs.read(folder)
    table, _ = datasets.load(data_root, "colposcopy", seed)
    right = run.test[metrics.true_class(run.test) == metrics.predicted_class(run.test)]
    chosen = right.groupby("label").head(most)[["id", "label"]].merge(table[["id", "path"]], on="id")
    if chosen.empty:
        raise attribution.AttributionError(
            f"{run.name}: no rightly named test photograph is in {data_root}: give the data that it was trained on"
        )
    chosen = chosen.sort_values("label", kind="stable", ignore_index=True)
    pictures = images.squares(chosen["path"], run.recipe["image_size"])
    network = attribution.FromPixels(runs.load_model(run, device), run.recipe["mean"], run.recipe["std"])
    pixels = attribution.to_float(pictures, device)
    target = torch.tensor([datasets.COLPOSCOPY_CLASSES.index(name) for name in chosen["label"]], device=device)
    maps = {
        "grad_cam": attribution.grad_cam(network, pixels, target, enlarge="nearest" if grid else "bilinear"),
        "guided_grad_cam": attribution.guided_grad_cam(network, pixels, target),
        "occlusion": attribution.occlusion(network, pixels, attribution.baseline("blurred", pixels), target),
    }
    return Pictured(run.name, chosen[["id", "label"]], pictures, maps)

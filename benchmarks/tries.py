"""What generalises to slides never seen? Cheap tries on the training part of one grouped fold, never on its test part.

    .venv/bin/python -m benchmarks.tries NAME DATA WEIGHTS [key=value ...]     # keys: the fields of Try

A ResNet-18 (``WEIGHTS``: its state dict) is trained with paper H's combined loss on three quarters of the images that are
not in the test part of Herlev's grouped fold 0, whole groups apart, and scored on the fourth, four times over: every image
is predicted once by a network that saw no relative of it. One line is added to reports/published/tries.csv. A try that
pays becomes a parameter of the package; the others stay here, with what they gave.
"""

import csv
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torchvision.models import resnet18

from cervix_utils import datasets, devices, images, losses, metrics, networks, paths, recipes, splits
from cervix_utils.references import as_predictions

PRECISION = devices.pick_device("cpu")[1]
SHOWN = ["accuracy", "binary_accuracy", "mse", "kappa_quadratic", "auc_mean", "log_loss"]


@dataclass(frozen=True)
class Try:
    """One try. ``views``: comma-separated windows in original pixels about the middle (n128: about the nucleus; 0: whole)."""

    views: str = "0"
    size: int = 96
    epochs: int = 12
    batch: int = 32
    lr: float = 1e-3
    regression_weight: float = 1.0
    stain: float = 0.0  # spread of the log gain of each colour's optical density
    saturation: float = 0.0
    white: int = 0  # 1: every image divided by its border colour
    mask: str = "none"  # blank: background filled; channels: nucleus and cytoplasm as two more channels
    auxiliary: float = 0.0  # weight of a second task: shares of nucleus and cytoplasm in each cell of layer3's grid
    mixup: float = 0.0  # Beta(a, a)
    average: float = 0.0  # decay of an exponential moving average of the weights
    soft: float = 0.0  # targets softmax(-|k - y| / soft)
    seed: int = 0


def read(row: pd.Series, view: str, one: Try) -> tuple[np.ndarray, np.ndarray]:
    """(RGB, mask indices) of one image in one view, (size, size[, 3]) uint8."""
    image, mask = images.open_image(row["path"]), images.open_mask(row["mask"])
    fill = images.border_colour(image)
    if one.white:
        pixels = np.clip(np.asarray(image) / np.maximum(fill, 1) * 200.0, 0, 255)
        image, fill = Image.fromarray(pixels.astype(np.uint8)), (200, 200, 200)
    if one.mask == "blank":
        pixels = np.array(image)
        pixels[np.asarray(mask) == images.BACKGROUND] = fill
        image = Image.fromarray(pixels)
    window = int(view.strip("n"))
    if view.startswith("n"):  # centred on the nucleus: shift it to the middle of a canvas
        y, x = (int(values.mean()) for values in np.nonzero(np.asarray(mask) == images.NUCLEUS))
        box = (x - window // 2, y - window // 2, x - window // 2 + window, y - window // 2 + window)
        canvas = Image.new("RGB", (window, window), fill), Image.new("L", (window, window), images.BACKGROUND)
        for new, old in zip(canvas, (image, mask)):
            new.paste(old, (-box[0], -box[1]))
        image, mask = canvas
    shape = one.size, window
    return (
        images.frame(image, *shape, fill, Image.Resampling.BILINEAR),
        images.frame(mask, *shape, images.BACKGROUND, Image.Resampling.NEAREST),
    )


def augment(x: Tensor, mask: Tensor, one: Try, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotation, flip and zoom (1.2) in one resampling, lighting, colours; ``x`` in 0..1, (n, 3, h, w)."""
    n = len(x)
    uniform = lambda *shape: torch.rand(n, *shape, generator=draw) * 2 - 1  # noqa: E731
    angle, scale = uniform() * torch.pi, 1.2 ** uniform()
    flip = torch.where(uniform() < 0, -1.0, 1.0)
    turn = torch.stack([scale * angle.cos() * flip, -scale * angle.sin(), 0 * angle], 1)
    turn = torch.stack([turn, torch.stack([scale * angle.sin() * flip, scale * angle.cos(), 0 * angle], 1)], 1)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    mask = F.grid_sample(mask[:, None].float(), grid, "nearest", "border", align_corners=False)[:, 0]
    brightness, contrast = torch.logit(0.5 + 0.1 * uniform(1, 1, 1)), 1.25 ** uniform(1, 1, 1)
    x = torch.sigmoid((torch.logit(x.clamp(1e-3, 1 - 1e-3)) + brightness) * contrast)
    if one.stain:
        normal = torch.randn(2, n, 3, 1, 1, generator=draw)
        x = torch.exp(x.clamp(1e-2, 1).log() * (one.stain * normal[0]).exp() - 0.15 * one.stain * normal[1]).clamp(0, 1)
    if one.saturation:
        grey = x.mean(1, keepdim=True)
        x = (grey + (x - grey) * (1 + one.saturation * uniform(1, 1, 1))).clamp(0, 1)
    return x, mask


def inputs(x: Tensor, mask: Tensor, one: Try) -> Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (recipes.Recipe.mean, recipes.Recipe.std))
    x = (x - mean) / std
    if one.mask == "channels":
        x = torch.cat([x, *((mask[:, None] == code).float() for code in (images.NUCLEUS, images.CYTOPLASM))], 1)
    return x.contiguous(memory_format=torch.channels_last)


def network(weights: str, channels: int) -> nn.Module:
    model = resnet18()
    model.load_state_dict(networks.read_weights(weights))
    if channels > 3:
        old = model.conv1.weight.data
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        model.conv1.weight.data[:, :3] = old
        model.conv1.weight.data[:, 3:] *= 0.3
    model.fc = nn.Linear(model.fc.in_features, 5)
    return model.to(memory_format=torch.channels_last)


def auxiliary_loss(features: Tensor, mask: Tensor, head: nn.Module) -> Tensor:
    """Cross-entropy of the shares of nucleus, cytoplasm and the rest in each cell of ``features``' grid (n, c, h, w)."""
    kinds = torch.stack([mask == images.NUCLEUS, mask == images.CYTOPLASM], 1).float()
    shares = F.adaptive_avg_pool2d(kinds, features.shape[-2:])
    return F.cross_entropy(head(features).float(), torch.cat([shares, 1 - shares.sum(1, keepdim=True)], 1))


def train(x: Tensor, masks: Tensor, y: Tensor, rows: np.ndarray, one: Try, weights: str, seed: int) -> nn.Module:
    """A network trained on some ``rows`` of ``x`` (n, n_views, 3, h, w) uint8."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    model, second, seen = network(weights, 5 if one.mask == "channels" else 3).train(), nn.Conv2d(256, 3, 1), {}
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    groups = [{"params": body}, {"params": [*model.fc.parameters(), *second.parameters()]}]
    hook = model.layer3.register_forward_hook(lambda module, given, out: seen.update(layer3=out))
    optimiser = torch.optim.AdamW(groups, lr=one.lr, weight_decay=0.01, fused=True)
    steps = one.epochs * (len(rows) // one.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [one.lr, 10 * one.lr], total_steps=steps, pct_start=0.25)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(one.average), use_buffers=True
    )
    severity = torch.arange(1, 6).float()
    for _ in range(one.epochs):
        order = rows[torch.randperm(len(rows), generator=draw).numpy()]
        for start in range(0, len(rows) - one.batch + 1, one.batch):
            index = order[start : start + one.batch]
            view = int(torch.randint(x.shape[1], (1,), generator=draw))
            pixels, mask = augment(x[index, view].float() / 255, masks[index, view], one, draw)
            pixels, target = inputs(pixels, mask, one), F.one_hot(y[index], 5).float()
            if one.soft:
                target = torch.softmax(-(severity - 1 - y[index][:, None]).abs() / one.soft, 1)
            if one.mixup:
                share = np.random.default_rng(int(torch.randint(1 << 30, (1,), generator=draw))).beta(
                    one.mixup, one.mixup
                )
                other = torch.randperm(len(pixels), generator=draw)
                pixels, target = (
                    share * pixels + (1 - share) * pixels[other],
                    share * target + (1 - share) * target[other],
                )
            with devices.autocast("cpu", PRECISION):
                out = model(pixels).float()
            wanted = target @ severity if one.mixup else y[index] + 1.0
            loss = F.cross_entropy(out, target) + one.regression_weight * F.mse_loss(losses.score(out), wanted)
            if one.auxiliary:
                loss = loss + one.auxiliary * auxiliary_loss(seen["layer3"], mask, second)
            loss.backward()
            optimiser.step(), schedule.step(), optimiser.zero_grad()
            if one.average:
                averaged.update_parameters(model)
    hook.remove()
    return (averaged.module if one.average else model).eval()


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor, masks: Tensor, one: Try) -> np.ndarray:
    """Probabilities (n, 5), averaged over views and four flips."""
    found = []
    for view in range(x.shape[1]):
        for flip in ((), (2,), (1,), (1, 2)):
            pixels, mask = (value.flip([d - 3 for d in flip]) for value in (x[:, view].float() / 255, masks[:, view]))
            with devices.autocast("cpu", PRECISION):
                found.append(losses.probabilities(model(inputs(pixels, mask, one)), 5))
    return torch.stack(found).mean(0).numpy()


def main(name: str, data: str, weights: str, *given: str) -> None:
    kinds = {field.name: field.type for field in fields(Try)}
    one = Try(**{key: kinds[key](value) for key, value in (pair.split("=") for pair in given)})
    start = time.perf_counter()
    cells = splits.with_groups(datasets.load(data, "herlev")[0], 8)
    split = splits.assign_parts(cells, "herlev", "grouped", 0, 4, 0.15, 0)
    table = split[split["part"] != "test"].reset_index(drop=True)
    pairs = [[read(row, view, one) for view in one.views.split(",")] for _, row in table.iterrows()]
    x = torch.from_numpy(np.stack([[rgb for rgb, _ in views] for views in pairs])).permute(0, 1, 4, 2, 3)
    masks = torch.from_numpy(np.stack([[mask for _, mask in views] for views in pairs])).long()
    y = torch.from_numpy(table["severity"].to_numpy() - 1)
    values = np.zeros((len(table), 5))
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0).split(y, y, table["group"])
    for fold, (rows, held_out) in enumerate(folds):
        model = train(x, masks, y, rows, one, weights, one.seed + fold)
        values[held_out] = predict(model, x[held_out], masks[held_out], one)
    found = metrics.measure(as_predictions(table, values, "herlev"), "herlev")
    line = {"try": name, **asdict(one), **{key: f"{found[key][0]:.3f}" for key in SHOWN}}
    line["seconds"] = round(time.perf_counter() - start)
    file = paths.reports_dir("published") / "tries.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with Path(file).open("a", newline="") as handle:
        writer = csv.DictWriter(handle, line)
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(line, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

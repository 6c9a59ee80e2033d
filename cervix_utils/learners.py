"""Table + recipe -> fastai Learner: ResNet-50 with paper C's head, ResNet-101 with the three pipelines of paper H."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from fastai.callback.data import WeightedDL
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorImage, params, set_seed
from fastai.vision.augment import RandTransform, aug_transforms
from torch import Tensor, nn

from cervix_utils import decoded, losses, networks
from cervix_utils.recipes import Recipe


class Squares:
    """One part of a split: pictures in the cache of decoded ones, and class indices (int64)."""

    def __init__(self, split: pd.DataFrame, part: str, classes: list[str], pictures: decoded.Decoded):
        self.pictures, self.rows = pictures, np.flatnonzero(split["part"] == part)
        self.split_idx = 0 if part == "train" else 1  # fastai augments where this is 0
        codes = pd.Categorical(split["label"].iloc[self.rows], categories=classes).codes
        self.targets = torch.from_numpy(codes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[TensorImage, Tensor]:
        pictures, targets = self.batch([index])
        return pictures[0], targets[0]

    def batch(self, indices: list[int]) -> tuple[TensorImage, Tensor]:
        """(uint8 (n, 3, size, size) in channels_last, class indices (n,)): a whole batch is read at once."""
        return TensorImage(torch.from_numpy(self.pictures[self.rows[indices]])), self.targets[indices]


def body_and_head(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two parameter groups for discriminative learning rates: all but ``fc``, and ``fc``."""
    return [[p for child in list(model.children())[:-1] for p in params(child)], params(model.fc)]


class Stain(RandTransform):
    """Another stain and exposure for every training image: each colour's optical density -log x times exp(spread z),
    plus 0.15 spread z' (z standard normal), as slides differ (after Tellez et al. 2019, on RGB). x in 0..1."""

    order = 50  # after lighting, before normalisation

    def __init__(self, spread: float):
        super().__init__()
        self.spread = spread

    def encodes(self, x: TensorImage) -> TensorImage:
        gain, shift = torch.randn(2, len(x), 3, 1, 1, device=x.device)
        density = -x.clamp(0.01, 1).log() * (self.spread * gain).exp() + 0.15 * self.spread * shift
        return (-density).exp().clamp(0, 1)


def augmentations(recipe: Recipe) -> list:
    """fastai batch transforms of the recipe's augmentation; one resampling, edges continued, lighting in logit space."""
    stain = [Stain(recipe.stain)] if recipe.stain else []
    if recipe.flip == "none" and not (recipe.rotate or recipe.lighting) and recipe.zoom == 1:
        return stain
    return stain + aug_transforms(
        do_flip=recipe.flip != "none",
        flip_vert=recipe.flip == "both",
        max_rotate=recipe.rotate,
        max_zoom=recipe.zoom,
        max_lighting=recipe.lighting,
        max_warp=0.0,
        pad_mode="border",
        p_affine=1.0,
    )


def dataloaders(split: pd.DataFrame, recipe: Recipe, device: torch.device) -> DataLoaders:
    """Training batches shuffled and augmented, validation batches as they are; both normalised, on ``device``.

    Balanced: training images are drawn with replacement, every class as often as any other.
    """
    normalize = Normalize.from_stats(recipe.mean, recipe.std, cuda=False)
    normalize.mean, normalize.std = normalize.mean.to(device), normalize.std.to(device)
    pictures = decoded.open_squares(split, recipe.image_size, recipe.window)
    data = {part: Squares(split, part, recipe.classes, pictures) for part in ("train", "valid")}
    often = 1 / data["train"].targets.bincount()[data["train"].targets]
    kind = {"train": partial(WeightedDL, wgts=often.numpy()) if recipe.balanced else TfmdDL, "valid": TfmdDL}
    loaders = [
        kind[part](
            data[part],
            bs=min(recipe.batch_size, len(data[part])),
            shuffle=part == "train",
            drop_last=part == "train",  # batch statistics of a last batch of one image are noise
            num_workers=0,
            device=device,
            create_item=lambda index: index or 0,  # batches are read whole (None: fastai asks for any)
            create_batch=data[part].batch,
            retain=lambda batch, _: batch,
            after_batch=[IntToFloatTensor(), *(augmentations(recipe) if part == "train" else []), normalize],
        )
        for part in data
    ]
    return DataLoaders(*loaders, device=device)


def optimiser(recipe: Recipe) -> Callable[..., OptimWrapper]:
    """PyTorch's fused SGD or AdamW under fastai's interface: on a CPU several times faster than fastai's own."""
    options = {"momentum": recipe.momentum} if recipe.optimiser == "sgd" else {"betas": (recipe.momentum, 0.99)}
    kind = torch.optim.SGD if recipe.optimiser == "sgd" else torch.optim.AdamW
    return partial(OptimWrapper, opt=kind, fused=True, weight_decay=recipe.weight_decay, **options)


def build(split: pd.DataFrame, recipe: Recipe, device: str = "cpu") -> Learner:
    """The fastai Learner of a recipe, untrained, on a table with a ``part`` column (see ``splits.assign_parts``)."""
    set_seed(recipe.seed, reproducible=True)
    state = networks.initial_state(recipe.weights, recipe.architecture)
    k = len(recipe.classes)
    model = networks.network(recipe.architecture, recipe.head, losses.n_outputs(recipe.pipeline, k), state)
    return Learner(
        dataloaders(split, recipe, torch.device(device)),
        model.to(device),
        loss_func=losses.loss_of(recipe.pipeline, recipe.regression_weight, k),
        opt_func=optimiser(recipe),
        splitter=body_and_head,
        metrics=partial(losses.accuracy, n_classes=k),
    )

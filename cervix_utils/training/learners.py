"""Table + recipe -> fastai Learner, on which everything in fastai's own tutorials works."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastai.callback import progress, schedule  # noqa: F401 (give Learner bars and fit_one_cycle)
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import CancelEpochException
from fastai.data.core import DataLoaders, Datasets, Transform
from fastai.data.transforms import Categorize, IntToFloatTensor, Normalize
from fastai.interpret import ClassificationInterpretation, Interpretation  # noqa: F401 (for notebooks)
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorImage, set_seed
from fastai.vision import augment
from fastai.vision import learner as vision  # noqa: F401 (gives pictures show_batch, show_results)
from torch import Tensor
from torch.nn import functional as F

from cervix_utils import paths
from cervix_utils.data import images, squares
from cervix_utils.training import gpu, losses, networks, recipes
from cervix_utils.training.recipes import Recipe


class DeviceError(ValueError):
    """The device asked for is not to be had on this machine."""


def pick_device(device: str = "auto") -> str:
    """'cpu' or 'cuda' for what a configuration asks; DeviceError where it cannot be met."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise DeviceError("device=cuda: PyTorch sees no CUDA GPU; use device=auto or device=cpu")
    return "cuda" if cuda and device != "cpu" else "cpu"


def pick_precision(precision: str, device: str) -> str:
    """'float32' or 'bf16'; auto is bf16 where the hardware computes in it."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(False) else "float32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def autocast(device: str, precision: str, **options):
    """Context in which a forward pass runs in ``precision``; ``options`` of torch.autocast."""
    half = precision == "bf16"
    return torch.autocast(device, torch.bfloat16, **options) if half else nullcontext()


class StudyLearner(Learner):
    """fastai's Learner; its steps run in ``precision``, on a CPU too, where fastai's to_bf16 does
    not.

    The context is left whatever happens: an interrupt leaves nothing switched on. ``fitted_as`` is
    the recipe that trained it, None after a fit by hand or with other ``ingredients``.
    """

    precision, fitted_as, first_epoch, built_with = "float32", None, 0, None

    def ingredients(self) -> tuple:
        """Network, loss, optimiser, batches and kinds of callbacks: what a recipe gave, until a
        hand changes it. Bars and several processes do not count."""
        kinds = {type(cb).__name__ for cb in self.cbs} - {"ProgressCallback", "DistributedTrainer"}
        return self.model, self.loss_func, self.opt_func, self.dls, self.moms, kinds

    def computing(self, **options):
        """The context of a step; ``options`` of torch.autocast."""
        by_fastai = hasattr(self, "mixed_precision")  # to_fp16 or to_bf16 was called
        precision = "float32" if by_fastai else self.precision
        return autocast(next(self.model.parameters()).device.type, precision, **options)

    def _do_one_batch(self):
        with self.computing():
            super()._do_one_batch()

    def fit(self, *arguments, **options):
        self.fitted_as, self.first_epoch = None, 0
        return super().fit(*arguments, **options)

    def _do_fit(self):
        for epoch in range(self.first_epoch, self.n_epoch):  # a Checkpoint raises the first
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)


class OpenSquare(Transform):
    """File of a picture -> its square, uint8 (3, size, size): from the cache, or decoded now."""

    def __init__(self, split: pd.DataFrame, recipe: Recipe):
        self.size, self.window = recipe.image_size, recipe.window
        self.pictures = squares.open_squares(split, self.size, self.window)
        self.rows = {str(file): row for row, file in enumerate(split["path"])}

    def encodes(self, file: (str, Path)) -> TensorImage:
        row = self.rows.get(str(file))
        if row is None:
            picture = images.squares([file], self.size, self.window)[0]
        else:
            picture = self.pictures[[row]][0]
        return TensorImage(torch.tensor(picture))


class OnBorderColour(augment.AffineCoordTfm):
    """fastai's rotation, flip and zoom; what lies beyond a picture takes the median colour of its
    border, as the squares of oblong pictures do."""

    def encodes(self, x: TensorImage) -> TensorImage:
        if self.split_idx:  # validation
            return x
        pixels = x.as_subclass(Tensor)
        border = [pixels[:, :, 0], pixels[:, :, -1], pixels[..., 0], pixels[..., -1]]
        colour = torch.cat(border, dim=2).median(dim=2).values[:, :, None, None]
        grid = F.affine_grid(self.mat.as_subclass(Tensor), pixels.shape, align_corners=False)
        turned = F.grid_sample(pixels - colour, grid, padding_mode="zeros", align_corners=False)
        return TensorImage(turned + colour)


def upside_down(x: Tensor) -> Tensor:
    """Affine matrices (n, 3, 3) that turn half of the pictures (n, 3, s, s) upside down."""
    return augment.flip_mat(x).roll((1, 1), (1, 2))


def augmentations(recipe: Recipe) -> list:
    """fastai batch transforms: one resampling, lighting in logit space.

    Every random number is drawn for every batch, on the device of its pictures.
    """
    made, affine = [], [augment.flip_mat] if recipe.flip != "none" else []
    if recipe.flip == "both":
        affine.append(upside_down)
    if recipe.rotate:
        affine.append(partial(augment.rotate_mat, max_deg=recipe.rotate, p=1.0))
    if recipe.zoom > 1:
        affine.append(partial(augment.zoom_mat, max_zoom=recipe.zoom, p=1.0))
    if affine:
        made.append(OnBorderColour(affine))
    if recipe.lighting:
        still = {"do_flip": False, "max_rotate": 0, "max_zoom": 1, "max_warp": 0}
        made += augment.aug_transforms(**still, max_lighting=recipe.lighting)
    return made


def dataloaders(split: pd.DataFrame, recipe: Recipe, device: str = "cpu") -> DataLoaders:
    """Batches of the training part, shuffled and augmented, and of the validation part as it is.

    Items are files, so that ``test_dl`` takes files.
    """
    vocabulary = Categorize(vocab=recipe.classes, sort=False)
    rows = {part: split.index[split["part"] == part].tolist() for part in ("train", "valid")}
    files = [Path(file) for file in split["path"]]
    label_of = dict(zip(files, split["label"])).get
    pipelines = [[OpenSquare(split, recipe)], [lambda file: label_of(Path(file)), vocabulary]]
    pictures = Datasets(files, pipelines, splits=list(rows.values()))
    pictures.tls[0].types[0] = pictures.tls[1].types[0] = (str, Path)  # predict("file.jpg") too
    normalize = Normalize.from_stats(recipe.mean, recipe.std, cuda=False)
    normalize.mean, normalize.std = normalize.mean.to(device), normalize.std.to(device)
    return pictures.dataloaders(
        bs=min(recipe.batch_size, len(rows["train"])),
        after_batch=[IntToFloatTensor(), *augmentations(recipe), normalize],
        num_workers=0,  # pictures lie in memory-mapped squares: processes would only cost time
        device=torch.device(device),
        path=paths.cache_dir() / "learner",
    )


def optimiser(recipe: Recipe) -> Callable[..., OptimWrapper]:
    """PyTorch's fused SGD or AdamW under fastai's interface: on a CPU several times faster."""
    sgd = recipe.optimiser == "sgd"
    options = {"momentum": recipe.momentum} if sgd else {"betas": (recipe.momentum, 0.99)}
    kind = torch.optim.SGD if sgd else torch.optim.AdamW
    return partial(OptimWrapper, opt=kind, fused=True, weight_decay=recipe.weight_decay, **options)


def build(split: pd.DataFrame, recipe: Recipe, device: str = "auto") -> StudyLearner:
    """The fastai Learner of a recipe, untrained, on a split (see ``splits.assign_parts``)."""
    place = pick_device(device)
    set_seed(recipe.seed, reproducible=True)
    loss = recipes.pipeline_of(recipe.pipeline).loss
    state = networks.initial_state(recipe.weights, recipe.architecture)
    model = networks.network(recipe.architecture, recipe.head, recipe.n_outputs, state).to(place)
    criterion = losses.Loss(loss, len(recipe.classes), recipe.regression_weight).to(place)
    learn = StudyLearner(
        dataloaders(split.reset_index(drop=True), recipe, place),
        model,
        loss_func=criterion,
        opt_func=optimiser(recipe),
        splitter=networks.body_and_head,
        metrics=criterion.accuracy,
        moms=(recipe.momentum,) * 3,  # fastai's one cycle moves it, this project's does not
        cbs=ChannelsLast(),
    )
    learn.precision = pick_precision(recipe.precision, place)
    if place == "cuda":
        learn.add_cbs([gpu.PicturesOnGpu(), gpu.GraphedStep()])
    learn.built_with = learn.ingredients()
    return learn

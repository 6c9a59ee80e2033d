"""What is timed. Each function is one side of a comparison and runs in a process of its own:

    python -m benchmarks.sides NAME '{"argument": value}'

prints one line of JSON: `seconds`, `work` (units done in them) and whatever else was measured.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from fastai.callback.core import Callback
from fastai.learner import Learner
from torch import nn
from torchvision.transforms import Normalize

from cervix_utils import config
from cervix_utils.data import datasets, images, splits
from cervix_utils.evaluation import metrics
from cervix_utils.explanation import attribution
from cervix_utils.training import fitting, gpu, learners, losses, networks, recipes, runs
from cervix_utils.training.recipes import Recipe

SHIPPED = {"resnet101": ("herlev", "combined"), "resnet50": ("colposcopy", "modern")}


def elapsed(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that ``call()`` takes, until the device is done with it."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def recipe_of(architecture: str, size: int, batch: int, epochs: int = 1) -> Recipe:
    """The shipped recipe that trains ``architecture``: few epochs, at another size, on all
    cores."""
    task, pipeline = SHIPPED[architecture]
    made = recipes.make(config.validate({}, "defaults"), task, pipeline)
    changes = {"image_size": size, "batch_size": batch, "epochs": epochs}
    changes["threads"] = os.cpu_count()
    return replace(made, architecture=architecture, **changes)


def drawn_split(task: str, n: int) -> pd.DataFrame:
    """Drawn pictures as a split of ``n`` training and 8 validation images; pictures repeat."""
    table, _ = datasets.load("demo", task)
    labelled = table[table["label"] != ""]
    rows = labelled.sample(n + 8, replace=True, random_state=0, ignore_index=True)
    return rows.assign(group=rows.index.astype(str), part=["train"] * n + ["valid"] * 8)


def of_many_classes(split: pd.DataFrame, task: str, number: int) -> pd.DataFrame:
    """``split`` with ``number`` classes, dealt out in turn; its data set is replaced in this
    process."""
    names = tuple(f"class {k}" for k in range(number))
    datasets.register(replace(datasets.get(task), classes=names))
    return split.assign(label=[names[row % number] for row in range(len(split))])


def train_ours(
    architecture: str,
    size: int,
    batch: int,
    n: int,
    device: str = "auto",
    classes: int = 0,
    epochs: int = 1,
) -> dict:
    """`learners.build` and `fitting.fit`: one whole fit after a first one of two batches.

    ``classes`` above 0: so many of them instead of the task's.
    """
    recipe, device = recipe_of(architecture, size, batch, epochs), learners.pick_device(device)
    few, many = drawn_split(recipe.task, 2 * batch), drawn_split(recipe.task, n)
    if classes:
        few, many = (of_many_classes(split, recipe.task, classes) for split in (few, many))
    fitting.fit(learners.build(few, recipe, device), recipe)
    learn = learners.build(many, recipe, device)
    with gpu_use(device) as use:
        seconds = elapsed(lambda: fitting.fit(learn, recipe))
    busy = float(np.mean(use)) if use else None
    return {"seconds": seconds, "work": n // batch * batch * epochs, "busy": busy}


@contextmanager
def gpu_use(device: str) -> Iterator[list[int]]:
    """Collects the GPU's use in percent, five times a second, from nvidia-smi; nothing on a CPU."""
    percents: list[int] = []
    if device != "cuda":
        yield percents
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*query, "-lms", "200"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield percents
        finally:
            process.terminate()
        percents += [int(line) for line in process.stdout.read().split()]


def stock_loaders(split: pd.DataFrame, size: int, batch: int, device: str):
    """fastai's way from files to batches, as its tutorials have it."""
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms

    return ImageDataLoaders.from_df(
        split.assign(is_valid=split["part"] == "valid"),
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(size),
        batch_tfms=aug_transforms(),
        bs=batch,
        device=torch.device(device),
    )


def stock_fit(
    loaders, architecture: str, half: bool = False, epochs: int = 1
) -> Callable[[], None]:
    """A `vision_learner` with fastai's defaults -> a call that trains it."""
    from fastai.vision.all import accuracy, models, vision_learner

    network = getattr(models, architecture)
    learn = vision_learner(loaders, network, pretrained=False, metrics=accuracy)
    learn = learn.to_fp16() if half else learn

    def fit() -> None:
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs)

    return fit


def train_stock(
    architecture: str, size: int, batch: int, n: int, device="auto", half=False, epochs=1
) -> dict:
    """The same fit in stock fastai, after a first one of two batches."""
    task, device = SHIPPED[architecture][0], learners.pick_device(device)
    splits_used = [drawn_split(task, 2 * batch), drawn_split(task, n)]
    loaders = [stock_loaders(split, size, batch, device) for split in splits_used]
    warm, timed = (stock_fit(loader, architecture, half, epochs) for loader in loaders)
    warm()
    return {"seconds": elapsed(timed, device), "work": n // batch * batch * epochs}


def train_bare(architecture: str, size: int, batch: int, n: int, device: str = "auto") -> dict:
    """Forward, loss, backward, step on one batch in memory, same precision: the compute limit.

    On a GPU the step is captured once as a CUDA graph and replayed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    recipe, device = recipe_of(architecture, size, batch), learners.pick_device(device)
    precision = learners.pick_precision(recipe.precision, device)
    kind, classes = recipes.pipeline_of(recipe.pipeline).loss, len(recipe.classes)
    criterion = losses.Loss(kind, classes)
    model = networks.network(architecture, recipe.head, recipe.n_outputs)
    model = model.to(device, memory_format=torch.channels_last)
    on_gpu = device == "cuda"
    options = {"lr": recipe.lr, "fused": True, "capturable": on_gpu}
    optimiser = torch.optim.AdamW(model.parameters(), **options)
    pictures = torch.randn(batch, 3, size, size, device=device)
    pictures = pictures.to(memory_format=torch.channels_last)
    targets = torch.arange(batch, device=device) % classes

    def compute() -> tuple:
        with learners.autocast(device, precision, cache_enabled=not on_gpu):
            output = model(pictures)
        criterion(output, targets).backward()
        return ()

    def step() -> None:
        compute()
        optimiser.step()
        optimiser.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    step()
    call = gpu.record(model, compute, optimiser.step)[0].replay if on_gpu else step

    def steps(number: int) -> None:
        for _ in range(number):
            call()

    seconds = elapsed(lambda: steps(n // batch), device)
    rate = counter.get_total_flops() * (n // batch) / seconds
    return {"seconds": seconds, "work": n // batch * batch, "tflops": rate / 1e12}


def matrix_rate(side: int = 2048, repeats: int = 20, device: str = "auto") -> dict:
    """Matrix product in the precision of trainings, in TFLOP/s: what the machine gives at best."""
    device = learners.pick_device(device)
    precision = learners.pick_precision("auto", device)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def products(number: int) -> None:
        for _ in range(number):
            a @ b

    products(3)
    seconds = elapsed(lambda: products(repeats), device)
    rate = 2 * side**3 * repeats / seconds
    return {"seconds": seconds, "work": repeats, "tflops": rate / 1e12, "precision": precision}


def photographs(folder: str, n: int | None = None) -> pd.DataFrame:
    """A split of the first ``n`` JPEGs in ``folder``, the last two for validation; never cached."""
    files = [str(file) for file in sorted(Path(folder).rglob("*.jpg"))][:n]
    table = pd.DataFrame({"path": files, "id": files, "group": files, "part": "train"})
    table.loc[table.index[-2:], "part"] = "valid"
    labels = [f"Type_{1 + row % 3}" for row in range(len(files))]
    return table.assign(label=labels, sha256=[f"{file} {time.time_ns()}" for file in files])


def epoch_ours(folder: str, size: int, network: bool) -> dict:
    """First and second pass over large JPEGs through the cache of decoded pictures; with a
    ResNet-50 if ``network``."""
    recipe, split = recipe_of("resnet50", size, 20), photographs(folder)

    def read() -> None:
        for _ in learners.dataloaders(split, recipe, "cpu").train:
            pass

    def build_and_fit() -> None:
        fitting.fit(learners.build(split, recipe, "cpu"), recipe)

    first, second = (elapsed(build_and_fit if network else read) for _ in range(2))
    return {"seconds": first, "work": len(split), "second": second}


def epoch_stock(folder: str, size: int, network: bool) -> dict:
    """The same through stock fastai, which decodes every original in every epoch."""
    split = photographs(folder)
    loaders = stock_loaders(split, size, 20, "cpu")

    def read() -> None:
        for _ in loaders.train:
            pass

    fit = stock_fit(loaders, "resnet50") if network else read
    return {"seconds": elapsed(fit), "work": len(split)}


def memory() -> float:
    """Anonymous memory of this process in MB: what is taken, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Watch(Callback):
    """Keeps the peak of ``memory`` over the batches of a fit."""

    peak = 0.0

    def after_batch(self):
        self.peak = max(self.peak, memory())


def memory_of_training(folder: str, n: int, size: int) -> dict:
    """Peak of memory in a fit over ``n`` photographs: a tiny network, the real way of the data."""
    recipe, split, watch = recipe_of("resnet50", size, 32), photographs(folder, n), Watch()
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 3, size, size))

    def fit() -> None:
        loaders = learners.dataloaders(split, recipe, "cpu")
        criterion = losses.Loss("cross_entropy", 3)
        learn = Learner(loaders, model, loss_func=criterion, cbs=watch)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)

    decoded = n * size * size * 3 / 1e6
    return {"seconds": elapsed(fit), "work": n, "peak_mb": watch.peak, "data_mb": decoded}


def smooth_pictures(n: int, size: int) -> np.ndarray:
    """Smooth random pictures, uint8 (n, 3, size, size)."""
    from scipy import ndimage

    noise = np.random.default_rng(0).normal(size=(n, 3, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, size / 16, size / 16))
    return (128 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def predict_ours(n: int, size: int) -> dict:
    """`fitting.probabilities`: four views, the recipe's precision, ResNet-101."""
    recipe, pictures = recipe_of("resnet101", size, 32), smooth_pictures(n, size)
    model = networks.network("resnet101", "linear", 5)
    fitting.probabilities(model, pictures[:32], recipe, 4)
    seconds = elapsed(lambda: fitting.probabilities(model, pictures, recipe, 4))
    return {"seconds": seconds, "work": n}


def predict_plain(n: int, size: int) -> dict:
    """A plain PyTorch loop in float32, four views."""
    recipe, pictures = recipe_of("resnet101", size, 32), torch.from_numpy(smooth_pictures(n, size))
    model = networks.network("resnet101", "linear", 5).eval()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (recipe.mean, recipe.std))

    @torch.inference_mode()
    def predict(some: torch.Tensor) -> None:
        for batch in some.split(64):
            x = (batch / 255 - mean) / std
            views = [x, x.flip(3), x.flip(2), x.flip((2, 3))]
            torch.stack([model(view).softmax(dim=1) for view in views]).mean(dim=0)

    predict(pictures[:32])
    return {"seconds": elapsed(lambda: predict(pictures)), "work": n}


def untrained(n: int, size: int) -> tuple[nn.Module, Recipe, torch.Tensor]:
    """(model, recipe, pixels): a random ResNet-101 whose every layer does something, logits of unit
    spread."""
    torch.manual_seed(0)
    recipe, pixels = (
        recipe_of("resnet101", size, 32),
        attribution.to_float(smooth_pictures(n, size)),
    )
    model = networks.network("resnet101", "linear", 5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.7)
        logits = model(pixels)
        model.fc[0].weight /= logits.std(dim=0).mean()
        model.fc[0].bias -= model(pixels).mean(dim=0)
    return model, recipe, pixels


def explained(n: int, size: int, run: str, data: str) -> tuple[nn.Module, Recipe, torch.Tensor]:
    """(model, recipe, pixels) of a finished ``run`` and ``n`` of its test cells in ``data``;
    ``untrained`` where there is no run."""
    if not run:
        return untrained(n, size)
    finished = runs.read(Path(run))
    recipe, table = runs.recipe_of(finished), datasets.load(data, finished.recipe["task"])[0]
    chosen = finished.test["id"].sample(n, random_state=0)
    files = table.set_index("id").loc[chosen, "path"]
    pixels = attribution.to_float(images.squares(files, recipe.image_size, recipe.window))
    return runs.load_model(finished), recipe, pixels


def convergence(seconds: float, deltas: np.ndarray, steps: float) -> dict:
    """The result of a side that integrates gradients."""
    sizes = np.abs(deltas)
    middle, largest = float(np.median(sizes)), float(sizes.max())
    found = {"seconds": seconds, "work": len(sizes), "delta": middle, "largest": largest}
    return found | {"steps": float(steps)}


def ig_ours(
    n: int,
    size: int = 128,
    steps: int = 50,
    bound: float = float("inf"),
    keep: str = "",
    run: str = "",
    data: str = "",
) -> dict:
    """`attribution.integrated_gradients`, with a ``bound`` on every delta; maps go to file
    ``keep``."""
    model, recipe, pixels = explained(n, size, run, data)
    function = attribution.FromPixels(model, recipe.mean, recipe.std, len(recipe.classes))
    white = torch.ones_like(pixels)
    attribution.integrated_gradients(function, pixels[:1], white[:1], 16)
    start = time.perf_counter()
    found = attribution.integrated_gradients(function, pixels, white, steps, bound=bound)
    seconds = time.perf_counter() - start
    if keep:
        np.save(keep, found.maps)
    return convergence(seconds, found.deltas, found.steps.mean())


def ig_captum(n: int, size: int = 128, steps: int = 50, run: str = "", data: str = "") -> dict:
    """captum's `IntegratedGradients` with its defaults: float32, one image at a time, parameters
    that ask for gradients. Points in batches of 64 at most: 512 at once would not fit."""
    model, recipe, pixels = explained(n, size, run, data)
    network = nn.Sequential(Normalize(recipe.mean, recipe.std), model.requires_grad_(True))
    ig = IntegratedGradients(lambda x: losses.score(network(x)))
    ig.attribute(pixels[:1], torch.ones_like(pixels[:1]), n_steps=16)
    options = {"n_steps": steps, "return_convergence_delta": True, "internal_batch_size": 64}
    start, deltas = time.perf_counter(), []
    for image in pixels.split(1):
        _, delta = ig.attribute(image, torch.ones_like(image), **options)
        deltas.append(delta.item())
    return convergence(time.perf_counter() - start, np.array(deltas), steps)


def accuracy_of(data: str, task: str, way: str = "as shipped", weights: str = "none") -> dict:
    """A small ResNet-50 trained on one fold and scored, as shipped or without a shortcut."""
    wanted = {"colposcopy": ("modern", 96, 4, 3e-4), "herlev": ("combined", 64, 6, 1e-3)}
    pipeline, size, epochs, lr = wanted[task]
    settings = config.validate({"weights_resnet50": weights, "protocol": "grouped"}, "benchmark")
    recipe = recipes.make(settings, task, pipeline)
    recipe = replace(recipe, architecture="resnet50", weights=weights, image_size=size, lr=lr)
    precision = "float32" if way == "float32" else "auto"
    recipe = replace(recipe, epochs=epochs, batch_size=16, precision=precision)
    split = recipes.parts(datasets.load(data, task)[0], recipe)
    split = split.assign(sha256=split["sha256"] + way)  # nothing decoded the other way is read
    start = time.perf_counter()
    with taken_away(way):
        learn = learners.build(split, recipe, "cpu")
        fitting.fit(learn, recipe)
        predictions = fitting.predict(learn.model, split, recipe)
    seconds = time.perf_counter() - start
    test = predictions[predictions["part"] == "test"].reset_index(drop=True)
    numbers = metrics.intervals(test.assign(task=task), 300, 0).set_index("metric")
    shown = numbers.loc[["accuracy", "log_loss"], ["value", "low", "high"]].round(3)
    return {"seconds": seconds, "work": len(test), "numbers": shown.T.to_dict()}


def taken_away(way: str):
    """A context in which a shortcut of the package is not taken."""
    shipped = images.open_image
    if way == "JPEG decoded whole":
        return mock.patch.object(images, "open_image", lambda path, least=0: shipped(path))
    if way == "norms not folded":
        return mock.patch.object(networks, "fold_batch_norms", lambda model: model.eval())
    return nullcontext()


def hashes_of(n: int) -> np.ndarray:
    """Random 64-bit hashes of which a tenth have a near copy."""
    draw = np.random.default_rng(0)
    hashes, copies = draw.integers(0, 2**64, n, dtype=np.uint64), n // 10
    bits = np.left_shift(np.uint64(1), draw.integers(0, 64, copies, dtype=np.uint64))
    hashes[n - copies :] = hashes[:copies] ^ bits
    return hashes


def groups_ours(n: int, distance: int = 8) -> dict:
    """`splits.near_duplicates`."""
    hashes = hashes_of(n)
    splits.near_duplicates(hashes[:100], distance)
    start = time.perf_counter()
    pairs = splits.near_duplicates(hashes, distance)
    return {"seconds": time.perf_counter() - start, "work": n, "pairs": len(pairs)}


def groups_pairs(n: int, distance: int = 8) -> dict:
    """All pairs in Python."""
    hashes = hashes_of(n).tolist()
    start = time.perf_counter()
    pairs = itertools.combinations(hashes, 2)
    near = sum((a ^ b).bit_count() <= distance for a, b in pairs)
    return {"seconds": time.perf_counter() - start, "work": n, "pairs": near}


def read_folder(folder: str, cores: int) -> dict:
    """`datasets.read`: sizes, hashes, truncation and duplicates of every file, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    start = time.perf_counter()
    table, exclusions = datasets.read(Path(folder), datasets.get("colposcopy"))
    return {"seconds": time.perf_counter() - start, "work": len(table) + len(exclusions)}


def split_folds(n: int, folds: int) -> dict:
    """`splits.with_groups` and one `assign_parts`, as a notebook does."""
    labels = np.random.default_rng(0).choice(datasets.get("herlev").classes, n)
    table = pd.DataFrame({"id": np.arange(n).astype(str), "label": labels, "name_group": ""})
    table = table.assign(phash=hashes_of(n))

    def split() -> None:
        splits.assign_parts(splits.with_groups(table, 8), "herlev", "grouped", 0, folds)

    return {"seconds": elapsed(split), "work": n}


def step_of(step: str, n: int) -> dict:
    """One step in which all rows of a table take part, on ``n`` cells without names, two a group:
    seconds of the processor, and megabytes that the process grew by at its peak."""
    draw, classes = np.random.default_rng(0), datasets.get("herlev").classes
    rows = {"id": np.arange(n).astype(str), "label": draw.choice(classes, n), "name_group": ""}
    rows |= {"task": "herlev", "group": np.arange(n) // 2, "phash": hashes_of(n)}
    p = pd.DataFrame(draw.dirichlet(np.ones(5), n), columns=[f"p_{name}" for name in classes])
    table = pd.DataFrame(rows).join(p).assign(score=p.to_numpy() @ np.arange(1, 6))
    ranks = {name for name in metrics.METRICS if "_at_" in name}
    others = metrics.METRICS.keys() - ranks
    steps = {
        "near_duplicates": lambda: splits.near_duplicates(rows["phash"], 8),
        "with_groups": lambda: splits.with_groups(table, 8),
        "assign_parts": lambda: splits.assign_parts(table, "herlev", "grouped", 0),
        "bootstrap": lambda: metrics.measure_together([table], 1000, 0, others),
        "bootstrap_of_ranks": lambda: metrics.measure_together([table], 1000, 0, ranks),
    }
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    steps[step]()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in KiB, on Linux
    return {"seconds": time.process_time() - start, "work": n, "peak_mb": grown / 1024}


if __name__ == "__main__":
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    result = globals()[name](**arguments)
    print("\n" + json.dumps(result))

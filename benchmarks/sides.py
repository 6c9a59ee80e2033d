"""What is timed. Each function is one side of a comparison and runs in a process of its own:

    python -m benchmarks.sides NAME '{"argument": value}'

prints one line of JSON: `seconds`, `work` (how many units were done in them) and whatever else was measured.
"""

import itertools
import json
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd


def memory() -> float:
    """Anonymous memory of this process in MB: what is really taken, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def recipe_of(architecture: str, size: int, batch: int, epochs: int = 1):
    """The shipped recipe of the task that trains ``architecture``, at another size."""
    from cervix_utils import config, recipes

    settings = config.validate({}, "defaults")
    made = recipes.herlev(settings, "combined") if "101" in architecture else recipes.colposcopy(settings, "modern")
    return replace(made, architecture=architecture, image_size=size, batch_size=batch, epochs=epochs)


def table_of(folder: str, task: str, n_train: int, n_valid: int = 8) -> pd.DataFrame:
    """Drawn pictures as a split of ``n_train`` and ``n_valid`` images; files repeat under other ids where too few."""
    from cervix_utils import datasets

    table, _ = datasets.load(folder, task)
    table = table[table["label"] != ""].sample(n_train + n_valid, replace=True, random_state=0, ignore_index=True)
    return table.assign(group=table.index.astype(str), part=["train"] * n_train + ["valid"] * n_valid)


def train_ours(
    folder: str, task: str, architecture: str, size: int, batch: int, n: int, device="auto", compiled=False, classes=0
):
    """`learners.build` and `training.fit`: seconds of one whole fit after a first one of two batches.

    ``classes`` above 0: so many of them instead of the task's own (replaced in this process), the labels dealt out in turn.
    """
    import torch

    from cervix_utils import datasets, devices, learners, training

    recipe = recipe_of(architecture, size, batch)
    device, precision = devices.pick_device(device)
    splits = [table_of(folder, task, count) for count in (2 * batch, n)]
    if classes:
        datasets.CLASSES[recipe.task] = names = [f"class {k}" for k in range(classes)]
        splits = [split.assign(label=[names[k % classes] for k in range(len(split))]) for split in splits]
    training.fit(learners.build(splits[0], recipe, device), recipe, device, precision)
    learn = learners.build(splits[1], recipe, device)
    if compiled:
        learn.model = torch.compile(learn.model)
        training.fit(learn, recipe, device, precision)
    with gpu_use(device) as use:
        start = time.perf_counter()
        training.fit(learn, recipe, device, precision)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "work": n // batch * batch, "busy": float(np.mean(use)) if use else None}


@contextmanager
def gpu_use(device: str):
    """Collects the GPU's utilisation in percent, five times a second, as nvidia-smi reports it; nothing on a CPU."""
    found = []
    if device != "cuda":
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            process.terminate()
        found += [int(line) for line in process.stdout.read().split()]


def stock_loaders(split: pd.DataFrame, size: int, batch: int, device: str):
    """fastai's own way from files to batches, as its tutorials have it."""
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
        device="cpu" if device == "cpu" else None,
    )


def train_stock(folder: str, task: str, architecture: str, size: int, batch: int, n: int, device="auto", half=False):
    """fastai as its tutorials have it: `ImageDataLoaders`, `Resize`, `aug_transforms`, `vision_learner`, defaults."""
    import torchvision.models
    from fastai.vision.all import accuracy, set_seed, vision_learner

    set_seed(0)
    learners = {}
    for name, split in {"warm": table_of(folder, task, 2 * batch), "timed": table_of(folder, task, n)}.items():
        loaders = stock_loaders(split, size, batch, device)
        model = getattr(torchvision.models, architecture)
        learners[name] = vision_learner(loaders, model, pretrained=False, metrics=accuracy)
        learners[name] = learners[name].to_fp16() if half else learners[name]
    with learners["warm"].no_bar(), learners["warm"].no_logging():
        learners["warm"].fit_one_cycle(1)
    with learners["timed"].no_bar(), learners["timed"].no_logging():
        start = time.perf_counter()
        learners["timed"].fit_one_cycle(1)
    return {"seconds": time.perf_counter() - start, "work": n // batch * batch}


def train_bare(architecture: str, size: int, batch: int, n: int, task: str = "", folder: str = "", device="auto"):
    """Forward, loss, backward, step on one batch already in memory, same precision: the compute limit."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cervix_utils import devices, losses, networks

    recipe = recipe_of(architecture, size, batch)
    device, precision = devices.pick_device(device)
    model = networks.network(architecture, recipe.head, len(recipe.classes)).to(
        device, memory_format=torch.channels_last
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)
    loss_of = losses.loss_of(recipe.pipeline)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % len(recipe.classes)

    def step():
        with devices.autocast(device, precision):
            out = model(x)
        loss_of(out.float(), y).backward()
        optimiser.step()
        optimiser.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    step()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(n // batch):
        step()
    wait()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "work": n // batch * batch,
        "tflops": counter.get_total_flops() * (n // batch) / seconds / 1e12,
    }


def matrix_rate(side: int = 2048, repeats: int = 20, device="auto"):
    """Matrix product in the precision that trainings take: what the machine gives at best, in TFLOP/s."""
    import torch

    from cervix_utils import devices

    device, precision = devices.pick_device(device)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    for _ in range(3):
        a @ b
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    wait()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "work": repeats,
        "tflops": 2 * side**3 * repeats / seconds / 1e12,
        "precision": precision,
    }


def epoch_ours(files: list[str], size: int, network: bool):
    """First and second pass over large JPEGs through the cache of decoded pictures; with a ResNet-50 if ``network``."""
    from cervix_utils import devices, learners, training

    recipe = recipe_of("resnet50", size, 20)
    split = _photographs(files)
    start = time.perf_counter()
    if not network:
        for _ in learners.dataloaders(split, recipe, "cpu").train:
            pass
        middle = time.perf_counter()
        for _ in learners.dataloaders(split, recipe, "cpu").train:
            pass
    else:
        learn = learners.build(split, recipe)
        training.fit(learn, recipe, *devices.pick_device("cpu"))
        middle = time.perf_counter()
        training.fit(learn, recipe, *devices.pick_device("cpu"))
    return {"seconds": middle - start, "work": len(files), "second": time.perf_counter() - middle}


def epoch_stock(files: list[str], size: int, network: bool):
    """The same through stock fastai, which decodes every original in every epoch."""
    from fastai.vision.all import accuracy, resnet50, vision_learner

    split = _photographs(files)
    loaders = stock_loaders(split, size, 20, "cpu")
    if network:
        learn = vision_learner(loaders, resnet50, pretrained=False, metrics=accuracy)
        with learn.no_bar(), learn.no_logging():
            start = time.perf_counter()
            learn.fit_one_cycle(1)
    else:
        start = time.perf_counter()
        for _ in loaders.train:
            pass
    return {"seconds": time.perf_counter() - start, "work": len(files)}


def _photographs(files: list[str]) -> pd.DataFrame:
    """A split of photographs whose last two are for validation; the cache sees new pictures each time."""
    table = pd.DataFrame({"path": files, "sha256": [f"{f} {time.time_ns()}" for f in files]})
    kinds = [f"Type_{1 + k % 3}" for k in range(len(files))]
    return table.assign(id=files, group=files, label=kinds, part=["train"] * (len(files) - 2) + ["valid"] * 2)


def memory_of_training(files: list[str], n: int, size: int):
    """Peak of anonymous memory in a fit over ``n`` photographs; the network is tiny, the way of the data is the real one."""
    import torch
    from fastai.callback import progress  # noqa: F401 (gives Learner no_bar)
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from torch import nn

    from cervix_utils import learners, losses

    class Watch(Callback):
        peak = 0.0

        def after_batch(self):
            Watch.peak = max(Watch.peak, memory())

    recipe = recipe_of("resnet50", size, 32)
    split = _photographs(list(itertools.islice(itertools.cycle(files), n))).assign(id=range(n))
    start = time.perf_counter()
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 3, size, size))
    learn = Learner(learners.dataloaders(split, recipe, "cpu"), model, loss_func=losses.loss_of("modern"), cbs=Watch())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    return {
        "seconds": time.perf_counter() - start,
        "work": n,
        "peak_mb": Watch.peak,
        "data_mb": n * size * size * 3 / 1e6,
    }


def predict_ours(n: int, size: int):
    """`training.outputs`: four flips, reduced precision, ResNet-101."""
    from cervix_utils import devices, networks, training

    recipe, pictures = recipe_of("resnet101", size, 32), _pixels(n, size)
    precision = devices.pick_device("cpu")[1]
    model = networks.network("resnet101", "linear", 5)
    training.outputs(model, pictures, np.arange(32), recipe, precision, 4)
    start = time.perf_counter()
    training.outputs(model, pictures, np.arange(n), recipe, precision, 4)
    return {"seconds": time.perf_counter() - start, "work": n}


def predict_plain(n: int, size: int):
    """A plain PyTorch loop in float32, four flips."""
    import torch

    from cervix_utils import networks

    recipe, pictures = recipe_of("resnet101", size, 32), torch.from_numpy(_pixels(n, size))
    model = networks.network("resnet101", "linear", 5).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))

    @torch.inference_mode()
    def loop(pictures):
        for batch in pictures.split(64):
            x = (batch / 255 - mean) / std
            views = [x, x.flip(3), x.flip(2), x.flip((2, 3))]
            torch.stack([model(view).softmax(dim=1) for view in views]).mean(dim=0)

    loop(pictures[:32])
    start = time.perf_counter()
    loop(pictures)
    return {"seconds": time.perf_counter() - start, "work": n}


def accuracy_of(
    data: str, task: str, size: int, epochs: int, precision: str = "auto", without: str = "", weights: str = "none"
):
    """One fold trained and scored: accuracy, log-loss and seconds, ``without`` one of the shortcuts."""
    from unittest import mock

    from cervix_utils import config, datasets, devices, images, learners, metrics, networks, recipes, splits, training

    settings = config.validate({"weights_resnet50": weights}, "benchmark")
    make, pipeline = (recipes.herlev, "combined") if task == "herlev" else (recipes.colposcopy, "modern")
    lr = 1e-3 if task == "herlev" else 3e-4
    recipe = replace(make(settings, pipeline), architecture="resnet50", weights=weights, image_size=size, epochs=epochs)
    recipe = replace(recipe, batch_size=16, lr=lr, lr_head=10 * lr)
    table = splits.with_groups(datasets.load(data, task)[0], 8)
    split = splits.assign_parts(table, task, "grouped", 0)
    device, precision = devices.pick_device("cpu", precision)
    whole = images.open_image
    patches = {
        "small JPEG decoding": mock.patch.object(images, "open_image", lambda path, least=0: whole(path)),
        "folded norms": mock.patch.object(networks, "fold_batch_norms", lambda model: model.eval()),
    }
    start = time.perf_counter()
    with patches.get(without, nullcontext()):
        learn = learners.build(split.assign(sha256=split["sha256"] + without), recipe, device)
        training.fit(learn, recipe, device, precision)
        found = training.predict(learn.model, split.assign(sha256=split["sha256"] + without), recipe, precision)
    seconds = time.perf_counter() - start
    test = found[found["part"] == "test"].reset_index(drop=True)
    numbers = metrics.intervals(test, task, 300, 0).set_index("metric").loc[["accuracy", "log_loss"]]
    return {"seconds": seconds, "work": len(test), "numbers": numbers[["value", "low", "high"]].round(3).T.to_dict()}


def _pixels(n: int, size: int) -> np.ndarray:
    """Smooth random pictures, uint8 (n, 3, size, size)."""
    from scipy import ndimage

    noise = np.random.default_rng(0).normal(size=(n, 3, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, size / 16, size / 16))
    return (128 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def explained(n: int, size: int):
    """(model, recipe, pixels): a ResNet-101 from random weights whose every layer does something, logits of unit spread."""
    import torch

    from cervix_utils import attribution, networks

    torch.manual_seed(0)
    recipe, pixels = recipe_of("resnet101", size, 32), attribution.to_float(_pixels(n, size))
    model = networks.network("resnet101", "linear", 5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(0.7)
        logits = model(pixels)
        model.fc[0].weight /= logits.std(dim=0).mean()
        model.fc[0].bias -= model(pixels).mean(dim=0)
    return model, recipe, pixels


def _explained(n: int, size: int, run: str, data: str):
    """(model, mean, std, pixels) of a finished ``run`` and ``n`` of its test cells in ``data``, or of ``explained``."""
    from cervix_utils import datasets, explanations, runs

    if not run:
        model, recipe, pixels = explained(n, size)
        return model, recipe.mean, recipe.std, pixels
    found = runs.read(Path(run))
    pixels = explanations.choose(found, datasets.load(data, "herlev")[0], n, 0).pixels
    return runs.load_model(found, "cpu"), found.recipe["mean"], found.recipe["std"], pixels


def _found(seconds: float, deltas, steps: float) -> dict:
    deltas = np.abs(deltas)
    return {"seconds": seconds, "work": len(deltas), "delta": float(np.median(deltas)),
            "largest": float(deltas.max()), "steps": float(steps)}  # fmt: skip


def ig_ours(
    n: int,
    size: int = 128,
    steps: int = 50,
    precision: str = "float32",
    keep: str = "",
    bound: float = float("inf"),
    run: str = "",
    data: str = "",
):
    """`integration.integrated_gradients` on a ResNet-101, with a ``bound`` on every delta; the maps go to the file ``keep``."""
    from cervix_utils import attribution, integration

    model, mean, std, pixels = _explained(n, size, run, data)
    function = attribution.Severity(attribution.FromPixels(model, mean, std))
    white = attribution.baseline("white", pixels)
    integration.integrated_gradients(function, pixels[:1], white[:1], 16, precision=precision)
    start = time.perf_counter()
    maps, deltas, taken = integration.integrated_gradients(
        function, pixels, white, steps, bound=bound, precision=precision
    )
    seconds = time.perf_counter() - start
    if keep:
        np.save(keep, maps)
    return _found(seconds, deltas, taken.mean())


def ig_captum(n: int, size: int = 128, steps: int = 50, run: str = "", data: str = ""):
    """captum's `IntegratedGradients` with its defaults: float32, one image at a time, parameters that ask for gradients.

    Points of an image in batches of 64 at most: 512 at once would not fit."""
    from captum.attr import IntegratedGradients
    from torch import nn
    from torchvision.transforms import Normalize

    from cervix_utils import attribution

    model, mean, std, pixels = _explained(n, size, run, data)
    function = attribution.Severity(nn.Sequential(Normalize(mean, std), model.requires_grad_(True)))
    ig = IntegratedGradients(function)
    ig.attribute(pixels[:1], attribution.baseline("white", pixels[:1]), n_steps=16)
    start, deltas = time.perf_counter(), []
    for image in pixels.split(1):
        white = attribution.baseline("white", image)
        _, delta = ig.attribute(image, white, n_steps=steps, return_convergence_delta=True, internal_batch_size=64)
        deltas.append(delta.item())
    return _found(time.perf_counter() - start, deltas, steps)


def groups_ours(n: int, distance: int = 8):
    """`splits.near_duplicates` on random hashes of which a tenth have a near copy."""
    from cervix_utils import splits

    hashes = _hashes(n)
    splits.near_duplicates(hashes[:100], distance)
    start = time.perf_counter()
    found = splits.near_duplicates(hashes, distance)
    return {"seconds": time.perf_counter() - start, "work": n, "pairs": len(found)}


def groups_pairs(n: int, distance: int = 8):
    """All pairs in Python."""
    hashes = _hashes(n).tolist()
    start = time.perf_counter()
    found = [None for a, b in itertools.combinations(hashes, 2) if (a ^ b).bit_count() <= distance]
    return {"seconds": time.perf_counter() - start, "work": n, "pairs": len(found)}


def _hashes(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    hashes[-(n // 10) :] = hashes[: n // 10] ^ np.left_shift(
        np.uint64(1), rng.integers(0, 64, n // 10, dtype=np.uint64)
    )
    return hashes


def read_folder(folder: str, cores: int):
    """`datasets.read_colposcopy`: sizes, hashes, truncation and duplicates of every file, on so many cores."""
    import os

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from cervix_utils import datasets

    start = time.perf_counter()
    table, exclusions = datasets.read_colposcopy(Path(folder))
    return {"seconds": time.perf_counter() - start, "work": len(table) + len(exclusions), "cores": cores}


def split_folds(n: int, folds: int):
    """`splits.with_groups` and one `assign_parts`, as a notebook does."""
    from cervix_utils import datasets, splits

    rng = np.random.default_rng(0)
    label = rng.choice(datasets.HERLEV_CLASSES, n)
    table = pd.DataFrame({"id": np.arange(n).astype(str), "label": label, "name_group": "", "phash": _hashes(n)})
    start = time.perf_counter()
    splits.assign_parts(splits.with_groups(table, 8), "herlev", "grouped", 0, folds)
    return {"seconds": time.perf_counter() - start, "work": n}


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    print("\n" + json.dumps(result))

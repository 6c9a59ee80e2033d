"""What this machine has for the study, and what to do about each: ``make doctor DATA=folder``."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from platform import python_version

from cervix_utils import paths
from cervix_utils.data import datasets

NEEDED = 8  # gigabytes of disk, and of memory
Line = tuple[bool, str, str]  # whether it will do, what was found, what to do where it will not


def machine() -> Iterator[Line]:
    """Python, disk and memory."""
    right = (3, 11) <= sys.version_info < (3, 14)
    yield right, f"Python {python_version()}", "make clean, then make reports PYTHON=python3.12"
    free = shutil.disk_usage(paths.ROOT).free / 1e9
    yield free > NEEDED, f"{free:.0f} GB of disk free", "free some, or set CERVIX_CACHE"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    advice = "smaller images or batches: SET='herlev_batch_size=8', and CORES=1"
    yield memory >= NEEDED, f"{memory:.0f} GB of memory, {os.cpu_count()} cores", advice


def arithmetic() -> Iterator[Line]:
    """The GPU, and what is computed in."""
    from cervix_utils.training import learners

    device = learners.pick_device()
    precision = learners.pick_precision("auto", device)
    gpu = learners.torch.cuda.get_device_name() if device == "cuda" else "no CUDA GPU"
    yield device == "cuda", gpu, "demo, quick and cpu are made for this; paper needs a GPU"
    yield precision == "bf16", f"arithmetic {precision}", "works; training takes twice as long"


def data(root: str) -> Iterator[Line]:
    """Each data set: how many images are usable, from which folders; torchvision's weights."""
    for task, dataset in datasets.DATASETS.items():
        try:
            table, left = datasets.load(root, task)
            folder = datasets.find(root, task).name
            first = "/".join(Path(table["path"].iloc[0]).parts[-3:-1])
            found = f"{len(table)} {dataset.noun} in {folder}/, such as those in {first}/"
            most = "".join(left["reason"].mode()[:1])
            yield left.empty, found, f"{len(left)} files not used ({most}): notebook 1 lists them"
        except datasets.DataError as error:
            yield False, f"{dataset.title}: {error}", "see docs/data.md"
    cache = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    weights = sorted(file.name for file in (cache / "hub" / "checkpoints").glob("resnet*"))
    advice = "downloaded on first use of imagenet, or give weights_resnet50=/path"
    yield bool(weights), f"initial weights: {', '.join(weights) or 'none here'}", advice


def main(root: str = "") -> None:
    """Print a line for each thing found."""
    root = root or os.environ.get("CERVIX_DATA", "") or "demo"
    for fine, found, advice in [*machine(), *arithmetic(), *data(root)]:
        print(f"{'ok  ' if fine else 'look'}  {found}{'' if fine else f' -> {advice}'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

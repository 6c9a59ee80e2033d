"""Shared by all tests: caches and reports in temporary folders, a tiny drawn data set, tiny
pictures, a tiny network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pytest_collection_modifyitems(items):
    """The longest files first, so that no core waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_workflow.py", "test_changes.py"))


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    """Nothing that a test makes lands in the working tree."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CERVIX_CACHE", "CERVIX_REPORTS"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.delenv("CERVIX_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def one_thread():
    """PyTorch on one thread: results do not depend on the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory) -> Path:
    """A data root with a few drawn cells and cervices of each class."""
    from cervix_utils.data import demo

    return demo.write_demo(tmp_path_factory.mktemp("tiny") / "demo", 0, 6, 6)


@pytest.fixture(scope="session")
def write_image():
    """Function that writes an RGB picture; one seed, one picture. The suffix says the format, or
    `form` does."""

    def write(
        path: Path,
        seed: int = 0,
        size: tuple[int, int] = (12, 9),
        form: str | None = None,
        **options,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(
            path, form or Image.registered_extensions()[path.suffix.lower()], **options
        )
        return path

    return write


@pytest.fixture(scope="session")
def write_mask():
    """Function that writes palette indices (h, w), by default a nucleus in cytoplasm, with a
    misleading palette."""

    def write(
        path: Path, size: tuple[int, int] = (12, 9), indices: np.ndarray | None = None
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if indices is None:
            indices = np.full(size[::-1], 4)
            indices[2:-2, 2:-2], indices[4:-4, 4:-4] = 3, 2
        mask = Image.fromarray(indices.astype(np.uint8), "P")
        mask.putpalette([value for k in range(256) for value in (255 - k, k * 7 % 256, 40)])
        mask.save(path, "BMP")
        return path

    return write


@pytest.fixture(scope="session")
def small_network():
    """Function: a random network of two convolutions; its ``layer4`` has 4 x 4 cells (side 16)."""
    import torch
    from torch import nn

    def make(outputs: int = 5, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Sequential()
        network.conv1, network.relu1 = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True)
        network.layer4, network.relu2 = nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True)
        network.pool, network.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        network.fc = nn.Linear(8, outputs)
        network.fc.weight.data *= 5
        return network.eval()

    return make


@pytest.fixture
def small_run():
    """Function: a finished run of Herlev that has no files; changes are fields of its recipe."""
    from dataclasses import asdict

    import pandas as pd

    from cervix_utils.training import recipes, runs

    def make(predictions=None, **changes) -> runs.Run:
        half = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3, "precision": "float32"}
        recipe = recipes.Recipe(**{"task": "herlev", "pipeline": "combined"} | half | changes)
        return runs.Run(Path("no-folder"), asdict(recipe), pd.DataFrame(), predictions)

    return make


@pytest.fixture
def ax():
    """Axes of a figure of their own, closed after the test."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture
def few_cells():
    """Two cells of each of three classes, 16 x 16, all named light dysplastic: random pictures of a
    nucleus in cytoplasm."""
    import pandas as pd

    from cervix_utils.data import datasets
    from cervix_utils.explanation import maps

    rng, n = np.random.default_rng(0), 6
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)]})
    table["group"] = [f"g{k // 2}" for k in range(n)]
    table["severity"] = np.arange(n) // 2 + 1
    table["label"] = [datasets.get("herlev").classes[k - 1] for k in table["severity"]]
    table["original"] = table["label"].replace("normal", "normal_columnar")
    table["predicted"] = "light_dysplastic"
    masks = np.full((n, 16, 16), 4, dtype=np.uint8)
    masks[:, 3:13, 3:13], masks[:, 6:10, 6:10] = 3, 2
    pictures = rng.integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)
    return maps.Images(table, pictures, masks, "cpu")


@pytest.fixture
def pixels():
    """Three pictures of 8 by 8, double precision."""
    import torch

    return torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def w():
    """Weights of a linear function of one of ``pixels``."""
    import torch

    return torch.randn((3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.float64)

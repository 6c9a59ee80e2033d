"""Several processes in one training, by fastai and accelerate: the example of docs/cluster.md on
two processes of a CPU."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn

from cervix_utils import paths
from cervix_utils.data import datasets
from cervix_utils.evaluation import metrics
from cervix_utils.training import fitting, learners, recipes, runs
from workflow import jobs

pytest.importorskip("accelerate", reason="accelerate is not installed: it is of the extra 'dev'")

# What is not the example's: the order of images is sent by a line of fastai's that needs a GPU,
# and every batch is written down, by the digests of its pictures as they are decoded.
WATCHED = """
import hashlib, json, os, runpy, sys
import torch
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL

torch.set_num_threads(1)
seen, make = [], DataLoader.create_batch

def broadcast(self, order, rank):
    order = torch.tensor(order)
    torch.distributed.broadcast(order, rank)
    return order.tolist()

def begin(self, before=DistributedDL.before_iter):
    seen.append({"training": bool(self.dl.shuffle), "batches": []})
    before(self)

def watched(self, items):
    if seen and torch.distributed.is_initialized():
        digests = [hashlib.sha256(item[0].numpy().tobytes()).hexdigest() for item in items]
        seen[-1]["batches"].append(digests)
    return make(self, items)

DistributedDL._broadcast, DistributedDL.before_iter = broadcast, begin
DataLoader.create_batch = watched
made = runpy.run_path(sys.argv[1], run_name="__main__")
weights = torch.cat([p.detach().flatten() for p in made["learn"].model.parameters()])
facts = {"epochs": seen, "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest()}
facts["values"] = [list(epoch) for epoch in made["learn"].recorder.values]
with open(f"{sys.argv[2]}/{os.environ['RANK']}.json", "w") as file:
    json.dump(facts, file)
"""
STEADY = """
import sys
from pathlib import Path
import toys
from fastai.distributed import num_distrib
from test_several_gpus import without_norms
from cervix_utils.training import fitting

learn, recipe = without_norms(Path(sys.argv[3]), num_distrib())
with learn.distrib_ctx(sync_bn=False):
    fitting.fit(learn, recipe)
"""


def without_norms(data_root: Path, processes: int = 1) -> tuple:
    """(Learner, recipe): no batch norm, no augmentation, an even number of images as one batch."""
    changes = {"epochs": 4, "optimiser": "sgd", "lr": 0.01, "precision": "float32"}
    recipe = toys.recipe_of(**toys.STILL, **changes)
    split = toys.split_of(data_root, recipe)
    train = split.index[split["part"] == "train"]
    split = split.drop(train[: len(train) % 2])
    recipe = recipes.replace(recipe, batch_size=(split["part"] == "train").sum() // processes)
    learn = learners.build(split, recipe, "cpu")
    torch.manual_seed(0)
    learn.model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    learn.model.extend([nn.Flatten(), nn.Linear(32, recipe.n_outputs)])
    learn.model.head_name = "4"
    return learn, recipe


def two_processes(script: str, folder: Path, *arguments: str) -> list[dict]:
    """What each of two processes wrote down of a script."""
    for name, text in (("watched.py", WATCHED), ("script.py", script)):
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "watched.py"), str(folder / "script.py"), str(folder), *arguments]
    places = [paths.ROOT, paths.ROOT / "tests", Path(__file__).parent]
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, places)), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def example() -> str:
    """The script in docs/cluster.md."""
    return re.search(r"```python\n(.+?)```", (paths.ROOT / "docs/cluster.md").read_text(), re.S)[1]


def digests(split, recipe, part: str) -> list[str]:
    """Of the decoded pictures of a part, as ``WATCHED`` writes them down."""
    items = learners.dataloaders(split, recipe)
    loader = items.train if part == "train" else items.valid
    pictures = [loader.dataset[row][0].numpy().tobytes() for row in range(len(loader.dataset))]
    return [hashlib.sha256(picture).hexdigest() for picture in pictures]


def of_report() -> tuple:
    """(recipe, split) of the combined network of the demo's first page, as its notebook has
    them."""
    settings, pages = jobs.plan("demo", {})
    recipe = recipes.make(pages[f"{jobs.CELLS}_paper-0"], "herlev", "combined")
    cells, _ = datasets.load("demo", "herlev", settings["seed"])
    return recipe, recipes.parts(cells, recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(recipe, split, run that the report finds, what the processes wrote down)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CERVIX_REPORTS", str(tmp_path_factory.mktemp("reports")))
    facts = two_processes(example(), tmp_path_factory.mktemp("two"))
    recipe, split = of_report()
    run = runs.find(paths.reports_dir("demo") / "runs", recipe, split)
    yield recipe, split, run, facts
    patch.undo()


@pytest.mark.resilience
def test_each_image_is_seen_once_an_epoch_by_one_process(trained):
    recipe, split, _, facts = trained
    half = recipe.batch_size // 2
    for part in ("train", "valid"):
        there = digests(split, recipe, part)
        assert len(set(there)) == len(there)
        sides = [[e for e in one["epochs"] if e["training"] == (part == "train")] for one in facts]
        assert len(sides[0]) == len(sides[1]) == recipe.epochs
        orders = set()
        for first, second in zip(*sides):
            batches = [first["batches"], second["batches"]]
            assert len(batches[0]) == len(batches[1])
            seen = [digest for side in batches for batch in side for digest in batch]
            again = len(seen) - len(set(seen))
            assert set(seen) <= set(there) and again <= 1  # one more where their number is odd
            if part == "valid":
                assert set(seen) == set(there)
            else:  # incomplete batches are left out, as by one process
                assert {len(batch) for side in batches for batch in side} == {half}
                assert len(there) - len(set(seen)) < 2 * half
            orders.add(tuple(seen))
        assert len(orders) == (recipe.epochs if part == "train" else 1)


@pytest.mark.resilience
def test_the_report_finds_one_network_and_it_is_as_good_as_that_of_one_process(trained, tmp_path):
    recipe, split, run, facts = trained
    assert facts[0]["weights"] == facts[1]["weights"] and facts[0]["values"] == facts[1]["values"]
    assert run is not None and not run.recipe["by_hand"] and len(run.history) == recipe.epochs
    alone = runs.obtain(split, recipe, tmp_path, "cpu")
    right = [
        (metrics.predicted_class(one.test) == metrics.true_class(one.test)).mean()
        for one in (run, alone)
    ]
    print(f"test accuracy of two processes and of one: {right[0]:.3f}, {right[1]:.3f}")
    assert abs(right[0] - right[1]) < 3 * np.sqrt(2 * 0.25 / len(run.test))


def test_one_step_of_two_processes_is_that_of_one_on_all_their_images(tiny_demo, tmp_path):
    facts = two_processes(STEADY, tmp_path, str(tiny_demo))
    learn, recipe = without_norms(tiny_demo)
    fitting.fit(learn, recipe)
    values = np.array(learn.recorder.values)
    assert abs(values[-1, :2] / values[0, :2] - 1).min() > 1e-3  # something was learnt
    np.testing.assert_allclose(facts[0]["values"], values, rtol=1e-5)
    assert facts[0]["weights"] == facts[1]["weights"]

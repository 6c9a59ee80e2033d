"""Run folders: whole or absent, read back as written, and without a pickle."""

import hashlib
import json
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from cervix_utils import config, learners, networks, recipes, runs, splits, training  # noqa: F401 (runs.key digests their code)
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {
    "task": "colposcopy",
    "pipeline": "sgd",
    "protocol": "paper",
    "fold": 1,
    "architecture": "resnet18",
    "head": "paper",
    "key": "abc",
}
HISTORY = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.25, 0.5], "valid_loss": [1.5, 0.75], "accuracy": [0.25, 1.0]})


def predictions(n: int = 6, task: str = "colposcopy") -> pd.DataFrame:
    p = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES[task])), n).round(6)
    table = pd.DataFrame({"id": [f"train/Type_1/{k}" for k in range(n)], "group": [f"00{k}" for k in range(n)]})
    table["part"], table["label"] = ["train", "valid", "test"] * (n // 3), CLASSES[task][0]
    table[[f"p_{name}" for name in CLASSES[task]]] = p
    return table


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.network("resnet18", "paper", 3)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()  # noqa: E731
    return {str(file.relative_to(folder)): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_what_is_written_is_read_back(tmp_path, model):
    written = runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions())
    found = runs.read(tmp_path / "paper-1")
    for run in (written, found):
        assert run.recipe.items() >= RECIPE.items()
        assert set(run.recipe["versions"]) == {"python", *runs.PACKAGES}
        pd.testing.assert_frame_equal(run.history, HISTORY)
        pd.testing.assert_frame_equal(run.predictions, predictions(), check_dtype=False)  # "000" stays a name
        assert run.name == "colposcopy sgd paper-1"
        assert list(run.test["id"]) == ["train/Type_1/2", "train/Type_1/5"]
    assert [file.name for file in tmp_path.iterdir()] == ["paper-1"]


@pytest.mark.parametrize("name", ["NA", "None", "nan", "null"])
def test_groups_of_any_name_are_read_back(tmp_path, model, name):
    table = predictions().assign(group=name)
    assert list(runs.write(tmp_path / "x", model, RECIPE, HISTORY, table).predictions["group"]) == [name] * 6


def test_a_run_folder_holds_four_files_and_no_pickle(tmp_path, model):
    folder = runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions()).folder
    assert sorted(content(folder)) == sorted(runs.FILES)
    for name in runs.FILES:
        assert not zipfile.is_zipfile(folder / name) and (folder / name).read_bytes()[:1] != b"\x80", name
    weights = (folder / "model.safetensors").read_bytes()
    assert json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])["conv1.weight"]["dtype"] == "F32"


def test_the_network_comes_back_with_the_same_outputs(tmp_path, model):
    model.train()
    model(torch.rand(4, 3, 32, 32))  # batch statistics move: they must be kept too
    run = runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions())
    found = runs.load_model(run)
    assert not found.training
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found(x), model.eval()(x))


def test_the_network_of_a_regression_has_one_output(tmp_path):
    table = predictions(6, "herlev").assign(score=2.5)
    table[[name for name in table if name.startswith("p_")]] = np.nan
    recipe = RECIPE | {"task": "herlev", "pipeline": "regression", "head": "linear"}
    run = runs.write(tmp_path / "x", networks.network("resnet18", "linear", 1), recipe, HISTORY, table)
    assert runs.load_model(run)(torch.rand(2, 3, 32, 32)).shape == (2, 1)
    assert run.predictions.filter(like="p_").isna().all(axis=None)


def full_disk(*arguments, **options):
    raise OSError(28, "No space left on device")


STEPS = [(safetensors.torch, "save_file"), (Path, "write_text"), (pd.DataFrame, "to_csv"), (Path, "rename")]


@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_run_that_cannot_be_written_leaves_nothing_and_the_old_one_whole(tmp_path, model, monkeypatch, owner, step):
    for old in (False, True):
        folder = tmp_path / f"old-{old}" / "paper-1"
        before = content(runs.write(folder, model, RECIPE, HISTORY, predictions()).folder) if old else {}
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, full_disk)
            with pytest.raises(runs.RunError, match=r"paper-1 could not be written .*No space left.*free some room"):
                runs.write(folder, model, RECIPE | {"key": "new"}, HISTORY, predictions())
        assert content(folder.parent) == {f"paper-1/{name}": data for name, data in before.items()}


def test_the_old_run_survives_a_last_step_that_fails(tmp_path, model, monkeypatch):
    before = content(runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions()).folder)
    rename = Path.rename

    def last(self, target):
        return full_disk() if Path(target).name == "paper-1" and "old" not in self.name else rename(self, target)

    monkeypatch.setattr(Path, "rename", last)
    with pytest.raises(runs.RunError):
        runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions())
    assert content(tmp_path / "paper-1") == before


def test_weights_that_cannot_be_written_are_named(tmp_path, model, monkeypatch):
    save = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda state, file: save(state, tmp_path / "gone" / "model.safetensors")
    )
    with pytest.raises(runs.RunError, match="could not be written"):
        runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path, model):
    (tmp_path / "file").touch()
    with pytest.raises(runs.RunError, match="could not be written"):
        runs.write(tmp_path / "file" / "paper-1", model, RECIPE, HISTORY, predictions())


def test_remains_of_a_killed_process_do_not_stand_in_the_way(tmp_path, model):
    (tmp_path / ".paper-1.77").mkdir()
    (tmp_path / ".paper-1.77" / "model.safetensors").touch()
    runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions())


@pytest.mark.parametrize("name", runs.FILES)
def test_a_missing_file_is_named_and_the_run_is_not_found(tmp_path, model, name):
    folder = runs.write(tmp_path / "paper-1", model, RECIPE, HISTORY, predictions()).folder
    facts = {one.name: "other" for one in fields(recipes.Recipe)} | {"initialisation": "", "data_fingerprint": ""}
    assert runs.find(folder, facts | {"key": "abc"}, predictions()).recipe["key"] == "abc"
    assert runs.find(folder, facts | {"key": "other"}, predictions()) is None
    (folder / name).unlink()
    assert runs.find(folder, facts | {"key": "abc"}, predictions()) is None
    remedy = "delete the folder and run the notebook" if name == "model.safetensors" else "run the notebook"
    with pytest.raises(runs.RunError, match=rf"paper-1 lacks {name}: {remedy}"):
        runs.load_model(runs.read(folder))


def test_all_runs_are_sorted_and_leave_out_what_is_half_written(tmp_path, model):
    for pipeline, fold in (("sgd", 1), ("modern", 0), ("sgd", 0)):
        recipe = RECIPE | {"pipeline": pipeline, "fold": fold}
        runs.write(tmp_path / "colposcopy" / pipeline / f"paper-{fold}", model, recipe, HISTORY, predictions())
    half = tmp_path / "colposcopy" / "sgd" / ".paper-2.123"
    half.mkdir()
    (half / "recipe.json").write_text("{}")
    names = [run.name for run in runs.all_runs(tmp_path, "colposcopy")]
    assert names == ["colposcopy modern paper-0", "colposcopy sgd paper-0", "colposcopy sgd paper-1"]
    assert list(runs.all_runs(tmp_path, "herlev")) == []


def test_the_key_changes_with_recipe_parts_threads_and_code(monkeypatch):
    split = predictions()[["id", "group", "part", "label"]]
    facts = asdict(recipes.herlev(config.validate({}, "defaults"), "combined"))
    first = runs.key(facts, split)
    assert first == runs.key(dict(reversed(facts.items())), split.copy())
    others = [runs.key(facts | {"lr": 1.0}, split), runs.key(facts, split.assign(part="train"))]
    others.append(runs.key(facts | {"threads": 99}, split))
    with monkeypatch.context() as patch:
        patch.setattr(runs.Path, "read_text", lambda self, **_: f"# edited {self.name}")
        others.append(runs.key(facts, split))
    assert len({first, *others}) == 5


def test_every_module_that_decides_a_run_is_part_of_its_key():
    assert {"datasets", "images", "splits", "recipes", "losses", "learners", "training"} <= set(runs.MODULES)

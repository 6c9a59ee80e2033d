"""Run folders: found again by what was trained, never overwritten, whole or absent, no pickle."""

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from torch import nn

from cervix_utils import paths
from cervix_utils.data import tables
from cervix_utils.training import fitting, learners, networks, recipes, runs

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()  # noqa: E731
    return {str(file.relative_to(folder)): digest(file) for file in files}


@pytest.fixture(scope="module")
def recipe():
    return toys.recipe_of("combined", test_flips=1, precision="float32")


@pytest.fixture(scope="module")
def split(tiny_demo, recipe):
    return toys.split_of(tiny_demo, recipe)


@pytest.fixture(scope="module")
def learn(split, recipe, one_thread):
    """A Learner trained as the recipe says."""
    made = learners.build(split, recipe, "cpu")
    fitting.fit(made, recipe)
    return made


@pytest.fixture(scope="module")
def kept(learn, recipe, split, tmp_path_factory) -> runs.Run:
    return runs.keep(learn, recipe, split, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(kept, tmp_path) -> runs.Run:
    """The same run in a folder that a test may damage."""
    place = tmp_path / kept.folder.relative_to(kept.folder.parents[2])
    shutil.copytree(kept.folder, place)
    return replace(kept, folder=place)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a training has started")

    monkeypatch.setattr(fitting, "fit", refuse)


# Written and read back


def test_a_run_has_what_its_training_gave(kept, learn, recipe, split):
    wanted = fitting.predict(learn.model, split, recipe)
    pd.testing.assert_frame_equal(kept.predictions, wanted.round(6), check_exact=True)
    history = fitting.history(learn).round(6)
    pd.testing.assert_frame_equal(kept.history, history, check_dtype=False)
    assert kept.name == recipe.name == "herlev combined paper-0"
    assert kept.test.equals(wanted.round(6)[wanted["part"] == "test"].reset_index(drop=True))
    assert kept.recipe["parts"] == {"train": 22, "valid": 10, "test": 11}
    assert kept.recipe["device"] == "cpu" and kept.recipe["computed_in"] == "float32"
    assert kept.recipe["weights"] == "resnet18, random initialisation (no pretraining)"
    assert kept.recipe["by_hand"] is False
    assert set(kept.recipe["versions"]) == {"python", *runs.PACKAGES}
    assert {entry.name for entry in fields(recipes.Recipe)} <= set(kept.recipe)


def test_a_run_folder_holds_four_files_and_no_pickle(kept):
    assert sorted(content(kept.folder)) == sorted(runs.FILES)
    for name in runs.FILES:
        file = kept.folder / name
        assert not zipfile.is_zipfile(file) and file.read_bytes()[:1] != b"\x80", name
    weights = (kept.folder / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert header["conv1.weight"]["dtype"] == "F32"
    assert str(Path.home()) not in (kept.folder / "recipe.json").read_text()


def test_the_network_comes_back_with_the_same_outputs(kept, learn):
    model = runs.load_model(kept)
    assert not model.training
    trained = learn.model.state_dict()  # batch statistics included
    assert trained.keys() == model.state_dict().keys()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("pipeline", ["regression", "combined", "sgd", "modern"])
def test_every_kind_of_output_is_kept(tiny_demo, tmp_path, pipeline):
    recipe = toys.recipe_of(pipeline, test_flips=1)
    run = runs.obtain(toys.split_of(tiny_demo, recipe), recipe, tmp_path, "cpu")
    outputs = {"regression": 1, "combined": 5}.get(pipeline, 3)
    assert runs.load_model(run)(torch.rand(2, 3, 32, 32)).shape == (2, outputs)
    assert list(run.predictions.columns) == tables.columns(recipe.task)
    assert run.predictions.filter(like="p_").isna().all(axis=None) == (pipeline == "regression")
    assert runs.recipe_of(run) == replace(recipe, weights="none")


@pytest.mark.parametrize("name", ["NA", "None", "nan", "null", "007"])
def test_groups_of_any_name_are_read_back(learn, recipe, split, tmp_path, name):
    run = runs.keep(learn, recipe, split.assign(group=name), tmp_path)
    assert list(run.predictions["group"]) == [name] * len(split)


def test_the_tidy_frame_says_what_predicted(kept, copied):
    frame = runs.table([kept, copied])
    assert list(frame.columns) == [*runs.FRAME, *tables.columns("herlev")] and len(frame) == 86
    first = frame.iloc[0]
    assert first[runs.FRAME].tolist() == ["herlev", "combined", "paper", 0, kept.folder.name]
    assert frame.iloc[43:][kept.predictions.columns].reset_index(drop=True).equals(kept.predictions)


# Identity


OTHER = {
    "task": "colposcopy", "pipeline": "classification", "protocol": "grouped", "fold": 1,
    "architecture": "resnet34", "head": "paper", "weights": None, "optimiser": "sgd",
    "schedule": "constant", "flip": "none", "precision": "bf16",
    "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2),
}  # fmt: skip


def name_of(recipe, split) -> str:
    return str(runs.folder_of(Path("runs"), recipe, split))


@pytest.mark.parametrize("name", [entry.name for entry in fields(recipes.Recipe)])
def test_the_folder_changes_with_every_field_of_the_recipe(recipe, split, tmp_path, name):
    (tmp_path / "w.pth").write_bytes(b"weights")
    value = OTHER.get(name, getattr(recipe, name) + 1 if name not in OTHER else None)
    other = replace(recipe, **{name: value or str(tmp_path / "w.pth")})
    same_place = split.assign(task=other.task, protocol=other.protocol, fold=other.fold)
    assert name_of(other, same_place) != name_of(recipe, split)
    digits = {name_of(r, s)[-12:] for r, s in ((other, same_place), (recipe, split))}
    assert len(digits) == 2  # the identity itself, not only the folders above it


def test_the_folder_changes_with_the_data_the_parts_and_the_version(recipe, split, monkeypatch):
    first = split.index[0]
    changed = [split]
    for column in ("id", "group", "part", "label", "sha256"):
        new = "valid" if column == "part" else "normal" if column == "label" else "other"
        changed.append(split.assign(**{column: split[column].mask(split.index == first, new)}))
    changed.append(split.drop(index=first))
    if split.loc[first, "label"] == "normal":
        changed[4] = split.assign(
            label=split["label"].mask(split.index == first, "severe_dysplastic")
        )
    if split.loc[first, "part"] == "valid":
        changed[3] = split.assign(part=split["part"].mask(split.index == first, "test"))
    names = [name_of(recipe, table) for table in changed]
    monkeypatch.setattr(runs, "RECIPE_VERSION", runs.RECIPE_VERSION + 1)
    names.append(name_of(recipe, split))
    assert len(set(names)) == len(names) == 8


def test_the_folder_does_not_change_with_places_order_device_or_code(recipe, split, monkeypatch):
    wanted = name_of(recipe, split)
    moved = split.assign(path="/elsewhere/" + split["id"], mask="")
    assert name_of(recipe, moved) == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(learners, "pick_precision", lambda *arguments: "bf16")
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert name_of(recipe, split.copy()) == wanted


def test_the_folder_is_the_same_on_every_machine():
    """Where this fails, every finished training would start anew: say so in the changelog."""
    split = pd.DataFrame({"id": ["a", "b"], "group": ["1", "2"], "part": ["train", "test"]})
    split = split.assign(label="normal", sha256=["x", "y"], task="herlev", protocol="paper", fold=0)
    name = name_of(recipes.Recipe("herlev", "combined"), split)
    assert name == "runs/herlev/combined/paper-0-e61df89c780c"


def test_the_folder_changes_with_the_content_of_a_weights_file_and_not_with_its_place(
    recipe, split, tmp_path
):
    names = []
    for folder, data in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pth").write_bytes(data)
        names.append(name_of(replace(recipe, weights=str(tmp_path / folder / "w.pth")), split))
    assert names[0] == names[1] != names[2]


def test_folds_of_one_study_share_the_first_six_digits(recipe, split):
    name = name_of(recipe, split)
    second = name_of(replace(recipe, fold=1), split.assign(fold=1))
    other = name_of(replace(recipe, seed=1), split)
    digits = [text[-12:] for text in (name, second, other)]
    assert digits[0][:6] == digits[1][:6] != digits[2][:6] and digits[0][6:] != digits[1][6:]
    assert Path(name).parent == Path("runs/herlev/combined") and "/paper-0-" in name


@pytest.mark.parametrize(
    ("column", "value"), [("protocol", "grouped"), ("fold", 1), ("task", "colposcopy")]
)
def test_split_and_recipe_must_agree(recipe, split, tmp_path, no_training, column, value):
    words = f"the split has {column} '{value}', the recipe '{getattr(recipe, column)}'"
    with pytest.raises(runs.RunError, match=words):
        runs.obtain(split.assign(**{column: value}), recipe, tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []


# Found again


def test_a_finished_run_is_found_and_not_trained_again(copied, recipe, split, no_training, capsys):
    before = content(copied.folder)
    runs_dir = copied.folder.parents[2]
    run = runs.obtain(split, recipe, runs_dir, "cpu")
    assert run.folder == copied.folder and run.predictions.equals(copied.predictions)
    printed = capsys.readouterr().out
    assert f"{recipe.name}  read from the finished run {copied.folder.name}" in printed
    assert content(copied.folder) == before


def test_both_settings_are_found_again_and_neither_is_overwritten(
    copied, recipe, split, monkeypatch
):
    runs_dir, other = copied.folder.parents[2], replace(recipe, lr=0.01)
    before = content(runs_dir)
    second = runs.obtain(split, other, runs_dir, "cpu")
    assert second.folder != copied.folder and second.recipe["lr"] == 0.01
    after = content(runs_dir)
    assert after.items() >= before.items() and len(after) == 2 * len(before)
    monkeypatch.setattr(fitting, "fit", None)  # whatever calls it fails
    for wanted, run in ((recipe, copied), (other, second), (recipe, copied)):
        found = runs.obtain(split, wanted, runs_dir, "cpu")
        assert found.folder == run.folder and found.predictions.equals(run.predictions)
    assert content(runs_dir) == after


def test_another_architecture_is_another_run(copied, recipe, split):
    runs_dir, before = copied.folder.parents[2], content(copied.folder)
    other = replace(recipe, architecture="mobilenet_v3_small")
    assert runs.find(runs_dir, other, split) is None
    run = runs.obtain(split, other, runs_dir, "cpu")
    assert run.folder != copied.folder and content(copied.folder) == before
    assert "classifier.3.0.weight" in load_file(run.folder / "model.safetensors")


def test_a_copied_folder_is_all_that_adopting_takes(kept, recipe, split, tmp_path, no_training):
    reports = tmp_path / "reports" / "other"
    place = reports / "runs" / kept.folder.relative_to(kept.folder.parents[2])
    assert runs.find(reports / "runs", recipe, split) is None
    shutil.copytree(kept.folder, place)
    run = runs.obtain(split, recipe, reports / "runs", "cpu")
    assert run.folder == place and run.predictions.equals(kept.predictions)
    (place / "model.safetensors").unlink()  # large: often left behind
    run = runs.obtain(split, recipe, reports / "runs", "cpu")
    assert run.predictions.equals(kept.predictions)
    with pytest.raises(runs.RunError, match="has no weights: delete that folder"):
        runs.load_model(run)


def test_keeping_again_leaves_the_finished_run_as_it_is(copied, learn, recipe, split):
    before = content(copied.folder)
    run = runs.keep(learn, recipe, split, copied.folder.parents[2])
    assert run.folder == copied.folder and content(copied.folder) == before


# By hand


def test_a_run_by_hand_stands_beside_and_is_never_taken_for_the_recipes(tiny_demo, tmp_path):
    recipe = toys.recipe_of("modern", test_flips=1)
    split = toys.split_of(tiny_demo, recipe)
    by_hand = []
    for rate in (1e-3, 1e-2):
        learn = learners.build(split, recipe, "cpu")
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, rate)
        by_hand.append(runs.keep(learn, recipe, split, tmp_path))
    assert runs.find(tmp_path, recipe, split) is None
    trained = runs.obtain(split, recipe, tmp_path, "cpu")
    folders = [run.folder for run in (*by_hand, trained)]
    assert len(set(folders)) == 3 and len({folder.parent for folder in folders}) == 1
    assert all(folder.name.startswith(trained.folder.name + "-by-hand-") for folder in folders[:2])
    assert [run.recipe["by_hand"] for run in (*by_hand, trained)] == [True, True, False]
    assert runs.find(tmp_path, recipe, split).folder == trained.folder
    assert len(by_hand[0].history) == 1 and not runs.load_model(by_hand[0]).training


def test_a_fit_by_hand_after_the_recipes_is_by_hand(tiny_demo, tmp_path, recipe, split):
    learn = learners.build(split, recipe, "cpu")
    fitting.fit(learn, recipe)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert runs.keep(learn, recipe, split, tmp_path).recipe["by_hand"] is True
    assert runs.find(tmp_path, recipe, split) is None


def test_a_learner_trained_for_another_recipe_is_by_hand(learn, recipe, split, tmp_path):
    other = replace(recipe, epochs=50)
    assert runs.keep(learn, other, split, tmp_path).recipe["by_hand"] is True
    assert runs.find(tmp_path, other, split) is None


def test_a_learner_that_was_never_fitted_can_be_kept(recipe, split, tmp_path):
    run = runs.keep(learners.build(split, recipe, "cpu"), recipe, split, tmp_path)
    assert run.recipe["by_hand"] is True and len(run.history) == 0


# Damage


def halved(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def edited(column: str, value: float):
    def edit(file: Path) -> None:
        table = pd.read_csv(file, dtype=str)
        table.loc[3, column] = str(value)
        table.to_csv(file, index=False)

    return edit


def fewer_rows(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def without(column: str):
    return lambda file: pd.read_csv(file, dtype=str).drop(columns=column).to_csv(file, index=False)


def without_key(key: str):
    def edit(file: Path) -> None:
        record = json.loads(file.read_text())
        del record[key]
        file.write_text(json.dumps(record))

    return edit


def repeated(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    same = next(line for line in lines[2:] if line.split(",")[2] == lines[1].split(",")[2])
    lines[lines.index(same)] = lines[1]
    file.write_text("".join(lines))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("predictions.csv", halved, "damaged"),
        ("predictions.csv", fewer_rows, "recipe.json"),
        ("predictions.csv", repeated, "damaged"),
        ("predictions.csv", edited("p_normal", 5.0), "outside 0..1"),
        ("predictions.csv", edited("p_normal", 0.99), "do not sum to 1"),
        ("predictions.csv", edited("score", "nan"), "damaged"),
        ("predictions.csv", edited("part", "tset"), "part 'tset'"),
        ("predictions.csv", without("p_normal"), "column 'p_normal' is missing"),
        ("predictions.csv", without("score"), "column 'score' is missing"),
        ("predictions.csv", lambda file: file.write_bytes(b""), "no table of numbers"),
        ("predictions.csv", lambda file: file.write_bytes(b"\xff\x00\xfe"), "no table of numbers"),
        ("predictions.csv", Path.unlink, "lacks predictions.csv"),
        ("history.csv", Path.unlink, "lacks history.csv"),
        ("history.csv", lambda file: file.write_text("epoch\nfirst\n"), "no table of numbers"),
        ("recipe.json", Path.unlink, "lacks recipe.json"),
        ("recipe.json", lambda file: file.write_text(""), "damaged"),
        ("recipe.json", halved, "damaged"),
        ("recipe.json", lambda file: file.write_text("{}"), "recipe.json lacks"),
        ("recipe.json", lambda file: file.write_text("[]"), "damaged"),
        ("recipe.json", lambda file: file.write_text("5"), "damaged"),
        ("recipe.json", lambda file: file.write_bytes(b"\xff\xfe"), "damaged"),
        ("recipe.json", without_key("architecture"), "recipe.json lacks 'architecture'"),
        ("recipe.json", without_key("parts"), "recipe.json lacks 'parts'"),
    ],
)
def test_a_damaged_run_is_refused_with_its_folder(
    copied, recipe, split, no_training, name, damage, words
):
    damage(copied.folder / name)
    for call in (
        lambda: runs.read(copied.folder),
        lambda: runs.obtain(split, recipe, copied.folder.parents[2], "cpu"),
    ):
        with pytest.raises(runs.RunError, match=words) as error:
            call()
        assert str(copied.folder) in str(error.value)
        assert "delete that folder and run the notebook" in str(error.value)


def test_a_list_that_names_every_key_is_refused_too(copied):
    keys = [entry.name for entry in fields(recipes.Recipe)]
    (copied.folder / "recipe.json").write_text(json.dumps([*keys, "parts"]))
    with pytest.raises(runs.RunError, match="damaged"):
        runs.read(copied.folder)


def test_an_unknown_task_is_named(copied):
    record = json.loads((copied.folder / "recipe.json").read_text()) | {"task": "lungs"}
    (copied.folder / "recipe.json").write_text(json.dumps(record))
    with pytest.raises(runs.RunError, match=r"damaged \(unknown data set 'lungs'"):
        runs.read(copied.folder)


@pytest.mark.parametrize("damage", [halved, lambda file: file.write_bytes(b"")])
def test_damaged_weights_are_named(copied, damage):
    damage(copied.folder / "model.safetensors")
    with pytest.raises(runs.RunError, match=r"model\.safetensors does not fit.*train it again"):
        runs.load_model(copied)


def test_weights_of_another_network_are_refused(copied):
    other = networks.network("resnet18", "paper", 5).state_dict()
    save_file(other, copied.folder / "model.safetensors")
    with pytest.raises(runs.RunError, match=r"model\.safetensors does not fit its recipe"):
        runs.load_model(copied)


# Writing


def full_disk(*arguments, **options):
    raise OSError(28, "No space left on device")


STEPS = {
    "weights": (runs, "save_file"), "recipe": (Path, "write_text"),
    "tables": (pd.DataFrame, "to_csv"), "last step": (Path, "replace"),
    "to disk": (os, "fsync"),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_cannot_be_written_leaves_nothing(
    learn, recipe, split, tmp_path, monkeypatch, step
):
    table = fitting.predict(learn.model, split, recipe)
    monkeypatch.setattr(fitting, "predict", lambda *arguments: table)
    folder = runs.folder_of(tmp_path, recipe, split)
    monkeypatch.setattr(runs, "folder_of", lambda *arguments: folder)
    facts = runs.facts(recipe, split)
    monkeypatch.setattr(runs, "facts", lambda *arguments: facts)
    monkeypatch.setattr(*STEPS[step], full_disk)
    words = rf"{folder.name} could not be written .*No space left.*free some room"
    with pytest.raises(runs.RunError, match=words):
        runs.keep(learn, recipe, split, tmp_path)
    assert content(tmp_path) == {} and list(folder.parent.iterdir()) == []


def test_weights_that_cannot_be_written_are_named(learn, recipe, split, tmp_path, monkeypatch):
    gone = tmp_path / "gone" / "model.safetensors"
    monkeypatch.setattr(runs, "save_file", lambda state, file: save_file(state, gone))
    with pytest.raises(runs.RunError, match="could not be written"):
        runs.keep(learn, recipe, split, tmp_path / "runs")


def test_a_place_that_cannot_be_written_to_is_named(learn, recipe, split, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(runs.RunError, match="could not be written"):
        runs.keep(learn, recipe, split, tmp_path / "file")


def test_remains_of_a_killed_process_do_not_stand_in_the_way(learn, recipe, split, tmp_path):
    folder = runs.folder_of(tmp_path, recipe, split)
    left = folder.with_name(f".0123.{folder.name}")
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    assert runs.find(tmp_path, recipe, split) is None
    run = runs.keep(learn, recipe, split, tmp_path)
    assert run.folder == folder and sorted(content(folder)) == sorted(runs.FILES)


def test_the_state_of_a_network_that_trains_on_is_kept_as_it_is_now(learn, recipe, split, tmp_path):
    run = runs.keep(learn, recipe, split, tmp_path)
    weight = load_file(run.folder / "model.safetensors")["conv1.weight"]
    assert torch.equal(weight, learn.model.conv1.weight) and isinstance(learn.model, nn.Module)


# The networks of a page


def test_the_runs_of_a_page_are_those_of_its_table(kept, copied, tmp_path):
    report = tmp_path / "report"
    shutil.copytree(copied.folder.parents[2] / "herlev", report / "runs" / "herlev")
    frame = runs.table([copied])
    others = frame.assign(pipeline="baseline_all_logistic", run="")
    file = paths.predictions_file(report, "herlev", "paper", 0)
    with pytest.raises(runs.RunError, match=r"herlev-paper-0\.csv is not there: run"):
        runs.of_page(report, "herlev-paper-0")
    file.parent.mkdir()
    pd.concat([frame, others]).to_csv(file, index=False)
    found = runs.of_page(report, "herlev-paper-0")
    assert list(found) == ["combined"]
    assert found["combined"].predictions.equals(kept.predictions)
    shutil.rmtree(found["combined"].folder)
    with pytest.raises(runs.RunError, match="lacks"):
        runs.of_page(report, "herlev-paper-0")

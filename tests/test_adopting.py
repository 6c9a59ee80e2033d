"""Published runs that a configuration would train today are taken over; every other is refused with the reason."""

import json
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from cervix_utils import adopting, datasets, jobs, learners, networks, paths, recipes, references, runs, splits

ASKED = {"data_root": "", "valid_fraction": 0.4}  # of a few images a small share holds no image of some class


@pytest.fixture
def evaluation(tmp_path, monkeypatch, tiny_demo):
    """Function: publishes a run of ``config/demo.yaml`` on a few drawn cells, with two references, and returns its folder.

    Keyword arguments replace fields of recipe.json, None leaves one out; ``asked`` are the overrides of the configuration.
    """
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    monkeypatch.setenv("CERVIX_DATA", str(tiny_demo))

    def make(asked=(), **changed):
        settings = jobs.plan("demo", {**ASKED, **dict(asked)})[0] | {"protocol": "paper", "fold": 0}
        recipe = recipes.herlev(settings, "combined")
        table = splits.with_groups(datasets.load(settings["data_root"], "herlev")[0], recipe.phash_distance)
        split = splits.assign_parts(table, "herlev", "paper", 0, recipe.n_folds, recipe.valid_fraction, recipe.seed)
        weights = networks.describe_weights(recipe.weights, recipe.architecture)
        facts = {**asdict(recipe), "weights": weights, "initialisation": weights, "key": "abc"}
        facts |= {"data_fingerprint": datasets.fingerprint(split), **changed}
        predictions = references.as_predictions(split, np.full((len(split), 5), 0.2), "herlev")
        run = paths.run_dir(tmp_path / "published" / "runs", "herlev", "combined", "paper", 0)
        run.mkdir(parents=True)
        (run / "recipe.json").write_text(json.dumps({key: facts[key] for key in facts if facts[key] is not None}))
        pd.DataFrame({"epoch": [1]}).to_csv(run / "history.csv", index=False)
        predictions.to_csv(run / "predictions.csv", index=False)
        for name in ("baseline_priors", "combined_without_cell"):
            references.write(tmp_path / "published", "herlev", name, "paper", 0, predictions)
        return run

    return make


def content(folder):
    """Path -> bytes of every file below a folder; empty where there is none."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


ADOPTED = [
    "runs/herlev/combined/paper-0",
    "references/herlev/baseline_priors/paper-0.csv",
    "references/herlev/combined_without_cell/paper-0.csv",
]


@pytest.mark.parametrize("folds", [[0], [1]])
def test_a_published_run_of_todays_recipe_is_adopted_with_its_references(evaluation, tmp_path, capsys, folds):
    evaluation()
    asked = ASKED | {"herlev_folds": folds}
    assert adopting.adopt("demo", asked) == [tmp_path / "demo" / name for name in ADOPTED]
    assert content(tmp_path / "demo") == content(tmp_path / "published")
    names = ["herlev combined paper-0", "herlev baseline_priors paper-0", "herlev combined_without_cell paper-0"]
    assert capsys.readouterr().out.splitlines() == [f"{name}  adopted" for name in names]
    found, against = references.everything(tmp_path / "demo")  # as notebooks 5 and 6 see them
    assert [one.name for one in (*found, *against)] == names
    assert adopting.adopt("demo", asked) == []
    assert capsys.readouterr().out.splitlines() == [f"{name}  not adopted: one is there already" for name in names]


def test_an_adopted_run_is_read_by_the_notebook_of_its_fold_as_long_as_nothing_differs(
    evaluation, tmp_path, tiny_demo, monkeypatch, capsys
):
    evaluation()
    adopting.adopt("demo", ASKED)
    settings = jobs.plan("demo", ASKED)[0] | {"protocol": "paper", "fold": 0}
    recipe = recipes.herlev(settings, "combined")
    table = splits.with_groups(datasets.load(settings["data_root"], "herlev")[0], recipe.phash_distance)
    split = splits.assign_parts(table, "herlev", "paper", 0, recipe.n_folds, recipe.valid_fraction, recipe.seed)
    capsys.readouterr()
    run = runs.obtain(split, recipe, tmp_path / "demo" / "runs", "cpu")
    assert run.recipe["key"] == "abc" and (run.test["p_normal"] == 0.2).all()
    said = "herlev combined paper-0  adopted: trained elsewhere, read without its weights\n"
    assert capsys.readouterr().out == said
    with pytest.raises(runs.RunError, match=r"paper-0 lacks model.safetensors: delete the folder and run the notebook"):
        runs.load_model(run)
    monkeypatch.setattr(learners, "build", lambda *_: 1 / 0)  # it would be trained
    for other, parts in ((replace(recipe, lr=0.5), split), (recipe, split.assign(part=split["part"][::-1].to_numpy()))):
        with pytest.raises(ZeroDivisionError):
            runs.obtain(parts, other, tmp_path / "demo" / "runs", "cpu")


def test_a_field_that_an_old_recipe_lacks_counts_as_off(evaluation):
    evaluation(progressive=None, stain=None, window=None, balanced=None)
    assert len(adopting.adopt("demo", ASKED)) == 3


@pytest.mark.parametrize(
    ("changed", "asked", "words"),
    [
        ({"epochs": 3}, {}, "epochs: published 3, today 8"),
        ({"stain": 0.3, "std": [1, 1, 1]}, {}, "stain: published 0.3, today 0.0; std: published [1, 1, 1], today [0.2"),
        ({"progressive": None}, {"herlev_progressive": True}, "progressive: published without it, today True"),
        ({"initialisation": "resnet101, x"}, {}, "initialisation: published resnet101, x, today resnet101, random"),
        ({"data_fingerprint": "0123456789ab"}, {}, "data_fingerprint: published 0123456789ab, today "),
        ({"n_folds": 20}, {"herlev_n_folds": 20}, "split: class "),
    ],
)
def test_a_run_of_another_recipe_or_of_other_data_is_refused_with_the_reason(
    evaluation, tmp_path, capsys, changed, asked, words
):
    evaluation(**changed)
    assert adopting.adopt("demo", ASKED | asked) == []
    run, baseline, blanked = capsys.readouterr().out.splitlines()
    assert run.startswith(f"herlev combined paper-0  not adopted: {words}")
    assert baseline == "herlev baseline_priors paper-0  not adopted: no run of these test images is there"
    assert blanked == "herlev combined_without_cell paper-0  not adopted: the run of combined was not adopted"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("column", ["part", "group", "label"])
def test_a_run_on_another_split_is_refused(evaluation, capsys, column):
    file = evaluation() / "predictions.csv"
    table = runs.read_table(file)
    table.loc[[0, 1], column] = {"label": "normal"}.get(column, "none")  # the first two are carcinomas
    table.to_csv(file, index=False)
    assert adopting.adopt("demo", ASKED) == []
    words = f"not adopted: split: 2 of {len(table)} images have another group, part or label today"
    assert words in capsys.readouterr().out


def test_nothing_that_exists_is_overwritten_and_references_follow_its_test_images(evaluation, tmp_path, capsys):
    published = evaluation()
    own = tmp_path / "demo" / ADOPTED[0]
    own.mkdir(parents=True)
    for file in published.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    (own / "predictions.csv").write_text((own / "predictions.csv").read_text().replace("0.2,", "0.20,"))  # trained here
    before = content(own)
    assert adopting.adopt("demo", ASKED) == [tmp_path / "demo" / ADOPTED[1]]
    assert "combined_without_cell paper-0  not adopted: the run of combined was not" in capsys.readouterr().out
    (tmp_path / "demo" / ADOPTED[1]).write_text("own")
    assert adopting.adopt("demo", ASKED) == []
    assert content(own) == before and (tmp_path / "demo" / ADOPTED[1]).read_text() == "own"
    (tmp_path / "demo" / ADOPTED[1]).unlink()
    (own / "predictions.csv").write_text((own / "predictions.csv").read_text().replace(",test,", ",valid,"))
    assert adopting.adopt("demo", ASKED) == []


def test_weights_are_known_by_name_and_content_wherever_they_lie(evaluation, tmp_path, capsys):
    files = [tmp_path / folder / "w.pth" for folder in ("there", "here", "other")]
    for file, data in zip(files, (b"same", b"same", b"else")):
        file.parent.mkdir()
        file.write_bytes(data)
    evaluation({"weights_resnet50": str(files[0]), "weights_resnet101": "grown"})
    asked = ASKED | {"weights_resnet101": "grown"}
    assert adopting.adopt("demo", asked | {"weights_resnet50": str(files[2])}) == []
    said = capsys.readouterr().out
    assert "not adopted: initialisation: published resnet101 grown from: resnet50, state dict w.pth (sha256 " in said
    assert str(tmp_path) not in said and "weights:" not in said
    assert len(adopting.adopt("demo", asked | {"weights_resnet50": str(files[1])})) == 3


def test_the_command_line_takes_what_make_reports_takes(evaluation, tmp_path, tiny_demo):
    evaluation({"herlev_lr": 0.001})
    few = [f"data_root={tiny_demo}", "valid_fraction=0.4"]
    adopting.main(["demo", *few, "herlev_lr=1e-3", "herlev_folds=[1]"])
    assert (tmp_path / "demo" / ADOPTED[0]).is_dir()
    with pytest.raises(SystemExit, match=r"unknown key 'herlev_fold'.*did you mean 'herlev_folds'"):
        adopting.main(["demo", *few, "herlev_fold=[1]"])
    command = ["make", "-n", "adopt", "CONFIG=cpu", "DATA=/data", "SET=seed=1 herlev_folds=[1]"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert "adopting cpu data_root=/data seed=1 herlev_folds=[1]\n" in done

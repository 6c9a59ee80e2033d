"""Recipes: every parameter reaches its field, and every choice says where it comes from."""

from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import pytest
from toys import straddling

from cervix_utils import config
from cervix_utils.data import datasets, splits
from cervix_utils.training import losses, recipes

CELLS = ["classification", "regression", "combined"]
PHOTOGRAPHS = ["sgd", "modern"]


def settings(**changes) -> dict:
    papers = {"herlev_architecture": "resnet101", "colposcopy_architecture": "resnet50"}
    return config.validate(papers | changes, "test")


def make(pipeline: str, notebook: str = "", **changes) -> recipes.Recipe:
    notebook = notebook or ("colposcopy" if pipeline in PHOTOGRAPHS else "herlev")
    return recipes.make(settings(**changes), notebook, pipeline)


SHARED = {
    "seed": 7, "protocol": "grouped", "fold": 2, "valid_fraction": 0.2, "phash_distance": 4,
    "threads": 2, "precision": "float32",
}  # fmt: skip
BOTH = {"test_flips": 2}
MODERN = {"image_size": 96, "batch_size": 16, "epochs": 3, "lr": 0.01}


@pytest.mark.parametrize(
    ("pipeline", "plain", "prefixed"),
    [
        ("combined", SHARED | BOTH, MODERN | {"window": 60, "regression_weight": 0.5}),
        ("modern", SHARED | BOTH, MODERN | {"head": "linear"}),
        ("sgd", SHARED, {"image_size": 96, "head": "linear"}),
    ],
)  # fmt: skip
def test_every_parameter_reaches_its_field(pipeline, plain, prefixed):
    notebook = "herlev" if pipeline == "combined" else "colposcopy"
    chosen = plain | {f"{notebook}_{name}": value for name, value in prefixed.items()}
    recipe = make(pipeline, **chosen)
    wanted = plain | prefixed
    assert {name: getattr(recipe, name) for name in wanted} == wanted
    untouched = asdict(make(pipeline))
    assert {n for n, value in asdict(recipe).items() if untouched[n] != value} == set(wanted)


def test_the_task_is_the_data_set_of_the_notebook():
    assert make("combined").task == "herlev" and make("modern").task == "colposcopy"
    assert make("classification", "herlev", herlev_task="colposcopy").task == "colposcopy"
    with pytest.raises(datasets.DataError, match="unknown data set 'lungs'"):
        make("combined", herlev_task="lungs")


@pytest.mark.parametrize("pipeline", CELLS)
def test_pipelines_of_paper_h_differ_in_their_name_alone(pipeline):
    assert replace(make(pipeline), pipeline="combined") == make("combined")
    assert make(pipeline).architecture == "resnet101" and make(pipeline).n_folds == 4


def test_paper_cs_recipe_is_as_written():
    recipe = make("sgd", test_flips=8, colposcopy_lr=0.1)
    written = {
        "architecture": "resnet50", "head": "paper", "optimiser": "sgd", "lr": 0.001,
        "batch_size": 60, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "constant",
        "head_factor": 1.0, "flip": "none", "rotate": 0.0, "zoom": 1.0, "lighting": 0.0,
        "test_flips": 1,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in written} == written
    assert make("sgd", colposcopy_sgd_epochs=9, colposcopy_epochs=5).epochs == 9
    assert make("modern", colposcopy_sgd_epochs=9, colposcopy_epochs=5).epochs == 5


@pytest.mark.parametrize("pipeline", ["sgd", "modern"])
def test_pipelines_of_paper_c_work_on_the_cells_too(pipeline):
    cells = config.keys_of("03_herlev_resnet101")
    values = {key: value for key, value in settings(herlev_n_folds=7).items() if key in cells}
    recipe = recipes.make(values, "herlev", pipeline)
    assert recipe.task == "herlev" and recipe.n_folds == 7  # all pipelines of a page: one split
    assert recipe.epochs == values["herlev_epochs"]


@pytest.mark.parametrize(
    "name", ["combined_w0.3", "combined_seed", "corn", "../x", "soft", "Combined", "",
             "combined_seed1_seed2", "combined/../x"],
)  # fmt: skip
def test_pipelines_that_do_not_exist_are_refused(name):
    with pytest.raises(recipes.RecipeError, match=f"unknown pipeline '{name}': known are class"):
        make(name)


@pytest.mark.parametrize("name", [*CELLS, "combined_seed3"])
def test_a_control_has_the_loss_of_its_pipeline_but_no_notebook_asks_for_it(name):
    control = f"{name}_permuted"
    assert recipes.pipeline_of(control) is recipes.pipeline_of(name)
    with pytest.raises(recipes.RecipeError, match="is a control that notebook 4 trains"):
        make(control)


@pytest.mark.parametrize("pipeline", ["regression", "combined"])
def test_grades_are_needed_where_the_loss_is_of_grades(pipeline):
    with pytest.raises(recipes.RecipeError, match=f"'{pipeline}' needs grades, which colposcopy"):
        make(pipeline, "herlev", herlev_task="colposcopy")
    make("classification", "herlev", herlev_task="colposcopy")


@pytest.mark.parametrize(
    ("architecture", "resnet50", "resnet101", "other", "wanted"),
    [
        ("resnet50", "imagenet", "none", "c.pth", "imagenet"),
        ("resnet50", "a.pth", "none", "imagenet", "a.pth"),
        ("resnet101", "a.pth", "b.pth", "c.pth", "b.pth"),
        ("resnet101", "a.pth", "grown", "none", "grown:a.pth"),
        ("convnext_tiny", "a.pth", "grown", "imagenet", "imagenet"),
        ("convnext_tiny", "imagenet", "grown", "none", "none"),
        ("resnet18", "a.pth", "grown", "c.pth", "c.pth"),
    ],
)
def test_initial_weights_fit_the_architecture(architecture, resnet50, resnet101, other, wanted):
    weights = {"weights_resnet50": resnet50, "weights_resnet101": resnet101, "weights_other": other}
    assert make("combined", herlev_architecture=architecture, **weights).weights == wanted


def test_numbers_that_yaml_reads_as_integers_make_the_same_recipe():
    whole, real = make("combined", herlev_regression_weight=1), make("combined")
    assert whole == real and repr(whole) == repr(real)


def test_choices_say_where_they_come_from():
    table = recipes.choices(make("sgd", weights_resnet50="/home/alice/w.pth"))
    assert list(table.columns) == ["choice", "value", "source"]
    assert table["choice"].tolist() == [entry.name for entry in fields(recipes.Recipe)]
    rows = table.set_index("choice")
    assert rows.loc["batch_size"].tolist() == ["60", "as stated (paper C, section 4.1)"]
    assert rows.loc["weights", "value"] == "w.pth"  # no folder of this machine
    assert rows.loc["weights", "source"] == "departs from imagenet (paper C, section 4.1)"
    assert rows.loc["momentum"].tolist() == ["0.9", "not stated"]
    assert rows.loc["protocol", "source"] == "this project"
    assert (
        "grown:w.pth"
        in recipes.choices(
            make("combined", weights_resnet50="/a/w.pth", weights_resnet101="grown")
        )["value"].tolist()
    )


def test_choices_of_paper_h():
    recipe = make("combined", herlev_regression_weight=0.3, herlev_n_folds=5)
    rows = recipes.choices(recipe).set_index("choice")["source"]
    assert rows["architecture"] == "as stated (paper H, section 3.2.1)"
    assert rows["regression_weight"] == "departs from 1.0 (paper H, section 3.2.3)"
    assert rows["n_folds"] == "departs from 4 (paper H, section 3.2.4)"
    assert rows["lr"] == "not stated" and rows["threads"] == "this project"


def test_every_pipeline_has_a_label_and_its_own_name_of_a_loss():
    labels = [pipeline.label for pipeline in recipes.PIPELINES.values()]
    assert len(set(labels)) == len(labels) and all(labels)
    names = {entry.name for entry in fields(recipes.Recipe)}
    for name, pipeline in recipes.PIPELINES.items():
        assert set(pipeline.changes) <= names and set(pipeline.stated) <= names, name
        losses.Loss(pipeline.loss, 5)


def test_the_default_recipe_is_that_of_the_papers_cells():
    recipe = recipes.Recipe("herlev", "combined")
    assert recipe.name == "herlev combined paper-0"
    assert recipe.classes == list(datasets.get("herlev").classes)


@pytest.mark.parametrize("protocol", ["paper", "grouped"])
def test_parts_are_those_of_the_recipe(protocol):
    table = pd.DataFrame({"id": [f"image {k}" for k in range(60)], "source": "herlev"})
    table["name_group"] = [f"slide {k // 2}" for k in range(60)]
    table["phash"] = np.random.default_rng(0).integers(0, 2**63, 60, dtype=np.uint64)
    table["label"] = [datasets.get("herlev").classes[k // 2 % 5] for k in range(60)]
    changes = {"protocol": protocol, "fold": 1, "n_folds": 3, "valid_fraction": 0.4, "seed": 5}
    split = recipes.parts(table, replace(make("combined"), **changes))
    grouped = splits.with_groups(table, 8)
    assert split.equals(splits.assign_parts(grouped, "herlev", protocol, 1, 3, 0.4, 5))
    assert (split[["task", "protocol", "fold"]] == ["herlev", protocol, 1]).all(axis=None)
    assert (straddling(split) == []) == (protocol == "grouped")

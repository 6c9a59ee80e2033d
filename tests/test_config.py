"""Configurations: a slip of the pen stops before anything runs, and the plan holds the jobs that were asked for."""

import itertools

import pytest
import yaml

from cervix_utils import config, datasets, jobs, paths

SHIPPED = sorted(file for file in paths.CONFIG.glob("*.yaml") if file.stem != "schema")
NOTEBOOK = "03_herlev_resnet101"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("herlev_epoch", "herlev_epochs"),
        ("hrlev_lr", "herlev_lr"),
        ("Seed", "seed"),
        ("weights_resnet5O", "weights_resnet50"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(key, near):
    with pytest.raises(config.ConfigError, match=f"unknown key '{key}' in there: did you mean '{near}'"):
        config.validate({key: 1}, "there")


def test_unknown_key_near_nothing_lists_the_known_ones():
    with pytest.raises(config.ConfigError, match=r"unknown key 'qqqqqqqq'.*known are: .*seed"):
        config.validate({"qqqqqqqq": 1}, "there")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("herlev_epochs", "eight", "integer"),
        ("herlev_epochs", 2.5, "integer"),
        ("herlev_epochs", 0, "bigger than or equal to 1"),
        ("herlev_epochs", True, "integer"),
        ("show_cells", "yes", "boolean"),
        ("device", "gpu", "['auto', 'cpu', 'cuda']"),
        ("test_flips", 3, "[1, 2, 4]"),
        ("herlev_lr", 0, "number"),
        ("herlev_protocols", "paper", "array"),
        ("herlev_protocols", [], "array"),
        ("herlev_protocols", ["train_only"], "train_only"),
        ("herlev_folds", [0, 0], "must contain unique items"),
        ("data_root", None, "string"),
        ("valid_fraction", 0.6, "smaller than or equal to 0.5"),
        pytest.param("herlev_epochs", 8.0, "integer"),
        pytest.param("herlev_lr", float("nan"), "number"),
        pytest.param("herlev_lr", float("inf"), "number"),
    ],
)
def test_wrong_value_names_the_key_what_is_allowed_and_what_it_is_for(key, value, words):
    with pytest.raises(config.ConfigError) as error:
        config.validate({key: value}, "there")
    message = str(error.value)
    assert message.startswith(f"key '{key}' in there: ")
    assert words in message and config.schema()[key]["description"] in message


def test_a_number_that_yaml_reads_as_text_gets_a_hint(tmp_path):
    (tmp_path / "x.yaml").write_text("herlev_lr: 1e-3\n")
    with pytest.raises(config.ConfigError, match=r"'1e-3' will not do, it must be number.*write 1\.0e-3, not 1e-3"):
        config.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("herlev_lr: 1.0e-3\n")
    assert config.load(tmp_path / "x.yaml")["herlev_lr"] == 0.001


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_are_valid_and_name_every_key_that_the_workflow_does_not_set(file):
    values = yaml.safe_load(file.read_text())
    assert config.load(file) == config.validate({}, "defaults") | values
    assert values.keys() == {key for key, entry in config.schema().items() if entry.get("set_by") != "workflow"}


def test_demo_is_the_defaults_of_the_schema():
    assert config.load(paths.CONFIG / "demo.yaml") == {key: entry["default"] for key, entry in config.schema().items()}


def test_every_key_says_what_it_is_for_and_who_reads_it():
    for key, entry in config.schema().items():
        assert entry["description"].endswith(".") and "unit" in entry and ("type" in entry or "enum" in entry), key
        assert set(entry["notebooks"]) <= {1, 2, 3, 4, 5, 6}, key


def test_overrides_win_and_are_checked():
    demo = paths.CONFIG / "demo.yaml"
    assert config.load(demo, {"seed": 7}) == config.load(demo) | {"seed": 7}
    with pytest.raises(config.ConfigError, match=r"'sead' in demo.yaml with SET: did you mean 'seed'"):
        config.load(demo, {"sead": 7})


@pytest.mark.parametrize("text", ["seed: [1", "- seed", "5"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(config.ConfigError, match=r"x\.yaml"):
        config.load(tmp_path / "x.yaml")


def test_missing_configuration_names_those_there_are(tmp_path):
    with pytest.raises(config.ConfigError, match=r"no configuration .*none\.yaml.*demo, paper, quick"):
        config.load(tmp_path / "none.yaml")


def namespace(*cells: str, **changed) -> dict:
    """What ``globals()`` holds in a notebook: its parameters, and IPython's history of cells."""
    values = {key: entry["default"] for key, entry in config.schema().items() if key in config.keys_of(NOTEBOOK)}
    return {"In": ["", "import os", *cells], "os": object(), **values, **changed}


def test_check_returns_the_parameters_of_the_notebook_alone():
    found = config.check(namespace("# Parameters\nfold = 2\n", fold=2), NOTEBOOK)
    assert found["fold"] == 2 and list(found) == config.keys_of(NOTEBOOK)
    assert "attribution_steps" not in found and "os" not in found


@pytest.mark.parametrize(
    "cell",
    [
        "# Parameters\nherlev_epoch = 3\n",
        "# Parameters\nfold = 1\nherlev_epoch = 3\n",
        '# Parameters\nherlev_epoch = "x = 1"\n',
    ],
)
def test_check_refuses_a_parameter_that_papermill_injected_but_no_cell_declares(cell):
    with pytest.raises(config.ConfigError, match=rf"'herlev_epoch' in the parameters of {NOTEBOOK}.*'herlev_epochs'"):
        config.check(namespace(cell, "later = 1", herlev_epoch=3), NOTEBOOK)


def test_check_leaves_names_of_other_cells_alone():
    config.check(namespace("herlev_epoch = 3", "# a comment\nepoch = 4", herlev_epoch=3), NOTEBOOK)


def test_check_refuses_a_wrong_type():
    with pytest.raises(config.ConfigError, match="key 'fold' in the parameters of 03_herlev_resnet101"):
        config.check(namespace("# Parameters\nfold = '2'", fold="2"), NOTEBOOK)


@pytest.fixture
def settings(tiny_demo):
    """Overrides of the demo configuration that need no drawing."""
    return {"data_root": str(tiny_demo)}


def test_plan_has_one_job_a_notebook_protocol_and_fold_with_its_parameters(settings):
    asked = {"herlev_folds": [0, 2], "colposcopy_protocols": ["grouped", "train_only"], "herlev_epochs": 3}
    planned, found = jobs.plan("demo", settings | asked)
    expected = {"01_data_exploration", "04_explainability", "05_comparison", "06_calibration"}
    expected |= {f"{jobs.COLPOSCOPY}_{name}-0" for name in asked["colposcopy_protocols"]}
    expected |= {f"{jobs.HERLEV}_{name}-{fold}" for name, fold in itertools.product(("paper", "grouped"), (0, 2))}
    assert list(found) == sorted(expected)
    for stem, values in found.items():
        assert list(values) == config.keys_of(jobs.notebook_of(stem)), stem
        assert all(values[key] == planned[key] for key in values if key not in ("protocol", "fold", "photographs_run"))
    training = found[f"{jobs.HERLEV}_grouped-2"]
    assert (training["protocol"], training["fold"], training["herlev_epochs"]) == ("grouped", 2, 3)
    assert (found[jobs.EXPLAIN]["protocol"], found[jobs.EXPLAIN]["fold"]) == ("paper", 0)
    assert found[jobs.EXPLAIN]["photographs_run"] == "modern/grouped-0"
    assert {values["report_name"] for values in found.values()} == {"demo"}
    asked |= {"attribution_images": 0, "herlev_pipelines": ["regression"]}  # without the pipeline to be explained
    without = jobs.plan("demo", settings | asked)[1]
    assert list(without) == sorted(expected - {jobs.EXPLAIN})


def test_plan_runs_a_notebook_after_those_it_reads(settings):
    found = jobs.plan("demo", settings | {"herlev_folds": [1, 0], "herlev_protocols": ["grouped"]})[1]
    needs = {stem: jobs.needs(stem, found) for stem in found}
    training = [stem for stem in found if stem[:2] in ("02", "03")]
    assert needs.pop("05_comparison") == needs.pop("06_calibration") == training and len(training) == 4
    assert needs.pop(jobs.EXPLAIN) == [f"{jobs.HERLEV}_grouped-1", f"{jobs.COLPOSCOPY}_paper-0"]
    assert set(map(tuple, needs.values())) == {()}


@pytest.mark.parametrize(
    ("stem", "notebook"),
    [
        ("03_herlev_resnet101_grouped-0", NOTEBOOK),
        ("02_colposcopy_resnet50_train_only-12", "02_colposcopy_resnet50"),
        ("05_comparison", "05_comparison"),
        ("06_calibration", "06_calibration"),
    ],
)
def test_report_names_lead_back_to_their_notebook(stem, notebook):
    assert jobs.notebook_of(stem) == notebook
    assert (paths.NOTEBOOKS / f"{notebook}.ipynb").is_file()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"data_root": "/no/such/folder"}, ["/no/such/folder", "does not exist", "herlev"]),
        ({"data_root": ""}, ["DATA=", "CERVIX_DATA"]),
        ({"weights_resnet50": "/no/such/weights.pth"}, ["weights_resnet50", "/no/such/weights.pth", "'imagenet'", "'none'"]),
        ({"weights_resnet101": "/no/such/weights.pth"}, ["weights_resnet101", "/no/such/weights.pth"]),
        ({"herlev_folds": [0, 4]}, ["herlev_folds", "[4]", "herlev_n_folds 4"]),
        ({"herlev_folds": [3], "herlev_n_folds": 3}, ["herlev_folds", "[3]"]),
        ({"attribution_pipeline": "regression", "herlev_pipelines": ["combined"]}, ["attribution_pipeline", "regression"]),
        ({"herlev_lr": "1e-3"}, ["herlev_lr", "1.0e-3"]),
        pytest.param({"weights_resnet101": "grown", "weights_resnet50": "none"}, ["weights_resnet50"]),
        pytest.param({"weights_resnet50": "grown"}, ["weights_resnet50"]),
        pytest.param({"fold": 2}, ["fold"]),
        pytest.param({"protocol": "grouped"}, ["protocol"]),
    ],
    ids=str,
)  # fmt: skip
def test_plan_stops_before_anything_runs(settings, asked, words):
    with pytest.raises(ValueError) as error:
        jobs.plan("demo", settings | asked)
    assert all(word in str(error.value) for word in words), error.value


def test_plan_of_a_data_root_with_one_data_set_names_the_other(tmp_path):
    (tmp_path / "herlev").mkdir()
    with pytest.raises(datasets.DataError, match=r"no folder 'mobileodt' \(found: herlev\)"):
        jobs.plan("demo", {"data_root": str(tmp_path)})

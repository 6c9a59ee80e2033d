"""Configurations: a slip of the pen stops before anything runs, and all slips are named at once."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from cervix_utils import config, paths
from cervix_utils.data import datasets, splits

SHIPPED = sorted(file.stem for file in paths.CONFIG.glob("*.yaml") if file.stem != "schema")
NOTEBOOK = "03_herlev_resnet101"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Function: the configuration ``x`` with this text, in a folder of its own."""
    config.schema()
    monkeypatch.setattr(paths, "CONFIG", tmp_path)

    def put(text: str, name: str = "x") -> None:
        (tmp_path / f"{name}.yaml").write_text(text)

    return put


def load(name: str) -> dict:
    """A configuration, checked and complete."""
    return config.validate(config.read(name), f"{name}.yaml")


# Keys and values


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("herlev_epoch", "herlev_epochs"),
        ("hrlev_lr", "herlev_lr"),
        ("Seed", "seed"),
        ("weights_resnet5O", "weights_resnet50"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key, near):
    words = f"there: unknown key '{key}': did you mean '{near}'"
    with pytest.raises(config.ConfigError, match=words):
        config.validate({key: 1}, "there")


@pytest.mark.parametrize("key", ["qqqqqqqq", 5])
def test_an_unknown_key_near_nothing_lists_the_known_ones(key):
    with pytest.raises(config.ConfigError, match=rf"unknown key '{key}': known are: .*seed"):
        config.validate({key: 1}, "there")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("herlev_epochs", "eight", "integer"),
        ("herlev_epochs", 2.5, "integer"),
        ("herlev_epochs", 0, "bigger than or equal to 1"),
        ("herlev_epochs", 10**9, "smaller than or equal to 10000"),
        ("herlev_epochs", True, "integer"),
        ("herlev_epochs", 8.0, "without a decimal point"),
        ("n_boot", 10**9, "smaller than or equal to 20000"),
        ("show_cells", "yes", "boolean"),
        ("show_cells", 1, "boolean"),
        ("device", "gpu", "['auto', 'cpu', 'cuda']"),
        ("test_flips", 3, "[1, 2, 4, 8]"),
        ("test_flips", 4.0, "[1, 2, 4, 8]"),
        ("test_flips", True, "[1, 2, 4, 8]"),
        ("herlev_lr", 0, "number"),
        ("herlev_lr", math.nan, "must be finite"),
        ("herlev_lr", math.inf, "must be finite"),
        ("herlev_protocols", "paper", "array"),
        ("herlev_protocols", [], "array"),
        ("herlev_protocols", ["train_only"], "train_only"),
        ("herlev_folds", [0, 0], "must contain unique items"),
        ("herlev_folds", [0.0], "without a decimal point"),
        ("herlev_folds", [True], "integer"),
        ("herlev_folds", [-1], "bigger than or equal to 0"),
        ("data_root", None, "string"),
        ("valid_fraction", 0.6, "smaller than or equal to 0.5"),
    ],
)
def test_a_wrong_value_names_the_key_what_is_allowed_and_what_it_is_for(key, value, words):
    with pytest.raises(config.ConfigError) as error:
        config.validate({key: value}, "there")
    message = str(error.value)
    assert message.startswith(f"there: key '{key}': {value!r} will not do, it ")
    assert words in message and config.schema()[key]["description"] in message


def test_all_problems_are_named_at_once():
    wrong = {"herlev_epoch": 3, "n_boot": 10**9, "device": "gpu", "fold": -1, "seed": 7}
    with pytest.raises(config.ConfigError) as error:
        config.validate(wrong, "there")
    lines = str(error.value).splitlines()
    assert lines[0] == "there: " and len(lines) == 5
    assert all(line.startswith("- ") for line in lines[1:])
    assert all(f"key '{key}'" in str(error.value) for key in wrong if key != "seed")


def test_what_will_not_do_is_left_at_its_default_for_further_checks():
    complete, problems = config.examine({"n_boot": 10**9, "seed": 7, "sead": 1})
    assert complete == config.validate({"seed": 7}, "there") and len(problems) == 2


# Extremes


def extremes(entry: dict) -> list:
    """The least and the greatest value that an entry of the schema allows, where there are any."""
    if "enum" in entry or entry["type"] == "boolean":
        return entry.get("enum", [False, True])
    if entry["type"] == "string":
        return [] if "pattern" in entry else ["a" * entry.get("minLength", 0)]
    if entry["type"] == "array":
        single = [[item] for item in extremes(entry["items"])]
        return single if entry.get("minItems") else [[], *single]
    low, high = entry.get("minimum"), entry.get("maximum")
    if "exclusiveMinimum" in entry:
        low = float(np.nextafter(entry["exclusiveMinimum"], math.inf))
    if "exclusiveMaximum" in entry:
        high = float(np.nextafter(entry["exclusiveMaximum"], -math.inf))
    return [value for value in (low, high) if value is not None]


@pytest.mark.parametrize("key", config.schema())
def test_the_extremes_of_every_key_are_accepted(key):
    entry = config.schema()[key]
    for value in [entry["default"], *extremes(entry)]:
        assert config.validate({key: value}, "there")[key] == value


@pytest.mark.parametrize(
    "key", [k for k, e in config.schema().items() if e.get("type") in ("integer", "number")]
)
def test_what_lies_beyond_the_extremes_is_refused(key):
    entry = config.schema()[key]
    steps = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
    beyond = [entry[name] + step for name, step in steps.items() if name in entry]
    assert beyond
    for value in beyond:
        with pytest.raises(config.ConfigError, match=f"key '{key}'"):
            config.validate({key: value}, "there")


def test_the_greatest_seed_and_fold_make_a_split():
    schema = config.schema()
    n_folds, seed = schema["herlev_n_folds"]["maximum"], schema["seed"]["maximum"]
    table = pd.DataFrame({"id": [f"c{k}" for k in range(400)]})
    table["label"] = [datasets.get("herlev").classes[k % 5] for k in range(400)]
    table["group"], table["source"] = table["id"], "herlev"
    for protocol in ("paper", "grouped"):
        split = splits.assign_parts(table, "herlev", protocol, n_folds - 1, n_folds, 0.15, seed)
        assert set(split["part"]) == {"train", "valid", "test"}


# Files


def test_a_number_that_yaml_reads_as_text_gets_a_hint(write):
    write("herlev_lr: 1e-3\n")
    words = r"'1e-3' will not do, it must be number.*write 1\.0e-3, not 1e-3"
    with pytest.raises(config.ConfigError, match=words):
        load("x")
    write("herlev_lr: 1.0e-3\n")
    assert load("x")["herlev_lr"] == 0.001


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid_and_name_only_what_differs(name):
    values = yaml.safe_load((paths.CONFIG / f"{name}.yaml").read_text()) or {}
    defaults = config.validate({}, "defaults")
    assert load(name) == defaults | values
    assert [key for key, value in values.items() if defaults[key] == value] == []
    assert not [key for key in values if "set_by" in config.schema()[key]]


def test_the_demo_is_the_defaults_of_the_schema():
    assert config.read("demo") == {}
    defaults = {key: entry["default"] for key, entry in config.schema().items()}
    assert load("demo") == defaults


def test_every_key_says_what_it_is_for_and_who_reads_it():
    for key, entry in config.schema().items():
        assert entry["description"].endswith(".") and "unit" in entry, key
        assert "type" in entry or "enum" in entry, key
        assert set(entry["notebooks"]) <= set(range(1, 9)), key
        assert entry["notebooks"] or key.endswith(("_protocols", "_folds")), key


def test_overrides_win(write):
    write("seed: 1\nfold: 2\n")
    assert config.read("x") == {"seed": 1, "fold": 2}
    assert config.read("x", {"seed": 7, "device": "cpu"}) == {"seed": 7, "fold": 2, "device": "cpu"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-1", -1), ("true", True), ("False", False),
     (["0", "2"], [0, 2]), (["paper"], ["paper"]),
     ("none", "none"), ("1e-3", "1e-3"), (0.001, 0.001), ("", "")],
)  # fmt: skip
def test_values_of_the_command_line_are_read_as_yaml(write, text, value):
    write("")
    assert config.read("x", {"key": text}) == {"key": value}


@pytest.mark.parametrize("text", ["seed: [1", "- seed", "5", "text"])
def test_a_file_that_is_no_mapping_is_named(write, text):
    write(text)
    with pytest.raises(config.ConfigError, match=r"x\.yaml"):
        load("x")


def test_a_file_that_is_no_text_is_named(write, tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(config.ConfigError, match=r"x\.yaml is not YAML"):
        load("x")


@pytest.mark.parametrize(
    "name", ["none", "../config/demo", "demo.yaml", "config/demo", "schema", "", "/etc/passwd"]
)
def test_a_missing_configuration_names_those_there_are(name):
    with pytest.raises(config.ConfigError, match=r"no configuration .*cpu, demo, else.*quick"):
        load(name)


# The parameters of a running notebook


def namespace(*cells: str, **changed) -> dict:
    """What ``globals()`` holds in a notebook: its parameters, and IPython's history of cells."""
    entries = config.schema()
    values = {key: entries[key]["default"] for key in config.keys_of(NOTEBOOK)}
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
    words = rf"the parameters of {NOTEBOOK}: unknown key 'herlev_epoch': .*'herlev_epochs'"
    with pytest.raises(config.ConfigError, match=words):
        config.check(namespace(cell, "later = 1", herlev_epoch=3), NOTEBOOK)


def test_check_leaves_names_of_other_cells_alone():
    cells = ("herlev_epoch = 3", "# a comment\nepoch = 4")
    config.check(namespace(*cells, herlev_epoch=3), NOTEBOOK)


def test_check_refuses_a_wrong_type():
    with pytest.raises(config.ConfigError, match=f"the parameters of {NOTEBOOK}: key 'fold'"):
        config.check(namespace("# Parameters\nfold = '2'", fold="2"), NOTEBOOK)

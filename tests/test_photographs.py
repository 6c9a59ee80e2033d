"""Maps of photographs: which are explained, for which type, and how much of the evidence lies in the middle."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from cervix_utils import attribution, datasets, images, networks, photographs, runs
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

TYPES = CLASSES["colposcopy"]
METHODS = ["grad_cam", "guided_grad_cam", "occlusion"]


def pictured(**maps: np.ndarray) -> photographs.Pictured:
    n, _, side = next(iter(maps.values())).shape
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "label": TYPES[0]})
    return photographs.Pictured("a run", table, np.zeros((n, 3, side, side), np.uint8), maps)


def test_an_even_map_has_a_quarter_of_its_evidence_in_the_middle_and_a_map_of_the_middle_all():
    middle, edge = np.zeros((3, 16, 16)), np.ones((3, 16, 16))
    middle[:, 4:12, 4:12], edge[:, 4:12, 4:12] = 2.0, 0.0
    found = pictured(even=np.full((3, 16, 16), 0.3), middle=middle, edge=edge).middle()
    assert found.index.tolist() == ["even", "middle", "edge"]
    np.testing.assert_allclose(found[["mean", "lowest", "highest"]], [[0.25] * 3, [1] * 3, [0] * 3], rtol=0, atol=1e-12)
    assert (found["images"] == 3).all()


def test_evidence_against_a_type_and_maps_without_evidence_do_not_count():
    maps = np.full((4, 8, 8), -1.0)
    maps[0, 4, 4], maps[1, 0, 0], maps[2, 3, 3], maps[2, 0, 7] = 5, 5, 3, 1
    found = pictured(mixed=maps, nothing=np.zeros((4, 8, 8))).middle()
    expected = {"images": 3, "mean": (1 + 0 + 0.75) / 3, "lowest": 0, "highest": 1}
    assert found.loc["mixed"].to_dict() == pytest.approx(expected, abs=1e-12)
    assert found.loc["nothing", "images"] == 0 and found.loc["nothing", "mean":].isna().all()


# A run of a small network, whose answers are written by hand


@pytest.fixture(scope="module")
def table(tiny_demo) -> pd.DataFrame:
    table = datasets.load(str(tiny_demo), "colposcopy", 0)[0]
    return table[table["label"] != ""].reset_index(drop=True)


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> runs.Run:
    """Untrained; every photograph is a test photograph; names all rightly but the first of each type."""
    torch.manual_seed(0)
    recipe = {"task": "colposcopy", "pipeline": "modern", "protocol": "paper", "fold": 0, "architecture": "resnet18",
              "head": "paper", "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}  # fmt: skip
    said = pd.Categorical(table["label"], TYPES).codes.astype(int)
    first = ~table["label"].duplicated()
    said = np.where(first, (said + 1) % 3, said)
    p = pd.DataFrame(0.1 + 0.7 * np.eye(3)[said], columns=[f"p_{name}" for name in TYPES])
    predictions = table[["id", "label"]].assign(group="g", part="test").join(p)
    history = pd.DataFrame({"epoch": [1]})
    folder = tmp_path_factory.mktemp("photographs") / "modern" / "paper-0"
    return runs.write(folder, networks.network("resnet18", "paper", 3).eval(), recipe, history, predictions)


@pytest.fixture(scope="module")
def found(run, tiny_demo, one_thread) -> photographs.Pictured:
    return photographs.explain(run.folder, str(tiny_demo), 0, "cpu", most=2)


def test_the_first_rightly_named_photographs_of_each_type_are_explained(found, table, run):
    expected = [table[table["label"] == name]["id"].iloc[1:3].tolist() for name in TYPES]
    assert found.table["id"].tolist() == [*itertools.chain(*expected)]
    assert found.table["label"].is_monotonic_increasing and list(found.table) == ["id", "label"]
    assert found.name == "colposcopy modern paper-0"
    paths = table.set_index("id").loc[found.table["id"], "path"]
    np.testing.assert_array_equal(found.pictures, images.squares(paths, 32))


def test_maps_are_those_of_the_type_that_is_named(found, run):
    network = attribution.FromPixels(runs.load_model(run), run.recipe["mean"], run.recipe["std"])
    pixels = attribution.to_float(found.pictures)
    blurred = attribution.baseline("blurred", pixels)
    target = torch.tensor([TYPES.index(name) for name in found.table["label"]])
    assert list(found.maps) == METHODS and target.unique().tolist() == [0, 1, 2]
    slow = [
        attribution.grad_cam(network, pixels, target),
        attribution.guided_grad_cam(network, pixels, target),
        attribution.occlusion(network, pixels, blurred, target),
    ]
    for name, maps in zip(METHODS, slow):
        np.testing.assert_allclose(found.maps[name], maps, rtol=0, atol=1e-6)
        assert found.maps[name].shape == (len(found.table), 32, 32)
    other = attribution.occlusion(network, pixels, blurred, (target + 1) % 3)
    assert np.abs(found.maps["occlusion"] - other).max() > 1e-4
    assert found.middle()["images"].between(0, len(found.table)).all()


@pytest.mark.parametrize(("grid", "way"), [(False, "bilinear"), (True, "nearest")])
def test_the_grid_of_grad_cam_is_shown_on_demand_and_eight_of_a_type_are_enough(
    run, tiny_demo, table, monkeypatch, grid, way
):
    seen = []
    for name in METHODS:
        monkeypatch.setattr(
            attribution,
            name,
            lambda network, pixels, *_, name=name, **options: (
                seen.append((name, options)) or np.zeros(pixels[:, 0].shape)
            ),
        )
    found = photographs.explain(run.folder, str(tiny_demo), 0, "cpu", grid=grid)
    assert ("grad_cam", {"enlarge": way}) in seen and len(seen) == 3
    right = table.groupby("label").size() - 1
    assert found.table["label"].value_counts().to_dict() == right.clip(upper=8).to_dict()
    assert right.max() > 8


def test_a_run_that_names_none_rightly_or_saw_other_data_is_refused(run, tiny_demo, tmp_path):
    words = "colposcopy modern paper-0: no rightly named test photograph is in .*: give the data that it was trained on"
    wrong = run.predictions.assign(label=lambda t: [TYPES[(TYPES.index(name) + 1) % 3] for name in t["label"]])
    wrong = wrong[~wrong["label"].eq(wrong.filter(like="p_").idxmax(axis=1).str.removeprefix("p_"))]
    for index, predictions in enumerate([wrong, run.predictions.assign(id=run.predictions["id"] + "x")]):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(run.recipe))
        run.history.to_csv(folder / "history.csv", index=False)
        predictions.to_csv(folder / "predictions.csv", index=False)
        with pytest.raises(attribution.AttributionError, match=words):
            photographs.explain(folder, str(tiny_demo), 0, "cpu")


def test_a_run_without_its_network_is_named(run, tiny_demo, tmp_path):
    for name in runs.FILES[1:]:
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    with pytest.raises(
        runs.RunError, match=r"lacks model.safetensors: delete the folder and run the notebook that trains it"
    ):
        photographs.explain(tmp_path, str(tiny_demo), 0, "cpu")
    with pytest.raises(runs.RunError, match=r"lacks recipe.json"):
        photographs.explain(tmp_path / "nowhere", str(tiny_demo), 0, "cpu")

"""One's own images: the contract beside the weights, bad input, and whether an image is like the
training images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision import models

from cervix_utils import paths
from cervix_utils.data import images, tables
from cervix_utils.evaluation import calibration, metrics
from cervix_utils.explanation import own
from cervix_utils.report import pages
from cervix_utils.training import fitting, learners, runs
from workflow import jobs

pytestmark = pytest.mark.usefixtures("one_thread")
PIPELINES = ("combined", "regression", "modern")


@pytest.fixture(scope="module")
def kept(tiny_demo, tmp_path_factory, one_thread):
    """Function: (run, split) of an untrained network of a pipeline, with all its files."""
    folder, made = tmp_path_factory.mktemp("own"), {}

    def make(pipeline: str = "combined"):
        if pipeline not in made:
            recipe = toys.recipe_of(pipeline, test_flips=4, precision="float32")
            split = toys.split_of(tiny_demo, recipe)
            learn = learners.build(split, recipe, "cpu")
            made[pipeline] = runs.keep(learn, recipe, split, folder), split
        return made[pipeline]

    return make


def plain_network(said: dict, weights) -> torch.nn.Module:
    """The network that ``model.json`` describes, by torchvision alone."""
    state, model = load_file(weights), models.get_model(said["architecture"], weights=None)
    head = {key: value for key, value in state.items() if key.startswith("fc.")}
    sizes = [value.shape for key, value in sorted(head.items()) if key.endswith("weight")]
    layers = [torch.nn.Linear(width, n) for n, width in sizes]
    model.fc = torch.nn.Sequential(
        *layers[:1], *(m for x in layers[1:] for m in (torch.nn.ReLU(), x))
    )
    model.load_state_dict(state)
    return model.eval()


def plain_answer(said: dict, model: torch.nn.Module, file) -> np.ndarray:
    """Probabilities or score of a picture as ``model.json`` says, without this package."""
    picture = Image.open(file).convert("RGB")
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = tuple(int(value) for value in np.median(edge, axis=0))
    side = said["image_size"]
    square = ImageOps.pad(picture, (side, side), Image.Resampling.BILINEAR, fill)
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(said["mean"]).view(3, 1, 1)) / torch.tensor(said["std"]).view(3, 1, 1)
    views = [x, x.flip(3), x.flip(2), x.flip(2, 3)][: said["test_flips"]]
    with torch.no_grad():
        outputs = torch.cat([model(view) for view in views])
    if said["output"] == "score":
        return outputs.mean(dim=0).numpy()
    p = outputs.softmax(dim=1).mean(dim=0) ** (1 / said["temperature"])
    return (p / p.sum()).numpy()


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_another_program_gets_the_same_answer_from_the_contract(kept, pipeline):
    run, split = kept(pipeline)
    said = own.contract(run)
    model = plain_network(said, run.folder / said["weights"])
    test = split[split["part"] == "test"].head(3)
    pictures = images.squares(test["path"], said["image_size"], said["window"])
    recipe = runs.recipe_of(run)
    values = fitting.probabilities(runs.load_model(run), pictures, recipe, recipe.test_flips)
    table = tables.as_predictions(test, values, said["task"])
    mine = runs.table([replace(run, predictions=table)])
    mine = calibration.scaled(mine, said["temperature"]) if said["temperature"] else mine
    columns = ["score"] if said["output"] == "score" else [f"p_{name}" for name in said["classes"]]
    plain = [plain_answer(said, model, file) for file in test["path"]]
    np.testing.assert_allclose(plain, mine[columns].to_numpy(), atol=2e-5)
    assert (said["temperature"] is None) == (pipeline == "regression")


def test_the_contract_is_written_once_and_says_where_it_may_be_used(kept):
    run, _ = kept()
    said = own.contract(run)
    file = run.folder / own.CONTRACT
    assert json.loads(file.read_text()) == said and file.stat().st_size < 4000
    assert said["classes"][0] == "normal" and said["ordered"] and said["terms"]
    assert own.contract(kept("modern")[0])["half_width" in said and "limit"] is None
    before = file.stat().st_mtime_ns
    assert own.contract(run) == said and file.stat().st_mtime_ns == before


def test_limits_hold_what_they_promise(kept):
    """With 40 groups the limit is the 37th distance; the right grade of 37 lies within."""
    run, _ = kept()
    rng, n = np.random.default_rng(0), 40
    classes = list(runs.recipe_of(run).classes)
    rows = pd.DataFrame({"id": range(n), "group": range(n), "part": "valid"}).astype(str)
    rows["label"] = rng.choice(classes, n)
    p = rng.dirichlet(np.ones(5), n)
    table = tables.as_predictions(rows, p, "herlev")
    said = own.describe(replace(run, predictions=table))
    scaled = calibration.scaled(runs.table([replace(run, predictions=table)]), said["temperature"])
    true = metrics.true_class(scaled)
    distances = calibration.distance(scaled)[np.arange(n), true]
    assert (distances <= said["limit"]).sum() == 37  # ceil(41 * 0.9)
    assert (np.abs(scaled["score"] - true - 1) <= said["half_width"] + 1e-12).sum() == 37


def test_a_network_of_the_whole_training_part_promises_nothing(kept):
    run, _ = kept()
    whole = run.predictions.assign(part=run.predictions["part"].replace("valid", "train"))
    said = own.describe(replace(run, predictions=whole))
    assert said["temperature"] is said["limit"] is said["half_width"] is None
    assert said["output"] == "logits" and said["classes"] == own.describe(run)["classes"]


# Bad input


def spoil(folder, write_image):
    """One file of each kind that people give; the good ones are the last four."""
    folder.mkdir()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "deep.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    Image.new("L", (30, 20), 90).save(folder / "grey.png")
    Image.new("CMYK", (30, 20)).save(folder / "cmyk.jpg")
    write_image(folder / "good.png", 3, (30, 20))
    write_image(folder / "in" / "<b>.png", 4, (30, 20))
    return folder


def test_what_cannot_be_used_is_named_and_the_others_go_on(tmp_path, write_image, write_mask):
    folder = spoil(tmp_path / "mine", write_image)
    write_mask(folder / "good-d.bmp", (30, 20))
    write_mask(folder / "grey-d.bmp", (9, 9))
    table = own.read(str(folder)).set_index("id")
    reasons = table["reason"].to_dict()
    assert reasons["empty.png"] == "empty file (0 bytes)" and reasons["text.png"] == "not an image"
    assert "(I;16 pixels, 8 bits a colour are needed)" in reasons["deep.png"]
    assert "damaged or too large (Image size (400000000 pixels) exceeds" in reasons["huge.png"]
    good = sorted(table.index[table["reason"] == ""])
    assert good == ["cmyk.jpg", "good.png", "grey.png", "in/<b>.png"]
    assert (
        table.at["good.png", "mask"].endswith("good-d.bmp") and table.at["grey.png", "mask"] == ""
    )
    assert list(own.read(str(folder / "g*.png"))["id"]) == ["good.png", "grey.png"]
    assert list(own.read(str(folder / "good.png"))["id"]) == ["good.png"]
    strange = write_image(tmp_path / "a picture [1].png", 5)
    assert list(own.read(str(strange))["id"]) == [strange.name]


@pytest.mark.parametrize(
    ("name", "why"), [("none*", "no file there"), ("text.png", "not an image")]
)
def test_nothing_usable_is_one_clear_line(tmp_path, write_image, name, why):
    folder = spoil(tmp_path / "mine", write_image)
    with pytest.raises(own.OwnImageError, match=f"IMAGES=.*{why}.*Give a picture"):
        own.read(str(folder / name))


@pytest.mark.slow
def test_the_case_of_a_folder_of_mixed_pictures(
    kept, tiny_demo, tmp_path, monkeypatch, write_image
):
    """The notebook as ``make case`` runs it: bad files are left out, strange ones are flagged."""
    run, split = kept()
    folder = spoil(tmp_path / "mine", write_image)
    cell = split[split["part"] == "train"].iloc[0]
    shutil.copy(cell["path"], folder / "known.bmp")
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    jobs.case(str(run.folder), str(folder), str(tiny_demo))
    table = pd.read_csv(tmp_path / "case" / "own_images.csv").set_index("id")
    columns = [*(f"p_{name}" for name in runs.recipe_of(run).classes), "score", "low", "high"]
    assert list(table.columns[:11]) == [*columns, "set", "unlike", "why"]
    assert set(table.index) == {"cmyk.jpg", "good.png", "grey.png", "in/<b>.png", "known.bmp"}
    assert cell["id"] == table.at["known.bmp", "most similar"].split(", ")[0]
    assert table.at["grey.png", "unlike"] and "contrast 0 " in table.at["grey.png", "why"]
    np.testing.assert_allclose(table[columns[:5]].sum(axis=1), 1, atol=1e-4)
    page = (tmp_path / "case" / "07_own_images.html").read_text("utf-8")
    assert (
        "deep.png: truncated, damaged or too large (I;16 pixels, 8 bits" in page
        and "in/&lt;b&gt;.png" in page
        and "<b>.png" not in page
    )
    assert str(tmp_path) not in page


@pytest.mark.slow
def test_in_jupyterlab_a_network_is_chosen_and_pictures_are_uploaded(
    kept, tiny_demo, tmp_path, monkeypatch
):
    run, _ = kept()
    place = tmp_path / "mine" / "runs" / "herlev" / "combined" / run.folder.name
    shutil.copytree(run.folder, place)
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    monkeypatch.setenv("JPY_SESSION_NAME", "07_own_images.ipynb")
    jobs.case("", "", str(tiny_demo))
    book = pages.read(tmp_path / "case" / "07_own_images.ipynb")
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    view = "application/vnd.jupyter.widget-view+json"
    shown = [output["data"][view] for output in outputs if view in output.get("data", {})]
    assert len(shown) == 2  # a box of networks, one for pictures
    assert pd.read_csv(tmp_path / "case" / "own_images.csv")["id"].nunique() == 5


@pytest.mark.slow
def test_a_run_without_weights_is_one_clear_line(kept, tmp_path, monkeypatch, capfd):
    run, _ = kept("modern")
    copy = shutil.copytree(run.folder, tmp_path / "run")
    (copy / "model.safetensors").unlink()
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    with pytest.raises(SystemExit, match="has no weights: delete that folder"):
        jobs.case(str(copy), "", "demo")
    assert not paths.reports_dir("case").joinpath("07_own_images.ipynb").exists()

"""Losses, initial weights, networks, batches, training and predictions, at sizes that a test can afford."""

import json
import os
import pickle
import re
from dataclasses import replace
from types import SimpleNamespace

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import TensorImage, set_seed
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_weight

from benchmarks import flips
from cervix_utils import config, devices, learners, losses, metrics, networks, paths, recipes, runs, splits, training  # noqa: F401
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")


def herlev(pipeline: str = "combined", **changes) -> recipes.Recipe:
    """The shipped recipe at toy size; resnet18 unless a test is about the real ones."""
    toy = {"architecture": "resnet18", "image_size": 32, "batch_size": 5, "epochs": 1, "lr": 1e-3, "lr_head": 1e-2}
    return replace(recipes.herlev(config.validate({}, "defaults"), pipeline), **(toy | changes))


def colposcopy(pipeline: str = "sgd", **changes) -> recipes.Recipe:
    toy = {"architecture": "resnet18", "image_size": 32, "batch_size": 6, "epochs": 1}
    return replace(recipes.colposcopy(config.validate({}, "defaults"), pipeline), **(toy | changes))


@pytest.fixture(scope="module")
def split_of(tmp_path_factory):
    """Function: a table of 20 flat grey pictures (brighter with severity) with parts, for a task."""

    def make(task: str) -> pd.DataFrame:
        folder, classes, rows = tmp_path_factory.mktemp(task), CLASSES[task], []
        rng = np.random.default_rng(0)
        for k in range(20):
            severity = k % len(classes)
            pixels = rng.normal(60 + 40 * severity, 9, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
            part = "train" if k < 10 else ("valid" if k < 15 else "test")
            row = {"id": f"{classes[severity]}/{k}", "group": f"g{k}", "part": part, "label": classes[severity]}
            rows.append(row | {"path": str(folder / f"{k}.png"), "sha256": f"{task} {k}"})
        return pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)

    made = {task: make(task) for task in CLASSES}
    return lambda task: made[task].copy()


# Losses


def outputs(n: int, k: int) -> torch.Tensor:
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(n + k))


@pytest.mark.parametrize(
    ("k", "weights"), [(1, (0.0, 1.0)), *((5, w) for w in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.3)))]
)
def test_losses_equal_their_slow_twins(k, weights):
    out, target = outputs(9, k), torch.arange(9) % 5
    slow = [naive.severity_loss(row, t, *weights) for row, t in zip(out.tolist(), target.tolist())]
    found = losses.severity_loss(out, target, *weights, reduction="none")
    np.testing.assert_allclose(found, slow, rtol=1e-5)
    assert losses.severity_loss(out, target, *weights).item() == pytest.approx(np.mean(slow), rel=1e-5)


@pytest.mark.parametrize(
    ("pipeline", "k", "weights"),
    [("classification", 5, (1, 0)), ("regression", 1, (0, 1)), ("combined", 5, (1, 0.7)), ("sgd", 3, (1, 0)), ("modern", 3, (1, 0))],
)  # fmt: skip
def test_one_formula_serves_every_pipeline(pipeline, k, weights):
    out, target = outputs(6, k), torch.tensor([0, 1, 2, 0, 1, 2])
    found = losses.loss_of(pipeline, 0.7)(out, target)
    slow = [naive.severity_loss(row, t, *weights) for row, t in zip(out.tolist(), target.tolist())]
    assert found.item() == pytest.approx(np.mean(slow), rel=1e-5)


@pytest.mark.parametrize(("pipeline", "k"), [("classification", 5), ("regression", 1), ("combined", 5)])
def test_gradients_equal_finite_differences(pipeline, k):
    out, target = outputs(4, k).requires_grad_(), torch.tensor([0, 4, 2, 1])
    loss = losses.loss_of(pipeline)
    loss(out, target).backward()
    for i, j in np.ndindex(4, k):
        step = torch.zeros(4, k)
        step[i, j] = 1e-2
        slope = (loss(out + step, target) - loss(out - step, target)).item() / 2e-2
        assert out.grad[i, j].item() == pytest.approx(slope, abs=2e-3)


def test_expected_score_equals_its_twin_and_reaches_the_ends_of_the_scale():
    out = outputs(20, 5)
    np.testing.assert_allclose(losses.score(out), [naive.expected_score(r) for r in out.tolist()], rtol=1e-6)
    assert losses.score(100 * torch.eye(5)).tolist() == [1, 2, 3, 4, 5]
    assert losses.score(torch.zeros(1, 5)).item() == pytest.approx(3, abs=1e-6)


def test_classes_and_accuracy_of_both_kinds_of_output():
    scores = torch.tensor([[-2.0], [1.4], [1.6], [4.4], [9.0]])
    assert losses.predicted_class(scores).tolist() == [0, 0, 1, 3, 4]
    assert losses.accuracy(scores, torch.tensor([0, 0, 1, 4, 4])).item() == pytest.approx(0.8)
    assert losses.accuracy(torch.eye(5), torch.tensor([0, 1, 2, 3, 0])).item() == pytest.approx(0.8)


# Initial weights


@pytest.fixture(scope="module")
def resnet50() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-50 whose every branch does something, running statistics included."""
    torch.manual_seed(0)
    state = networks.network("resnet50", "linear", 5).state_dict()
    for key, value in state.items():
        if "running_var" in key or ("bn" in key and "weight" in key):
            value.uniform_(0.6, 1.1)
        elif "running_mean" in key or ("bn" in key and "bias" in key):
            value.uniform_(-0.1, 0.1)
    return state


def test_a_grown_resnet101_computes_the_same_function_until_it_is_trained(resnet50):
    small = networks.network("resnet50", "linear", 5, resnet50).eval()
    grown = networks.network("resnet101", "linear", 5, networks.grow_resnet101(resnet50)).eval()
    grown.fc.load_state_dict(small.fc.state_dict())
    x = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        assert small(x).std() > 1e-3
        assert torch.equal(grown(x), small(x)) or torch.allclose(grown(x), small(x), rtol=0, atol=1e-5)
        grown.layer3[20].bn3.weight += 0.5
        assert not torch.allclose(grown(x), small(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("architecture", "head"), [("resnet50", "linear"), ("resnet18", "paper")])
def test_a_network_with_folded_norms_computes_the_same_function(resnet50, architecture, head):
    model = networks.network(architecture, head, 5, resnet50 if architecture == "resnet50" else None).train()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model(x)  # running statistics of its own
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = networks.fold_batch_norms(model)
    with torch.inference_mode():
        expected = model.eval()(x)
        np.testing.assert_allclose(folded(x), expected, rtol=0, atol=1e-4 * expected.abs().max())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_copies_in_a_grown_network_are_its_own(resnet50):
    grown = networks.grow_resnet101(resnet50)
    pointers = [value.data_ptr() for key, value in grown.items() if key.endswith("conv1.weight")]
    assert len(pointers) == len(set(pointers)) == 1 + 33


class Evil:
    """Unpickled, it makes a file: proof that code ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "bare pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path, zipped):
    file, proof = tmp_path / "weights.pth", tmp_path / "ran"
    bad = {"conv1.weight": Evil(proof)}
    torch.save(bad, file) if zipped else file.write_bytes(pickle.dumps(bad))
    with pytest.raises(networks.WeightsError, match=r"weights\.pth.*not loaded: save a state dict"):
        networks.read_weights(file)
    assert not proof.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert proof.exists()  # the trap works


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, "no plain state dict"),
        ([torch.zeros(1)], "no plain state dict"),
        pytest.param(
            {0: torch.zeros(1)},
            "no plain state dict",
        ),
        (b"<html>404</html>", "cannot be read|not loaded"),
        (b"", "cannot be read"),
    ],
    ids=["checkpoint", "list", "numbers", "html", "empty"],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content, words):
    file = tmp_path / "weights.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(networks.WeightsError, match=words) as error:
        networks.read_weights(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_named_with_the_alternatives(tmp_path):
    with pytest.raises(networks.WeightsError, match=r"no\.pth does not exist: .*'imagenet' or 'none'"):
        networks.read_weights(tmp_path / "no.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_is_read_as_float32_and_counters_stay_integers(tmp_path, suffix):
    state = {"w": torch.tensor([1.5, -2.0]).half(), "n": torch.tensor([7])}
    file = tmp_path / f"w{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    found = networks.read_weights(file)
    assert found["w"].dtype == torch.float32 and found["w"].tolist() == [1.5, -2]
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: {key: value for key, value in s.items() if key != "layer1.0.conv1.weight"},
        lambda s: s | {"layer9.weight": torch.zeros(1)},
        lambda s: s | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {},
    ],
    ids=["missing", "unexpected", "shape", "prefix", "empty"],
)
def test_weights_of_another_network_are_refused_by_name(spoil):
    good = networks.network("resnet18", "linear", 5).state_dict()
    networks.network("resnet18", "paper", 3, good)
    with pytest.raises(networks.WeightsError, match=r"not of a resnet18: .*first: .*give weights of a resnet18"):
        networks.network("resnet18", "linear", 5, spoil(good))


def test_weights_fill_all_but_the_head():
    state = {k: torch.full_like(v, 3) for k, v in networks.network("resnet18", "linear", 1000).state_dict().items()}
    found = networks.network("resnet18", "linear", 5, state).state_dict()
    assert all((value == 3).all() for key, value in found.items() if not key.startswith("fc."))
    assert found["fc.0.weight"].shape == (5, 512) and (found["fc.0.weight"] != 3).all()


def test_grown_needs_an_origin_and_none_is_none(tmp_path):
    assert networks.initial_state("none", "resnet50") is None
    with pytest.raises(networks.WeightsError, match="weights_resnet50"):
        networks.initial_state("grown:none", "resnet101")


def test_without_network_the_message_says_what_to_fetch_and_where_to_put_it(monkeypatch):
    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(type(get_weight(networks.IMAGENET["resnet50"])), "get_state_dict", offline)
    with pytest.raises(
        networks.WeightsError, match=r"no route to host.*https://.*resnet50.*checkpoints.*weights_resnet50="
    ):
        networks.initial_state("imagenet", "resnet50")


def test_descriptions_name_the_file_by_digest_and_not_its_place(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    assert networks.describe_weights("none", "resnet50") == "resnet50, random initialisation (no pretraining)"
    found = networks.describe_weights(f"grown:{tmp_path / 'w.pth'}", "resnet101")
    assert found == "resnet101 grown from: resnet50, state dict w.pth (sha256 2d711642b726)"


# Networks and batches


def test_head_of_paper_c():
    model = networks.network("resnet50", "paper", 3)
    assert [type(layer) for layer in model.fc] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [(layer.in_features, layer.out_features) for layer in model.fc if isinstance(layer, nn.Linear)] == [
        (2048, 100),
        (100, 3),
    ]


@pytest.mark.parametrize(("pipeline", "n"), [("classification", 5), ("regression", 1), ("combined", 5)])
def test_pipelines_of_paper_h_differ_in_outputs_and_loss_alone(pipeline, n):
    recipe, other = (recipes.herlev(config.validate({}, "defaults"), name) for name in (pipeline, "combined"))
    assert replace(recipe, pipeline="combined") == other
    assert recipe.architecture == "resnet101" and losses.n_outputs(pipeline, 5) == n
    model = networks.network("resnet18", recipe.head, n)
    assert [type(layer) for layer in model.fc] == [nn.Linear] and model.fc[0].out_features == n
    assert (model.fc[0].bias == 3).all() == (n == 1)  # starts in the middle of the scale


@pytest.mark.parametrize("head", ["paper", "linear"])
def test_parameter_groups_cover_every_parameter_once(head):
    model = networks.network("resnet18", head, 3)
    groups = learners.body_and_head(model)
    ids = [id(p) for group in groups for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups[1]} == {id(p) for p in model.fc.parameters()}


def test_rates_reach_their_groups(split_of):
    learn = learners.build(split_of("herlev"), herlev(schedule="constant"))
    learn.fit(1, lr=slice(1e-3, 1e-2), cbs=[])
    assert [group["lr"] for group in learn.opt.hypers] == [1e-3, 1e-2]
    assert all(group["wd"] == 0.05 for group in learn.opt.hypers)


def test_both_loaders_normalise(split_of, tmp_path):
    Image.new("RGB", (9, 9), (128, 128, 128)).save(tmp_path / "grey.png")
    split = split_of("herlev").assign(path=str(tmp_path / "grey.png"), sha256="grey")
    loaders = learners.dataloaders(split, herlev(flip="none", rotate=0.0, zoom=1.0, lighting=0.0), torch.device("cpu"))
    expected = (128 / 255 - torch.tensor(herlev().mean)) / torch.tensor(herlev().std)
    for loader in (loaders.train, loaders.valid):
        x, _ = loader.one_batch()
        assert x.shape == (5, 3, 32, 32) and x.dtype == torch.float32
        assert (torch.Tensor(x).mean(dim=(0, 2, 3)) - expected).abs().max() < 1e-5


def test_augmentation_is_for_training_alone_and_normalised_after(split_of):
    loaders = learners.dataloaders(split_of("herlev"), herlev(), torch.device("cpu"))
    plain = learners.dataloaders(
        split_of("herlev"), herlev(flip="none", rotate=0.0, zoom=1.0, lighting=0.0), torch.device("cpu")
    )
    batches = lambda loader: torch.cat([torch.Tensor(x) for x, _ in loader])  # noqa: E731
    assert torch.equal(batches(loaders.valid), batches(plain.valid))
    assert not torch.equal(batches(loaders.train).sort(dim=0)[0], batches(plain.train).sort(dim=0)[0])
    assert not torch.equal(batches(loaders.train), batches(loaders.train))
    assert batches(loaders.train).min() > -2.2  # no black corners: edges are continued


@pytest.mark.parametrize(("flip", "seen"), [("none", 1), ("horizontal", 2), ("both", 8)])
def test_flips_are_those_of_the_recipe(split_of, tmp_path, flip, seen):
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[4:9, 4:20] = 255
    Image.fromarray(pixels).save(tmp_path / "l.png")
    recipe = herlev(flip=flip, rotate=0.0, zoom=1.0, lighting=0.0, batch_size=10)
    split = split_of("herlev").assign(path=str(tmp_path / "l.png"), sha256="l")
    loaders = learners.dataloaders(split, recipe, torch.device("cpu"))
    torch.manual_seed(0)
    views = {
        bytes((image[0] > 0).numpy().tobytes())
        for _ in range(12)
        for image in torch.Tensor(loaders.train.one_batch()[0])
    }
    assert len(views) == seen  # `both`: the eight symmetries of a square


def test_training_images_are_shuffled_and_validation_images_in_order(split_of):
    split = split_of("colposcopy")
    loaders = learners.dataloaders(split, colposcopy(batch_size=5), torch.device("cpu"))
    codes = pd.Categorical(split.loc[split["part"] == "valid", "label"], categories=CLASSES["colposcopy"]).codes
    assert loaders.valid.one_batch()[1].tolist() == list(codes)
    epochs = [tuple(torch.cat([y for _, y in loaders.train]).tolist()) for _ in range(6)]
    assert len(set(epochs)) > 1 and len({tuple(sorted(epoch)) for epoch in epochs}) == 1


# Training


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(devices.DeviceError, match=r"device=cuda.*device=auto or device=cpu"):
        devices.pick_device("cuda")
    assert devices.pick_device("auto", "float32") == devices.pick_device("cpu", "float32") == ("cpu", "float32")
    assert devices.pick_device("cpu", "bf16") == ("cpu", "bf16")
    assert devices.pick_device("cpu")[1] in ("bf16", "float32")


def fitted(split, recipe) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    learn = learners.build(split, recipe)
    history, kept = training.fit(learn, recipe, "cpu", "float32")
    return training.predict(learn.model, split, recipe, "float32"), history, kept


@pytest.mark.parametrize(
    "make",
    [lambda seed: herlev("combined", seed=seed), lambda seed: colposcopy("sgd", seed=seed)],
    ids=["herlev", "colposcopy"],
)
def test_one_seed_gives_one_result_and_another_seed_another(split_of, make, capsys):
    recipe = make(0)
    split = split_of(recipe.task)
    first, second, other = fitted(split, recipe), fitted(split, recipe), fitted(split, make(1))
    pd.testing.assert_frame_equal(first[0], second[0], check_exact=True)
    pd.testing.assert_frame_equal(first[1], second[1], check_exact=True)
    columns = [name for name in first[0] if name.startswith("p_")]
    assert (first[0][columns] - other[0][columns]).abs().max().max() > 1e-3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and re.match(rf"{recipe.name}  epoch 1/1  train \d.*valid .*accuracy .* s to go", lines[0])


@pytest.mark.parametrize("pipeline", ["classification", "regression", "combined", "corn", "soft_labels"])
def test_predictions_keep_the_contract(split_of, pipeline):
    recipe, split = herlev(pipeline, test_flips=1), split_of("herlev")
    torch.manual_seed(0)
    model = networks.network("resnet18", "linear", losses.n_outputs(pipeline, 5))
    found = training.predict(model, split, recipe, "float32")
    metrics.check_predictions(found, "herlev")
    pd.testing.assert_frame_equal(found[["id", "group", "part", "label"]], split[["id", "group", "part", "label"]])
    p = found.filter(like="p_").to_numpy(float)
    if pipeline == "regression":
        assert np.isnan(p).all() and found["score"].notna().all()
    else:
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["score"], p @ [1, 2, 3, 4, 5], rtol=0, atol=1e-5)
    x = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)))
            for path in split["path"]
        ]
    )
    x = (x.permute(0, 3, 1, 2) / 255 - torch.tensor(recipe.mean).view(1, 3, 1, 1)) / torch.tensor(recipe.std).view(
        1, 3, 1, 1
    )
    expected = losses.score(model.eval()(x)).detach()  # each row is its own picture's
    np.testing.assert_allclose(found["score"], expected, rtol=0, atol=1e-4)


def test_colposcopy_predictions_keep_the_contract(split_of):
    model = networks.network("resnet18", "paper", 3)
    metrics.check_predictions(training.predict(model, split_of("colposcopy"), colposcopy(), "float32"), "colposcopy")


@pytest.mark.parametrize("flips", [1, 2, 4])
def test_flips_at_test_time_make_the_answer_the_same_for_the_flipped_picture(flips):
    torch.manual_seed(0)
    model, recipe = networks.network("resnet18", "linear", 5), herlev()
    model.fc[0].weight.data *= 30
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    answer = lambda x: training.outputs(model, x.numpy(), np.arange(2), recipe, "float32", flips)  # noqa: E731
    for dims, invariant in (((3,), flips >= 2), ((2,), flips == 4), ((2, 3), flips == 4)):
        assert np.allclose(answer(x.flip(dims)), answer(x), rtol=0, atol=1e-5) == invariant


def test_keep_best_puts_the_epoch_with_the_lowest_validation_loss_back():
    model = nn.Linear(1, 1)
    keep = training.KeepBest()
    keep.learn = SimpleNamespace(model=model, epoch=0, recorder=SimpleNamespace(values=[]))
    keep.before_fit()
    for epoch, loss in enumerate([0.9, 0.4, 0.6, float("nan")]):
        model.weight.data.fill_(epoch)
        keep.learn.epoch = epoch
        keep.learn.recorder.values.append([0.0, loss, 0.0])
        keep.after_epoch()
    keep.after_fit()
    assert keep.best_epoch == 1 and model.weight.item() == 1


def test_the_network_kept_is_the_one_whose_validation_loss_was_lowest(split_of):
    recipe = herlev(
        "combined", epochs=4, lr=3e-3, lr_head=3e-2, test_flips=1, flip="none", rotate=0.0, zoom=1.0, lighting=0.0
    )
    split = split_of("herlev")
    found, history, kept = fitted(split, recipe)
    assert list(history["epoch"]) == [1, 2, 3, 4] and kept == history["valid_loss"].idxmin() + 1
    rows = found[found["part"] == "valid"]
    own = [
        -np.log(row[f"p_{row['label']}"]) + (metrics.true_class(found.loc[[i]])[0] + 1 - row["score"]) ** 2
        for i, row in rows.iterrows()
    ]
    assert np.mean(own) == pytest.approx(history["valid_loss"].min(), rel=1e-3)


def test_a_loss_that_explodes_stops_with_a_remedy(split_of):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fitted(split_of("herlev"), herlev("regression", lr=1e20, lr_head=1e20, schedule="constant", epochs=2))


def test_a_finished_run_is_read_and_a_changed_recipe_or_table_trains_again(split_of, tmp_path, monkeypatch, capsys):
    fits = []
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda *args: fits.append(args[1]) or fit(*args))
    split, recipe = split_of("colposcopy"), colposcopy()
    run = lambda split, recipe: runs.obtain(split, recipe, tmp_path, "cpu", "float32")  # noqa: E731
    first, again = run(split, recipe), run(split, recipe)
    assert len(fits) == 1 and "finished run" in capsys.readouterr().out
    pd.testing.assert_frame_equal(first.predictions, again.predictions)
    assert first.folder == tmp_path / "colposcopy" / "sgd" / "paper-0"
    assert sorted(file.name for file in first.folder.iterdir()) == sorted(runs.FILES)
    facts = json.loads((first.folder / "recipe.json").read_text())
    assert facts["initialisation"] == "resnet18, random initialisation (no pretraining)"
    assert facts["parts"] == {"train": 10, "valid": 5, "test": 5} and facts["device"] == "cpu" and facts["threads"] == 1
    assert run(split, replace(recipe, lr=0.01)).recipe["lr"] == 0.01 and len(fits) == 2
    run(split.assign(sha256="other pixels"), replace(recipe, lr=0.01))
    assert len(fits) == 3
    model = runs.load_model(runs.read(first.folder))
    again = training.predict(model, split, recipe, "float32").filter(like="p_")
    np.testing.assert_allclose(runs.read(first.folder).predictions.filter(like="p_"), again, rtol=0, atol=2e-6)


def test_the_benchmark_of_flips_starts_from_the_predictions_of_the_run_itself(split_of, tmp_path):
    cells = split_of("herlev")
    run = runs.obtain(cells, herlev(test_flips=2), tmp_path, "cpu", "float32")
    found = flips.predictions(run, cells)
    assert list(found) == [1, 2, 4] and all(table["id"].equals(run.test["id"]) for table in found.values())
    np.testing.assert_allclose(found[2]["score"], run.test["score"], rtol=0, atol=1e-4)
    assert not np.allclose(found[1]["score"], found[4]["score"], atol=1e-4)
    with pytest.raises(SystemExit, match="other pictures"):
        flips.predictions(run, cells.assign(path=cells["path"].to_list()[::-1]))


@pytest.mark.parametrize(("make", "architecture"), [(herlev, "resnet101"), (colposcopy, "resnet50")])
def test_the_real_networks_train_one_step_on_every_parameter(split_of, make, architecture):
    recipe = make(architecture=architecture, weights="none", batch_size=10, schedule="constant", selection="last")
    learn = learners.build(split_of(recipe.task), recipe)
    before = [p.detach().clone() for p in learn.model.parameters()]
    training.fit(learn, recipe, "cpu", "float32")
    moved = [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())]
    assert np.mean(moved) > 0.3 and moved[-1]  # zero-initialised branches wait for their batch norm
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


# What generalises, and rivals: stain, window, balanced batches, ordinal pipelines


def test_stain_changes_each_colour_of_each_training_image_by_one_power_and_factor():
    torch.manual_seed(0)
    x = TensorImage(torch.rand(3, 3, 8, 8) * 0.8 + 0.1)
    out = learners.Stain(0.3)(x, split_idx=0)
    assert torch.equal(learners.Stain(0.3)(x, split_idx=1), x)
    for before, after in zip(x.reshape(9, -1), out.reshape(9, -1)):
        inside = after < 1
        slope, shift = np.polyfit(-before[inside].log(), -after[inside].log(), 1)
        np.testing.assert_allclose(-after[inside].log(), -slope * before[inside].log() + shift, atol=1e-5)
        assert 0.3 < slope < 3 and slope != 1
    assert out.min() >= 0 and out.max() <= 1


def test_stain_gains_have_the_spread_asked_for():
    torch.manual_seed(0)
    out = learners.Stain(0.2)(TensorImage(torch.full((4000, 3, 1, 2), 0.5) ** torch.tensor([1.0, 2.0])), split_idx=0)
    gain = (out[..., 0] / out[..., 1]).log() / np.log(2)
    assert gain.log().std().item() == pytest.approx(0.2, rel=0.05) and gain.log().mean().abs() < 0.01


def test_only_training_batches_are_stained(split_of):
    recipe = herlev(stain=0.5, flip="none", rotate=0.0, zoom=1.0, lighting=0.0)
    loaders = learners.dataloaders(split_of("herlev"), recipe, torch.device("cpu"))
    plain = learners.dataloaders(split_of("herlev"), replace(recipe, stain=0.0), torch.device("cpu"))
    assert torch.equal(loaders.valid.one_batch()[0], plain.valid.one_batch()[0])
    assert learners.augmentations(replace(recipe, stain=0.0)) == []
    assert not torch.isclose(loaders.train.one_batch()[0].std(), plain.train.one_batch()[0].std(), rtol=1e-3)


def test_balanced_batches_draw_every_class_as_often_whatever_its_share(split_of):
    split = split_of("herlev")
    rows = split.index[split["part"] == "train"]
    split.loc[rows, "label"] = ["normal"] * 9 + ["carcinoma_in_situ"]
    loaders = learners.dataloaders(split, herlev(balanced=True), torch.device("cpu"))
    set_seed(0)
    drawn = torch.cat([target for _ in range(200) for _, target in loaders.train])
    assert (drawn == 4).float().mean().item() == pytest.approx(0.5, abs=0.04)
    valid = split.loc[split["part"] == "valid", "label"]
    assert len(loaders.valid_ds) == len(valid) == sum(len(y) for _, y in loaders.valid)


def test_corn_probabilities_are_products_of_conditional_ones():
    out = outputs(20, 4)
    found = losses.probabilities(out, 5).numpy()
    for row, logits in zip(found, out.tolist()):
        beyond = [1.0]
        for value in logits:
            beyond.append(beyond[-1] / (1 + np.exp(-value)))
        np.testing.assert_allclose(row, [a - b for a, b in zip(beyond, [*beyond[1:], 0.0])], atol=1e-6)
    assert (found >= 0).all() and np.allclose(found.sum(axis=1), 1)
    sure = torch.tensor([[-50.0, 0, 0, 0], [50, 50, -50, 0], [50, 50, 50, 50]])
    assert losses.predicted_class(sure).tolist() == [0, 2, 4] and losses.score(sure).tolist() == [1, 3, 5]


def test_ordinal_rivals_fall_with_the_error_and_are_dlordinals():
    target = torch.tensor([0, 2, 4])
    right = 20 * torch.eye(5)[target]
    for pipeline, good in (
        ("corn", torch.tensor([[-9.0, 0, 0, 0], [9, 9, -9, 0], [9, 9, 9, 9]])),
        ("soft_labels", right),
    ):
        loss = losses.loss_of(pipeline, n_classes=5)
        assert type(loss).__module__.startswith("dlordinal")
        assert loss(good, target) < loss(good.flip(0), target)


@pytest.mark.parametrize(("name", "weight"), [("combined", 1.0), ("combined_w0.3", 0.3), ("combined_w10", 10.0)])
def test_the_weight_of_the_constraint_comes_from_the_pipelines_name(name, weight):
    recipe = recipes.herlev(config.validate({"herlev_pipelines": [name]}, "test"), name)
    assert (recipe.pipeline, recipe.regression_weight) == (name, weight)
    out, target = outputs(6, 5), torch.arange(6) % 5
    expected = losses.severity_loss(out, target, 1.0, weight)
    assert torch.equal(losses.loss_of(recipe.pipeline, recipe.regression_weight)(out, target), expected)


@pytest.mark.parametrize("name", ["combined_w", "combined_w-1", "combined_wx", "corn2", "../x"])
def test_pipelines_that_do_not_exist_are_refused(name):
    with pytest.raises(config.ConfigError, match="herlev_pipelines"):
        config.validate({"herlev_pipelines": [name]}, "test")


# Small pictures first


def seen_in_training(split: pd.DataFrame, recipe: recipes.Recipe) -> tuple[list[int], list[int], list[torch.Tensor]]:
    """Sides of the training and of the validation batches that a network sees in a fit, and the training batches."""
    learn, sides, batches = learners.build(split, recipe), {True: [], False: []}, []

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        assert x.shape[2] == x.shape[3] and x.is_contiguous(memory_format=torch.channels_last)
        sides[module.training].append(x.shape[2])
        if module.training:
            batches.append(x.detach().clone())

    learn.model.register_forward_pre_hook(look)
    training.fit(learn, recipe, "cpu", "float32")
    return sides[True], sides[False], batches


def test_training_pictures_grow_and_validation_pictures_are_always_whole(split_of):
    train, valid, _ = seen_in_training(split_of("herlev"), herlev(epochs=4, progressive=True))
    assert train == [16] * 4 + [24] * 2 + [32] * 2  # 8 steps, 2 an epoch
    assert valid == [32] * 4


def test_pictures_grow_within_an_epoch_too(split_of):
    train, valid, _ = seen_in_training(split_of("herlev"), herlev(epochs=1, progressive=True, batch_size=2))
    assert train == [16, 16, 16, 24, 32] and set(valid) == {32}


def test_small_pictures_are_the_whole_ones_seen_from_afar(split_of):
    still = {"flip": "none", "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "lr": 0.0, "lr_head": 0.0}
    small, whole = (
        seen_in_training(split_of("herlev"), herlev(epochs=1, progressive=progressive, **still))[2][0]
        for progressive in (True, False)
    )
    assert small.shape == (5, 3, 16, 16) and whole.shape == (5, 3, 32, 32)
    inner = np.s_[:, :, 2:-2, 2:-2]  # a triangle of 4 pixels, the edge apart
    means = nn.functional.conv2d(
        nn.functional.pad(whole, [1] * 4).flatten(0, 1)[:, None],
        (torch.tensor([1.0, 3, 3, 1]) / 8).outer(torch.tensor([1.0, 3, 3, 1]) / 8)[None, None],
        stride=2,
    ).view(small.shape)
    torch.testing.assert_close(small[inner], means[inner], rtol=0, atol=1e-5)


def test_pictures_are_whole_unless_asked_for(split_of):
    train, valid, _ = seen_in_training(split_of("herlev"), herlev())
    assert set(train) == set(valid) == {32}
    for settings in (config.validate({}, "defaults"), config.load(paths.CONFIG / "demo.yaml")):
        made = [recipes.herlev(settings, "combined"), *(recipes.colposcopy(settings, k) for k in ("sgd", "modern"))]
        assert not any(recipe.progressive for recipe in made)
    assert recipes.herlev(config.validate({"herlev_progressive": True}, "defaults"), "combined").progressive

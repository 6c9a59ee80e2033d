"""The Learner in the reader's hands: all of fastai's tutorials works, and gives right values.

``learn`` in the first half is one Learner a pipeline, trained for an epoch.
"""

import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import TfmdDL
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.torch_core import TensorCategory, TensorImage
from matplotlib import pyplot as plt
from PIL import Image

from cervix_utils.data import datasets, images, squares
from cervix_utils.training import fitting, learners, networks, runs

pytestmark = pytest.mark.usefixtures("one_thread")
PIPELINES = ["classification", "regression", "combined", "modern"]


def made(pipeline: str, data_root, **changes) -> SimpleNamespace:
    """A Learner in float32 with its split, recipe, test files and class indices of all parts."""
    recipe = toys.recipe_of(pipeline, **({"precision": "float32"} | changes))
    split = toys.split_of(data_root, recipe)
    learn = learners.build(split, recipe, "cpu")
    codes = pd.Categorical(split["label"], categories=recipe.classes).codes
    targets = {
        part: torch.tensor(codes[split["part"] == part]).long() for part in set(split["part"])
    }
    files = toys.files_of(split, "test")
    return SimpleNamespace(learn=learn, split=split, recipe=recipe, files=files, targets=targets)


@pytest.fixture(scope="module", params=PIPELINES)
def case(request, tiny_demo, one_thread):
    made_now = made(request.param, tiny_demo)
    with made_now.learn.no_bar(), made_now.learn.no_logging():
        made_now.learn.fit(1, 1e-3)
        yield made_now


@pytest.fixture
def learn(case):
    return case.learn


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def titles() -> list[str]:
    """Titles of the pictures of the current figure, in order."""
    return [ax.get_title() for ax in plt.gcf().axes if ax.images]


def is_shown(ax, file) -> bool:
    """Whether ``ax`` shows the picture of a file, up to the rounding of grey values 0..255."""
    shown = ax.images[0].get_array().transpose(2, 0, 1).astype(int)
    return np.abs(shown - images.squares([file], 32)[0]).max() <= 1


def expected(case, part: str) -> np.ndarray:
    """Probabilities or scores of a part, as ``fitting`` computes them, one view an image."""
    pictures = squares.open_squares(case.split, case.recipe.image_size, case.recipe.window)
    rows = np.flatnonzero(case.split["part"] == part)
    return fitting.probabilities(case.learn.model, pictures, case.recipe, 1, rows)


def classes_of(values: np.ndarray) -> list[int]:
    """The class that probabilities (n, k) or scores (n, 1) mean."""
    if values.shape[1] > 1:
        return values.argmax(axis=1).tolist()
    return [min(max(round(float(score)), 1), 5) - 1 for score in values[:, 0]]


def slow_losses(case, part: str = "valid") -> np.ndarray:
    """Each image's loss from its probabilities or score, by the formula of its pipeline."""
    values, targets, losses = expected(case, part).astype(float), case.targets[part], []
    for row, target in zip(values, targets.tolist()):
        score = row[0] if len(row) == 1 else row @ np.arange(1, len(row) + 1)
        squared = (target + 1 - score) ** 2
        entropy = -np.log(row[target]) if len(row) > 1 else 0
        kinds = {"regression": squared, "combined": entropy + squared}
        losses.append(kinds.get(case.recipe.pipeline, entropy))
    return np.array(losses)


# The list that DESIGN.md promises


def test_vocab_has_the_classes_in_order(case):
    assert list(case.learn.dls.vocab) == list(datasets.get(case.recipe.task).classes)


def test_one_batch(case, learn):
    for loader in learn.dls.loaders:
        pictures, targets = loader.one_batch()
        assert isinstance(pictures, TensorImage) and isinstance(targets, TensorCategory)
        assert pictures.shape == (5, 3, 32, 32) and pictures.dtype == torch.float32
        assert targets.shape == (5,) and targets.dtype == torch.int64
        assert -2.2 < pictures.min() < pictures.max() < 2.7  # normalised
    assert learn.dls.valid.one_batch()[1].tolist() == case.targets["valid"][:5].tolist()


def test_show_batch_has_the_pictures_and_their_labels(case, learn):
    batch = learn.dls.one_batch()
    learn.dls.show_batch(batch)
    assert titles() == [learn.dls.vocab[target] for target in batch[1]]
    learn.dls.valid.show_batch(max_n=4)
    valid = case.split[case.split["part"] == "valid"][:4]
    assert titles() == valid["label"].tolist()
    for ax, file in zip(plt.gcf().axes, valid["path"]):
        assert is_shown(ax, file)


def test_show_batch_of_training_pictures_is_called_as_in_the_tutorials(learn):
    learn.dls.show_batch()
    assert len(titles()) == 5 and set(titles()) <= set(learn.dls.vocab)


def test_summary_counts_every_parameter(learn, capsys):
    text = str(learn.summary())
    number = sum(parameter.numel() for parameter in learn.model.parameters())
    assert f"Total params: {number:,}" in text and "ChannelsLast" in text


def test_lr_find_suggests_a_rate_and_leaves_the_weights_alone(learn):
    before = [parameter.detach().clone() for parameter in learn.model.parameters()]
    found = learn.lr_find(num_it=12)
    assert 1e-7 < found.valley < 10
    assert len(plt.gcf().axes[0].lines[0].get_xdata()) > 5
    assert all(map(torch.equal, before, learn.model.parameters()))


def test_fit_one_cycle_by_hand(learn):
    before = learn.model.state_dict()["conv1.weight"].clone()
    learn.fit_one_cycle(1)
    assert len(learn.recorder.values) == 1 and np.isfinite(learn.recorder.values).all()
    assert not torch.equal(before, learn.model.state_dict()["conv1.weight"])
    assert learn.fitted_as is None


def test_fine_tune_trains_the_head_first_then_everything(learn):
    frozen = []

    class Look(Callback):
        def before_epoch(self):
            frozen.append(not self.model.conv1.weight.requires_grad)

    learn.fine_tune(1, cbs=Look())
    assert frozen == [True, False]


def test_validate_gives_the_loss_and_the_accuracy_of_the_validation_part(case, learn):
    loss, accuracy = learn.validate()
    right = np.array(classes_of(expected(case, "valid"))) == case.targets["valid"].numpy()
    assert accuracy == pytest.approx(right.mean(), abs=1e-6)
    assert loss == pytest.approx(slow_losses(case).mean(), rel=1e-4)


def test_get_preds_are_the_predictions_of_the_package(case, learn):
    answers, targets, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    np.testing.assert_allclose(answers, expected(case, "valid"), rtol=0, atol=1e-5)
    assert targets.tolist() == case.targets["valid"].tolist()
    assert decoded.tolist() == classes_of(answers.numpy())
    assert losses.shape == (10 if case.recipe.task == "herlev" else 6,)
    np.testing.assert_allclose(losses, slow_losses(case), rtol=1e-3, atol=1e-5)


def test_get_preds_of_the_training_part_are_neither_augmented_nor_shuffled(case, learn):
    files = toys.files_of(case.split, "train")
    answers, targets = learn.get_preds(dl=learn.dls.test_dl(files, with_labels=True))
    np.testing.assert_allclose(answers, expected(case, "train"), rtol=0, atol=1e-5)
    assert (
        targets.tolist() == learn.get_preds(ds_idx=0)[1].tolist() == case.targets["train"].tolist()
    )


def test_show_results_has_the_label_over_the_prediction(case, learn):
    answers = classes_of(learn.get_preds()[0].numpy())
    learn.show_results(shuffle=False, max_n=5)
    pairs = list(zip(case.targets["valid"].tolist(), answers))[:5]
    assert titles() == [f"{learn.dls.vocab[a]}\n{learn.dls.vocab[b]}" for a, b in pairs]


@pytest.mark.parametrize("kind", [str, None], ids=["str", "Path"])
def test_predict_of_a_file_is_its_row_of_get_preds(case, learn, kind):
    file = case.files[3]
    row = expected(case, "test")[3]
    label, code, values = learn.predict(kind(file) if kind else file)
    np.testing.assert_allclose(values, row, rtol=0, atol=1e-5)
    assert code.item() == classes_of(row[None])[0] and label == learn.dls.vocab[code]
    assert len(values) == (1 if case.recipe.pipeline == "regression" else len(learn.dls.vocab))


def test_predict_of_a_file_of_ones_own(case, learn, tmp_path):
    file = tmp_path / f"mine{case.files[2].suffix}"
    shutil.copy(case.files[2], file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine, same = learn.predict(file), learn.predict(case.files[2])
    assert mine[0] == same[0] and torch.equal(mine[2], same[2])


def test_test_dl_takes_files_with_or_without_labels(case, learn):
    answers, _ = learn.get_preds(dl=learn.dls.test_dl(case.files))
    np.testing.assert_allclose(answers, expected(case, "test"), rtol=0, atol=1e-5)
    names = list(map(str, case.files))
    answers, targets = learn.get_preds(dl=learn.dls.test_dl(names, with_labels=True))
    np.testing.assert_allclose(answers, expected(case, "test"), rtol=0, atol=1e-5)
    assert targets.tolist() == case.targets["test"].tolist()


def test_tta_averages_over_augmented_views(case, learn):
    plain, targets = learn.tta(beta=1)
    np.testing.assert_allclose(plain, learn.get_preds()[0], rtol=0, atol=1e-5)
    averaged = learn.tta(dl=learn.dls.test_dl(case.files, with_labels=True))[0]
    assert averaged.shape == expected(case, "test").shape and targets.equal(case.targets["valid"])
    assert not np.allclose(averaged, expected(case, "test"), rtol=0, atol=1e-6)
    if averaged.shape[1] > 1:
        np.testing.assert_allclose(averaged.sum(dim=1), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpretation", [Interpretation, ClassificationInterpretation])
def test_plot_top_losses_shows_the_worst_pictures_first(case, learn, interpretation):
    interpretation.from_learner(learn).plot_top_losses(6)
    answers, targets, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    worst, wanted = losses.argsort(descending=True)[:6].tolist(), []
    for row in worst:
        answer, label = learn.dls.vocab[decoded[row]], learn.dls.vocab[targets[row]]
        wanted.append(f"{answer}/{label} / {losses[row]:.2f} / {answers[row].max():.2f}")
    assert titles() == wanted
    file = toys.files_of(case.split, "valid")[worst[0]]
    assert is_shown(plt.gcf().axes[0], file)


def test_plot_confusion_matrix_counts_labels_and_predictions(case, learn):
    ClassificationInterpretation.from_learner(learn).plot_confusion_matrix()
    counts = np.zeros((len(learn.dls.vocab),) * 2, dtype=int)
    for target, answer in zip(case.targets["valid"], classes_of(expected(case, "valid"))):
        counts[target, answer] += 1
    ax = plt.gcf().axes[0]
    assert ax.images[0].get_array().tolist() == counts.tolist()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(learn.dls.vocab)


def test_callbacks_can_be_added_and_removed(learn):
    class Count(Callback):
        batches = 0

        def after_batch(self):
            self.batches += 1

    count = Count()
    assert learn.add_cb(count) is learn and learn.count is count
    learn.validate()
    assert count.batches == len(learn.dls.valid)
    learn.remove_cb(count)
    assert count not in learn.cbs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here")
def test_to_fp16_on_a_gpu(case):
    learn = learners.build(case.split, case.recipe, "cuda").to_fp16()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
    assert np.isfinite(learn.recorder.values).all()


def test_mixup_of_the_tutorials(learn):
    learn.fit(1, cbs=MixUp())
    assert np.isfinite(learn.recorder.values).all()


def test_new_loaders_keep_the_pictures_and_labels(learn):
    old, new = learn.dls.valid, learn.dls.valid.new(bs=3)
    assert new.vocab == learn.dls.vocab and len(new.one_batch()[0]) == 3
    for before, after in zip(zip(*old), zip(*new)):
        assert torch.equal(torch.cat(before), torch.cat(after))
    train = learn.dls.new(bs=3)  # fastai: that of the training part
    assert train.one_batch()[0].shape == (3, 3, 32, 32) and len(train.dataset) == len(
        learn.dls.train_ds
    )


# Batches


def loaders_of(data_root, split=None, **changes):
    recipe = toys.recipe_of(**changes)
    split = toys.split_of(data_root, recipe) if split is None else split
    return learners.dataloaders(split, recipe, "cpu"), split


def test_training_labels_belong_to_their_pictures(tiny_demo):
    loaders, split = loaders_of(tiny_demo, **toys.STILL, batch_size=22)
    pictures = images.squares(split["path"], 32).astype(np.float32)
    (normalize,) = [t for t in loaders.train.after_batch if type(t).__name__ == "Normalize"]
    x, y = loaders.train.one_batch()
    for picture, target in zip(normalize.decode(x) * 255, y.tolist()):
        row = np.abs(pictures - picture.numpy()).max(axis=(1, 2, 3)).argmin()
        assert split["part"][row] == "train" and split["label"][row] == loaders.vocab[target]


def test_training_images_are_shuffled_and_validation_images_in_order(tiny_demo):
    loaders, split = loaders_of(tiny_demo, batch_size=11)
    labels = [loaders.vocab[target] for _, batch in loaders.valid for target in batch]
    assert labels == split.loc[split["part"] == "valid", "label"].tolist()
    epochs = [tuple(torch.cat([y for _, y in loaders.train]).tolist()) for _ in range(6)]
    assert len(set(epochs)) > 1 and len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert loaders.train.drop_last  # batch statistics of a last batch of one image are noise


def test_no_process_is_started_to_read_pictures(tiny_demo):
    loaders, _ = loaders_of(tiny_demo)
    assert [loader.fake_l.num_workers for loader in loaders.loaders] == [0, 0]
    assert loaders.test_dl(["a.png"]).fake_l.num_workers == 0


def alike(split, file) -> pd.DataFrame:
    """``split`` in which every image is the picture ``file``."""
    return split.assign(path=str(file), sha256=str(file))


def test_both_loaders_normalise(tiny_demo, tmp_path):
    Image.new("RGB", (9, 9), (128, 128, 128)).save(tmp_path / "grey.png")
    recipe = toys.recipe_of(**toys.STILL)
    split = alike(toys.split_of(tiny_demo, recipe), tmp_path / "grey.png")
    loaders = learners.dataloaders(split, recipe, "cpu")
    wanted = (128 / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    for loader in loaders.loaders:
        x = torch.Tensor(loader.one_batch()[0])
        assert (x.mean(dim=(0, 2, 3)) - wanted).abs().max() < 1e-5


def all_pictures(loader) -> torch.Tensor:
    return torch.cat([torch.Tensor(x) for x, _ in loader])


def test_augmentation_is_for_training_alone_and_normalised_after(tiny_demo):
    loaders, split = loaders_of(tiny_demo)
    plain, _ = loaders_of(tiny_demo, split, **toys.STILL)
    np.testing.assert_allclose(all_pictures(loaders.valid), all_pictures(plain.valid), atol=1e-5)
    still = all_pictures(plain.train).sort(dim=0)[0]
    assert not torch.equal(all_pictures(loaders.train).sort(dim=0)[0], still)
    assert not torch.equal(all_pictures(loaders.train), all_pictures(loaders.train))
    assert all_pictures(loaders.train).min() > -2.2  # no black corners: the border's colour


@pytest.mark.parametrize(("flip", "seen"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_flips_are_those_of_the_recipe(tiny_demo, tmp_path, flip, seen):
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[4:9, 4:20] = 255
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    recipe = toys.recipe_of(**(toys.STILL | {"flip": flip}), batch_size=20)
    split = alike(toys.split_of(tiny_demo, recipe), tmp_path / "bar.png")
    loaders = learners.dataloaders(split, recipe, "cpu")
    torch.manual_seed(0)
    pictures = torch.cat([torch.Tensor(loaders.train.one_batch()[0]) for _ in range(8)])
    views = {(picture > 0).numpy().tobytes() for picture in pictures}
    assert len(views) == seen


def test_a_part_smaller_than_a_batch_is_one_batch(tiny_demo):
    loaders, split = loaders_of(tiny_demo, batch_size=400)
    x, _ = loaders.train.one_batch()
    assert len(x) == (split["part"] == "train").sum() and isinstance(loaders.train, TfmdDL)


# Device, precision, optimiser


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(learners.DeviceError, match=r"device=cuda.*device=auto or device=cpu"):
        learners.pick_device("cuda")
    assert learners.pick_device("auto") == learners.pick_device("cpu") == "cpu"


def test_precision_is_that_asked_for_else_that_of_the_hardware(monkeypatch):
    assert learners.pick_precision("float32", "cpu") == "float32"
    assert learners.pick_precision("bf16", "cpu") == "bf16"
    for has, wanted in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has, raising=False
        )
        assert learners.pick_precision("auto", "cpu") == wanted


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_run_in_the_precision_of_the_recipe(tiny_demo, precision):
    case, kinds = made("combined", tiny_demo, precision=precision), set()
    case.learn.model.layer4.register_forward_hook(lambda *parts: kinds.add(parts[2].dtype))
    with case.learn.no_bar(), case.learn.no_logging():
        case.learn.fit_one_cycle(1)
        case.learn.get_preds()
    assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {parameter.dtype for parameter in case.learn.model.parameters()} == {torch.float32}


def test_fastais_own_precision_replaces_the_recipes(tiny_demo):
    case, seen = made("combined", tiny_demo, precision="bf16"), []
    case.learn.model.conv1.register_forward_hook(
        lambda *parts: seen.append(torch.is_autocast_enabled("cpu"))
    )
    case.learn.to_bf16()  # autocasts 'cuda' whatever the device
    with case.learn.no_bar(), case.learn.no_logging():
        case.learn.fit(1)
    assert seen and not any(seen)


def interrupted_in(model, module) -> None:
    """Run ``module``'s next forward pass as if Ctrl-C were pressed in it."""

    def interrupt(*parts):
        handle.remove()
        raise KeyboardInterrupt

    handle = module.register_forward_hook(interrupt)


@pytest.mark.parametrize("call", ["fit_one_cycle", "fit", "get_preds"])
def test_an_interrupt_leaves_nothing_switched_on(tiny_demo, call):
    case = made("combined", tiny_demo, precision="bf16")
    threads = torch.get_num_threads()
    interrupted_in(case.learn.model, case.learn.model.layer2)
    with case.learn.no_bar(), case.learn.no_logging():
        with pytest.raises(KeyboardInterrupt):
            if call == "fit":
                fitting.fit(case.learn, case.recipe)
            else:
                getattr(case.learn, call)(*[1] * (call == "fit_one_cycle"))
        assert not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_num_threads() == threads and torch.is_grad_enabled()
        case.learn.fit_one_cycle(1)  # and the Learner works on
    assert np.isfinite(case.learn.recorder.values).all()


@pytest.mark.parametrize(("pipeline", "kind"), [("combined", "AdamW"), ("sgd", "SGD")])
def test_rates_momentum_and_decay_reach_their_groups(tiny_demo, pipeline, kind):
    case = made(pipeline, tiny_demo, lr=1e-3, head_factor=10.0, schedule="constant")
    fitting.fit(case.learn, case.recipe)
    assert type(case.learn.opt.opt).__name__ == kind and case.learn.opt.opt.defaults["fused"]
    assert [group["lr"] for group in case.learn.opt.hypers] == pytest.approx([1e-3, 1e-2])
    decay = {"combined": 0.05, "sgd": 1e-4}[pipeline]
    assert all(group["wd"] == decay for group in case.learn.opt.hypers)
    assert all(group["mom"] == 0.9 for group in case.learn.opt.hypers)
    body, head = case.learn.opt.opt.param_groups
    assert {id(p) for p in head["params"]} == {id(p) for p in case.learn.model.fc.parameters()}
    assert len(body["params"]) + len(head["params"]) == len(list(case.learn.model.parameters()))


def test_the_learner_is_built_from_the_recipes_seed(tiny_demo):
    first, again = made("combined", tiny_demo), made("combined", tiny_demo)
    other = made("combined", tiny_demo, seed=1)
    weights = [case.learn.model.conv1.weight for case in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# Any architecture, and the Learner of a finished run


@pytest.mark.parametrize(
    "architecture", ["resnet18", "convnext_tiny", "mobilenet_v3_small", "efficientnet_b0"]
)
def test_any_architecture_of_torchvision_trains_an_epoch(tiny_demo, architecture):
    case = made("combined", tiny_demo, architecture=architecture, batch_size=11)
    fitting.fit(case.learn, case.recipe)
    table = fitting.predict(case.learn.model, case.split, case.recipe)
    assert np.isfinite(fitting.history(case.learn)).all(axis=None)
    assert np.isfinite(table["score"]).all() and len(table) == 43


def test_an_architecture_that_does_not_exist_is_named(tiny_demo):
    with pytest.raises(networks.WeightsError, match="no network 'resnet_18'"):
        made("combined", tiny_demo, architecture="resnet_18")


@pytest.mark.parametrize("pipeline", ["combined", "regression", "modern"])
def test_the_learner_of_a_run_is_the_trained_one(tiny_demo, tmp_path, pipeline):
    recipe = toys.recipe_of(pipeline, precision="float32", test_flips=1, weights="none")
    split = toys.split_of(tiny_demo, recipe)
    run = runs.obtain(split, recipe, tmp_path, "cpu")
    learn = runs.learner(run, split, "cpu")
    files, columns = toys.files_of(split, "test"), ["score"]
    if pipeline != "regression":
        columns = [f"p_{name}" for name in recipe.classes]
    with learn.no_bar():
        answers, _ = learn.get_preds(dl=learn.dls.test_dl(files))
        label, _, values = learn.predict(files[0])
    np.testing.assert_allclose(answers, run.test[columns], rtol=0, atol=1e-5)
    np.testing.assert_allclose(values, answers[0], rtol=0, atol=1e-5)
    assert label == learn.dls.vocab[classes_of(answers.numpy())[0]]
    fitting.fit(learn, recipe)  # goes on from the trained weights
    assert learn.fitted_as is None

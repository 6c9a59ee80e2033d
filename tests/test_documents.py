"""Model cards, flow diagrams and checklist answers: the run's own numbers, escaped, honest about what is missing."""

import html
import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from test_reporting import Page, problems, rows_of

from cervix_utils import checklists, config, datasets, documents, jobs, metrics, paths, reporting, splits

BAD = '"><script src="x">'
HOME = "/home/alice/data"
PAGES = [name for name in reporting.DOCUMENTS if name.endswith(".html")]
DRAWINGS = [name for name in reporting.DOCUMENTS if name.endswith(".svg")]


def table_of(task: str, each: int = 24, extra: tuple[str, ...] = ()) -> pd.DataFrame:
    """``each`` images of every class (and of ``extra`` ones), two a slide; every third cell has no mask."""
    rng = np.random.default_rng(len(task))
    rows = []
    for severity, label in enumerate([*datasets.CLASSES[task], *extra], 1):
        for k in range(each):
            original = "normal_columnar" if label == "normal" and k % 3 else label
            rows.append({"id": f"{label}/{k}", "label": label, "original": original, "severity": severity})
            rows[-1] |= {"source": "train" if k % 4 else "additional", "name_group": f"{label}-{k // 2}"}
            rows[-1] |= {"mask": f"{k}-d.bmp" if task == "herlev" and k % 3 else ""}
    if task == "colposcopy":
        rows += [{"id": f"test//{k}", "label": "", "original": "", "source": "test", "mask": ""} for k in range(7)]
    table = pd.DataFrame(rows).fillna({"name_group": "", "severity": 0})
    hashes = rng.integers(0, 2**63, len(table), dtype=np.uint64)
    return table.assign(width=50, height=40, sha256=[f"{k:064x}" for k in range(len(table))], phash=hashes)


def exclusions_of(*reasons: str) -> pd.DataFrame:
    files = [f"{BAD}{k}.bmp" for k in range(len(reasons))]
    return pd.DataFrame({"file": files, "reason": list(reasons)}, columns=["file", "reason"], dtype=str)


REASONS = ["system file, not an image", "truncated or damaged (image file is truncated)", "not an image"]
REASONS += [f"same id or same pixels as a/{k}.bmp" for k in range(2)] + [f"{BAD}: no such thing"]
REASONS += ["mask is 12x9, its image 10x8", "unknown class: no folder of its path names one of normal, light"]
COUNTED = {"same id or same pixels as another image": 2, "truncated or damaged": 1, BAD: 1, "unknown class": 1}
COUNTED |= {"mask of another size than its image": 1, "system file, not an image": 1, "not an image": 1}


USUAL = config.validate({}, "a test")
CELLS = ("binary_accuracy", "binary_f1", "sensitivity", "specificity", "kappa_quadratic", "mse")


def settings_of(**more):
    made = {"report_name": "quick", "data_root": HOME, "herlev_pipelines": ["classification", "combined_w0.3"]}
    return USUAL | made | more


def results_of(settings) -> pd.DataFrame:
    """Every metric a card knows, with values that tell where they come from."""
    rows, value = [], 0.1
    for task, pipelines in (("herlev", settings["herlev_pipelines"]), ("colposcopy", settings["colposcopy_recipes"])):
        names = [*documents.METRICS, *(f"{kind}_{name}" for name in datasets.CLASSES[task] for kind in ("f1", "auc"))]
        folds = settings[f"{task}_folds"]
        for pipeline in pipelines:
            for protocol in settings[f"{task}_protocols"]:
                for fold in [*map(str, folds), *(["mean", "pooled"] if len(folds) > 1 else [])]:
                    for name in names if task == "herlev" else [n for n in names if n not in CELLS]:
                        value = round(value + 0.00137, 6)
                        low, high, paper = value - 0.01, value + 0.01, 0.745 if name == "accuracy" else None
                        rows.append((task, pipeline, protocol, fold, 30, name, value, low, high, paper))
    return pd.DataFrame(rows, columns=metrics.COLUMNS)


def write_runs(folder, settings, tables, fingerprint=None):
    """recipe.json of every training, as `runs.write` leaves them, without networks."""
    for task, (table, _) in tables.items():
        table = splits.with_groups(table, settings["phash_distance"])
        for pipeline in settings["herlev_pipelines" if task == "herlev" else "colposcopy_recipes"]:
            for protocol in settings[f"{task}_protocols"]:
                fold = settings[f"{task}_folds"][0]
                split = splits.assign_parts(table, task, protocol, fold, 4, settings["valid_fraction"], 0)
                recipe = {"task": task, "pipeline": pipeline, "protocol": protocol, "fold": fold, "device": "cpu"}
                recipe |= {"precision": "bf16", "epoch_kept": 3, "initialisation": f"resnet, {HOME}/w.pth (sha256 ab)"}
                recipe["data_fingerprint"] = fingerprint or datasets.fingerprint(split)
                file = paths.run_dir(folder / "runs", task, pipeline, protocol, fold) / "recipe.json"
                file.parent.mkdir(parents=True)
                file.write_text(json.dumps(recipe))


@pytest.fixture(scope="module")
def tables():
    return {
        "herlev": (table_of("herlev"), exclusions_of(*REASONS)),
        "colposcopy": (table_of("colposcopy", extra=(BAD,)), exclusions_of()),
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory, tables):
    """A made-up report folder with everything a run leaves but the networks."""
    settings, tmp_path = settings_of(), tmp_path_factory.mktemp("report")
    results_of(settings).to_csv(tmp_path / "results.csv", index=False)
    write_runs(tmp_path, settings, tables)
    (tmp_path / "03_herlev_resnet101_paper-0.html").write_text("")
    fingerprints = {task: datasets.fingerprint(table) for task, (table, _) in tables.items()}
    reporting.write_run_json(tmp_path / "run.json", settings, fingerprints, {"01_data": 75.0})
    documents.write(tmp_path, settings, tables)
    return tmp_path


def texts(folder) -> dict[str, str]:
    return {name: (folder / name).read_text("utf-8") for name in reporting.DOCUMENTS}


def answers(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "checklist.csv", dtype=str, keep_default_na=False)


def test_pages_carry_the_disclaimer_load_nothing_and_name_no_folder(report):
    for name, text in texts(report).items():
        assert "alice" not in text, name
        if name.endswith(".csv"):
            continue
        assert "Research use only" in text, name
        if name in PAGES:
            assert problems(text) == [], name
            assert not [a for a in Page(text).all("a") if re.match("https?:|//", a["href"])], name
            assert not re.search(r"<t[dh][^>]*>\s*</t[dh]>", text), name  # no fact that a template asked for in vain


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_whole_load_nothing_and_run_nothing(report, name):
    root = ET.parse(report / name).getroot()
    kinds = {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in root.iter()}
    assert kinds == {"svg", "title", "rect", "path", "g", "text"}
    names = {key for element in root.iter() for key in element.attrib}
    assert not [key for key in names if key.startswith("on") or "href" in key or key == "style"]
    bottom = max(float(box.get("y", 0)) + float(box.get("height")) for box in root.iter() if box.tag.endswith("rect"))
    assert bottom <= float(root.get("height"))


def test_hostile_names_are_text(report):
    pages = {name: Page(text) for name, text in texts(report).items() if name in PAGES}
    assert all(len(page.all("script")) == 1 for page in pages.values())
    cells = pages["model_card_herlev.html"].text("main")
    assert f"1 {BAD}" in cells and f"{BAD}0.bmp" in cells  # a reason in the diagram, a file in the table
    assert f"24 {BAD}" in pages["checklist.html"].text("main")
    assert BAD in pages["model_card_colposcopy.html"].text("main")  # a class
    lines = [element.text for element in ET.parse(report / "flow_herlev.svg").iter() if element.tag.endswith("text")]
    assert f"1 {BAD}" in lines


def test_reasons_are_counted_without_what_differs_from_file_to_file(tables):
    assert Counter(documents.kinds(pd.Series(REASONS))) == COUNTED
    assert documents.kinds(pd.Series([], dtype=str)).empty


@pytest.mark.parametrize("task", list(datasets.CLASSES))
def test_counts_in_the_card_are_those_of_the_tables(report, tables, task):
    text = (report / f"model_card_{task}.html").read_text("utf-8")
    rows = {html.unescape(key): cells for key, cells in rows_of(text).items()}
    table, settings = splits.with_groups(tables[task][0], 8), settings_of()
    columns = [Counter(label for label in table["label"] if label)]
    for protocol in settings[f"{task}_protocols"]:
        split = splits.assign_parts(table, task, protocol, 0, 4, settings["valid_fraction"], 0)
        columns += [
            Counter(label for label, where in zip(split["label"], split["part"]) if where == part)
            for part in splits.PARTS
        ]
    for label in columns[0]:
        assert rows[label] == [str(column[label]) for column in columns]
    assert rows["All"] == [str(column.total()) for column in columns]
    assert rows["Images read"] == [f"{len(table)} in {table['group'].nunique()} groups of relatives"]
    assert rows["Fingerprint"] == [datasets.fingerprint(table)]


@pytest.mark.parametrize("task", list(datasets.CLASSES))
def test_numbers_in_the_card_are_those_of_results_csv(report, task):
    text = (report / f"model_card_{task}.html").read_text("utf-8")
    results = pd.read_csv(report / "results.csv").query("task == @task")
    for row in results.itertuples():
        assert f"<td>{row.value:.3f} ({row.low:.3f} to {row.high:.3f})</td>" in text, row
    shown = re.findall(r"<td>\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)</td>", text)
    assert len(shown) == len(results)
    for pipeline, body in re.findall(r'colspan="4">(\w[^<]*)</th></tr>(.*?)</tbody>', text, re.DOTALL):
        rows, own = rows_of(body), results[results["pipeline"] == pipeline]
        for metric, label in documents.METRICS.items():
            found = own[own["metric"] == metric].set_index("protocol")["value"]
            if label in rows:
                assert [cell[:5] for cell in rows[label][1:]] == [f"{found[p]:.3f}" for p in ("paper", "grouped")]
        if "Accuracy" in rows:
            assert rows["Accuracy"][0] == "0.745" and rows["F1, mean of the classes"][0] == "–"
    assert ("Sensitivity for abnormal" in text) == (task == "herlev")  # no row where results.csv has no number


def test_choices_are_those_of_the_recipes(report):
    rows = documents.choices("colposcopy", settings_of(), ["sgd", "modern"]).set_index(["choice", "pipelines"])
    assert list(rows.loc[("batch_size", "sgd")]) == ["60", "as stated (paper C, section 4.1)"]
    assert list(rows.loc[("batch_size", "modern")]) == ["8", "departs from 60 (paper C, section 4.1)"]
    assert rows.loc[("architecture", "all"), "value"] == "resnet50"
    three = documents.choices("herlev", settings_of(), ["classification", "combined", "combined_w0.3"])
    own = three[three["pipelines"] != "all"]
    assert own[["choice", "pipelines", "value"]].to_numpy().tolist() == [
        ["regression_weight", "classification, combined", "1"],
        ["regression_weight", "combined_w0.3", "0.3"],
    ]


def adds_up(boxes):
    """Main boxes hold what the next main box and the side boxes between hold together."""
    mains = [place for place, box in enumerate(boxes) if box["kind"] == "main"]
    for here, following in itertools.pairwise(mains):
        assert boxes[here]["n"] == sum(box["n"] for box in boxes[here + 1 : following + 1])
    return boxes[mains[0]]["n"], boxes[mains[-1]]["n"]


@pytest.mark.parametrize("task", list(datasets.CLASSES))
def test_the_flow_adds_up(tables, task):
    settings = settings_of(colposcopy_protocols=["paper", "grouped", "train_only"])
    own = documents.gather(paths.ROOT / "nowhere", settings, tables)["tasks"][task]
    table, exclusions = own["table"], own["exclusions"]
    boxes = documents.flow(table, exclusions, own["splits"], 0)
    files, images = adds_up(boxes)
    assert files == len(table) + sum(mask != "" for mask in table["mask"]) + len(exclusions)
    assert images == sum(label != "" for label in table["label"])
    for protocol, split in own["splits"].items():
        (box,) = [box for box in boxes if box["lines"][0] == f"{protocol} protocol, fold 0"]
        found = re.findall(r"(train|valid|test): (\d+) images in (\d+) groups", "\n".join(box["lines"]))
        assert [name for name, *_ in found] == splits.PARTS and box["n"] == sum(int(n) for _, n, _ in found)
        expected = [split.loc[split["part"] == name, "group"] for name in splits.PARTS]
        assert [(int(n), int(g)) for _, n, g in found] == [(len(part), len(set(part))) for part in expected]
        left = images - box["n"]
        assert (f"left out: {left} images" in box["lines"]) == (left > 0)
        assert (left > 0) == (protocol == "train_only")
    counted = [line for box in boxes if box["kind"] == "side" for line in box["lines"][1:]]
    assert counted == ([f"{n} {kind}" for kind, n in exclusions["kind"].value_counts().items()])


def test_every_file_of_a_folder_is_in_the_flow(tmp_path, write_image, write_mask):
    for severity, name in enumerate(datasets.SEVERITY):
        for k in range(4):
            write_image(tmp_path / "herlev" / name / f"{severity}{k}-1-1.bmp", seed=10 * severity + k)
            write_mask(tmp_path / "herlev" / name / f"{severity}{k}-1-1-d.bmp", (12, 9) if k else (5, 5))
    (tmp_path / "herlev" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "herlev" / name / "empty.bmp").write_bytes(b"")
    table, exclusions = datasets.load(str(tmp_path), "herlev")
    kinds = exclusions.assign(kind=documents.kinds(exclusions["reason"]))
    boxes = documents.flow(splits.with_groups(table, 0), kinds, {}, 0)
    assert adds_up(boxes)[0] == sum(file.is_file() for file in (tmp_path / "herlev").rglob("*"))
    assert "7 mask of another size than its image" in boxes[1]["lines"] and boxes[2]["n"] == 21


def test_checklists_are_whole_and_answers_filled(report, tables):
    found = answers(report)
    assert list(found) == ["guideline", "item", "section", "topic", "status", "answer"]
    assert not found.duplicated(["guideline", "item"]).any() and not (found == "").any(axis=None)
    assert set(found["status"]) == set(checklists.STATUSES)
    numbers = found.assign(number=found["item"].str.extract(r"(\d+)", expand=False)).groupby("guideline")["number"]
    assert numbers.nunique().to_dict() == {"CLAIM 2024": 44, "TRIPOD+AI": 27, "STARD-AI": 40}
    assert found["guideline"].value_counts().to_dict() == {"TRIPOD+AI": 52, "STARD-AI": 48, "CLAIM 2024": 44}
    assert not found["answer"].str.contains(r"\{\w*\}|\bnan\b|\bNone:", regex=True).any()
    run = found[found["status"] == "from the run"]
    assert len(run) > 70 and not run["answer"].str.contains(checklists.MISSING).any()
    page = Page((report / "checklist.html").read_text("utf-8")).text("td")
    assert all(" ".join(answer.split()) in " ".join(page.split()) for answer in found["answer"])
    known = {(row.guideline, row.item): row.answer for row in found.itertuples()}
    assert f"{len(tables['herlev'][0])} images" in known["CLAIM 2024", "7"]
    accuracy = pd.read_csv(report / "results.csv").query("metric == 'accuracy'")
    assert all(f" {value:.3f} (" in known["CLAIM 2024", "37"] for value in accuracy["value"])
    assert "resnet, w.pth (sha256 ab)" in known["CLAIM 2024", "24"]
    assert "16 normal_columnar, 8 normal" in known["STARD-AI", "26b"]
    assert "03_herlev_resnet101_paper-0.html" in known["CLAIM 2024", "39"]


def test_items_name_known_fields_and_every_fact_is_used(report, tables):
    items = [item for entry in checklists.guidelines().values() for item in entry["items"]]
    fields = {field for item in items for field in re.findall(r"\{(\w+)\}", item["answer"])}
    known = set(checklists.facts(documents.gather(report, settings_of(), tables)))
    assert fields <= known
    card = (paths.ROOT / "cervix_utils/templates/report/documents/model_card.html.j2").read_text()
    assert known - fields <= set(re.findall(r"facts_text\.(\w+)", card))
    static = [item for item in items if item["status"] == "from the run" and "{" not in item["answer"]]
    assert not static  # what calls itself from the run names something of the run


def test_facts_are_those_of_the_splits(report, tables):
    study = documents.gather(report, settings_of(), tables)
    facts = checklists.facts(study)
    assert facts["attribution"].startswith("Integrated Gradients")
    without = study | {"settings": study["settings"] | {"attribution_images": 0}}
    assert checklists.facts(without)["attribution"].startswith(f"{checklists.MISSING}: the report has no notebook 4")
    assert study["settings"]["data_root"] == "data"  # no folder of this machine
    for own in study["tasks"].values():
        for protocol, split in own["splits"].items():
            n = Counter(split["part"])
            assert f"{protocol} {n['train']} train, {n['valid']} valid, {n['test']} test" in facts["parts"]
            trained = set(split.loc[split["part"] != "test", "group"])
            test = [group in trained for group in split.loc[split["part"] == "test", "group"]]
            assert f"{sum(test) / len(test):.0%} ({protocol})" in facts["known"]
            assert any(test) == (protocol == "paper")
    assert facts["masks"] == "80 of 120 cells" and facts["unlabelled"].endswith("photographs: 7")


def test_without_exclusions_results_record_or_runs(tmp_path, tables, monkeypatch):
    bare = {task: (table, exclusions_of()) for task, (table, _) in tables.items()}
    assert len(documents.write(tmp_path, settings_of(), bare)) == len(reporting.DOCUMENTS)
    for name, text in texts(tmp_path).items():
        assert name not in PAGES or problems(text) == []
    card = Page((tmp_path / "model_card_herlev.html").read_text("utf-8")).text("main")
    assert "results.csv has no numbers for this task yet" in card and "Every file was used." in card
    assert "no finished training in this run" in card and "run.json is missing" in card
    found = answers(tmp_path)
    lacking = found["answer"].str.contains(checklists.MISSING)
    assert lacking.sum() > 5 and (found.loc[lacking, "status"] == "by hand").all()
    (weights,) = found.query("guideline == 'CLAIM 2024' and item == '24'")["answer"]
    assert weights == "not in this run: no finished training under runs/ says it."
    assert "commit unknown (no git checkout" in " ".join(found["answer"])


def test_without_git_or_a_metric_or_a_protocol(tmp_path, tables, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    settings = settings_of(herlev_protocols=["grouped"], colposcopy_folds=[1, 2])
    results = results_of(settings).query("task == 'colposcopy' or metric == 'f1_macro'")
    results.assign(low=np.nan, high=np.nan).to_csv(tmp_path / "results.csv", index=False)
    reporting.write_run_json(tmp_path / "run.json", settings, {}, {})
    documents.write(tmp_path, settings, tables)
    found = answers(tmp_path).set_index(["guideline", "item"])
    assert "commit unknown (no git checkout" in found.at[("CLAIM 2024", "23"), "answer"]
    assert found.at[("CLAIM 2024", "23"), "status"] == "from the run"  # versions are known
    assert "results.csv has no sensitivity" in found.at[("STARD-AI", "31"), "answer"]
    cells, photographs = (Page((tmp_path / f"model_card_{t}.html").read_text()) for t in ("herlev", "colposcopy"))
    assert "paper protocol" not in cells.text("table") and "grouped protocol" in cells.text("table")
    assert "fold 1" in photographs.text("svg") and "fold 0" not in photographs.text("svg")
    assert "mean of 2 folds" in photographs.text("table") and "nan" not in cells.text("table")


def test_other_data_than_trained_on_is_said(report, tmp_path, tables):
    settings = settings_of()
    write_runs(tmp_path, settings, tables, "0" * 12)
    documents.write(tmp_path, settings, tables)
    for folder, said in ((report, False), (tmp_path, True)):
        assert ("do not belong together" in (folder / "model_card_herlev.html").read_text()) == said


def test_the_command_names_what_was_changed_and_no_folder():
    settings = config.load(paths.CONFIG / "quick.yaml") | {"report_name": "quick", "data_root": HOME}
    assert documents.command(settings) == "make reports CONFIG=quick DATA=/path/to/data"
    settings |= {"herlev_epochs": 20, "herlev_folds": [0, 1], "weights_resnet50": f"{HOME}/r50.pth", "fold": 3}
    assert documents.command(settings).endswith(
        'SET="weights_resnet50=/path/to/r50.pth herlev_folds=[0,1] herlev_epochs=20"'
    )
    demo = config.load(paths.CONFIG / "demo.yaml") | {"report_name": "demo"}
    assert documents.command(demo) == "make reports CONFIG=demo"
    assert documents.command({**demo, "report_name": BAD}) == f"make reports CONFIG={BAD}"


@pytest.mark.parametrize(
    ("found", "text"),
    [(None, "–"), ((0.5, 0.4, 0.6, 1), "0.500 (0.400 to 0.600)"), ((0.5, None, None, 1), "0.500"),
     ((0.55, 0.5, 0.6, 2), "0.550 (0.500 to 0.600; mean of 2 folds)")],
)  # fmt: skip
def test_number(found, text):
    assert checklists.number(found and dict(zip(("value", "low", "high", "folds"), found))) == text


def test_the_last_step_writes_and_links_them_and_the_demo_says_what_it_is(tmp_path, tiny_demo, monkeypatch):
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    settings = settings_of(data_root=str(tiny_demo), report_name="tiny", herlev_n_folds=2, phash_distance=0) | {
        "valid_fraction": 0.3
    }
    jobs.index("tiny", settings)
    page = Page((tmp_path / "tiny/index.html").read_text("utf-8"))
    assert {a["href"] for a in page.all("a")} >= set(reporting.DOCUMENTS)
    monkeypatch.setattr(datasets, "find", lambda *_: tiny_demo / "herlev")
    tables = {task: (table_of(task), exclusions_of()) for task in datasets.CLASSES}
    documents.write(tmp_path, settings_of(data_root="demo"), tables)
    for name in PAGES:
        assert "This is the demonstration run" in (tmp_path / name).read_text("utf-8")
    (source,) = answers(tmp_path).query("guideline == 'CLAIM 2024' and item == '5'")["answer"]
    assert "drawn by this project" in source and "Herlev" not in source

"""Documents beside a report: a model card and a flow diagram a task, answers for reporting checklists."""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cervix_utils import checklists, config, datasets, paths, recipes, rendering, reporting, splits

TITLES = {
    "herlev": "Severity of single Pap-smear cells (Herlev)",
    "colposcopy": "Cervix types in colposcopy photographs (MobileODT)",
}
METRICS = {  # shown in a card where results.csv has them, in this order
    "accuracy": "Accuracy",
    "f1_macro": "F1, mean of the classes",
    "auc_mean": "AUC, mean of the classes",
    "kappa_quadratic": "Cohen's kappa, quadratic weights",
    "log_loss": "Log-loss (lower is better)",
    "mse": "Squared error of the severity score (lower is better)",
    "binary_accuracy": "Accuracy, normal or abnormal",
    "binary_f1": "F1, normal or abnormal",
    "sensitivity": "Sensitivity for abnormal",
    "specificity": "Specificity for abnormal",
}
_OF_A_RUN = ["task", "pipeline", "protocol", "fold"]


def kinds(reasons: pd.Series) -> pd.Series:
    """Reasons of an exclusion table without what differs from file to file (names, sizes, messages)."""
    plain = reasons.str.replace(r"(same id or same pixels as) .*", r"\1 another image", regex=True)
    plain = plain.str.replace(r"mask is \d.*", "mask of another size than its image", regex=True)
    return plain.str.replace(r"\s*[:(].*", "", regex=True)


def gather(
    report_dir: Path, settings: Mapping[str, Any], tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
) -> dict[str, Any]:
    """What the documents say, read from a report folder: settings, run, command, numbers, published, tasks.

    ``settings``: the complete configuration. ``tables``: task -> (table, exclusions) of ``datasets.load``. ``numbers``
    is ``reporting.headline``. A task holds its table (with ``group``), exclusions (with ``kind``), pipelines, folds,
    splits (protocol -> table with ``part``, first fold), trained (recipe.json of each run of this configuration) and
    changed (whether the data are others than those trained on).
    """
    results, run = reporting.read_results(report_dir), report_dir / "run.json"
    study = {
        "settings": paths.public(settings),
        "command": command(settings),
        "demo": settings["data_root"] == "demo",
        "run": json.loads(run.read_text("utf-8")) if run.exists() else {},
        "numbers": reporting.headline(results),
        "published": reporting.published(results),
        "notebooks": sorted(path.name for path in report_dir.glob("0[23]_*.html")),
        "tasks": {},
    }
    for task, (table, exclusions) in tables.items():
        table = splits.with_groups(table, settings["phash_distance"])
        protocols, folds = settings[f"{task}_protocols"], settings[f"{task}_folds"]
        pipelines = settings["herlev_pipelines" if task == "herlev" else "colposcopy_recipes"]
        cut = (settings["herlev_n_folds"], settings["valid_fraction"], settings["seed"])
        parts = {name: splits.assign_parts(table, task, name, folds[0], *cut) for name in protocols}
        files = sorted((report_dir / "runs" / task).glob("[!.]*/[!.]*/recipe.json"))
        trained = [paths.public(json.loads(file.read_text("utf-8"))) for file in files]
        trained = [r for r in trained if r["protocol"] in parts and r["fold"] in folds and r["pipeline"] in pipelines]
        current = {name: datasets.fingerprint(split) for name, split in parts.items()}
        study["tasks"][task] = {
            "table": table,
            "exclusions": exclusions.assign(kind=kinds(exclusions["reason"])),
            "pipelines": pipelines,
            "folds": folds,
            "splits": parts,
            "trained": trained,
            "changed": any(r.get("data_fingerprint", "") != current[r["protocol"]] for r in trained),
        }
    return study


def command(settings: Mapping[str, Any]) -> str:
    """The command that makes this report again; paths are left to the reader."""
    name, file = settings["report_name"], paths.CONFIG / f"{settings['report_name']}.yaml"
    usual = config.load(file) if file.is_file() else {}
    own = {"data_root", *(key for key, entry in config.schema().items() if entry.get("set_by") == "workflow")}
    changed = []
    for key in (key for key in usual if key not in own and usual[key] != settings[key]):
        shown = paths.public(settings[key])
        place = "/path/to/" if shown != settings[key] else ""
        shown = f"[{','.join(map(str, shown))}]" if isinstance(shown, list) else str(shown)
        changed.append(f"{key}={place}{shown}")
    data = "" if settings["data_root"] == "demo" else " DATA=/path/to/data"
    return f"make reports CONFIG={name}{data}" + (f' SET="{" ".join(changed)}"' if changed else "")


def choices(task: str, settings: Mapping[str, Any], pipelines: list[str]) -> pd.DataFrame:
    """``recipes.choices`` of all pipelines, one row where they agree: choice, pipelines, value, source."""
    at = {"protocol": settings[f"{task}_protocols"][0], "fold": settings[f"{task}_folds"][0]}
    recipe = {"herlev": recipes.herlev, "colposcopy": recipes.colposcopy}[task]
    every = pd.concat([recipes.choices(recipe({**settings, **at}, name)).assign(pipelines=name) for name in pipelines])
    every = every[~every["choice"].isin(_OF_A_RUN)]
    rows = every.groupby(["choice", "value", "source"], sort=False, as_index=False)["pipelines"].agg(", ".join)
    rows["pipelines"] = rows["pipelines"].replace(", ".join(pipelines), "all")
    order = {name: place for place, name in enumerate(every["choice"].unique())}
    return rows.sort_values("choice", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def flow(table: pd.DataFrame, exclusions: pd.DataFrame, parts: Mapping[str, pd.DataFrame], fold: int) -> list[dict]:
    """Boxes of the flow diagram, downwards: kind (main, side or part), n (files or images), lines of text.

    Every file is in one place: the n of a main box is that of the next one plus the side boxes between them.
    """

    def box(kind: str, n: int, *lines: str) -> dict[str, Any]:
        wrapped = [part for line in lines for part in textwrap.wrap(line, 46) or [""]]
        return {"kind": kind, "n": int(n), "lines": wrapped}

    def size(images: pd.DataFrame, what: str = "images") -> str:
        return f"{len(images)} {what} in {images['group'].nunique()} groups of relatives"

    masks, labelled = int((table["mask"] != "").sum()), table[table["label"] != ""]
    found = len(table) + masks + len(exclusions)
    reasons = [f"{count} {kind}" for kind, count in exclusions["kind"].value_counts().items()]
    boxes = [box("main", found, f"{found} files found")]
    boxes += [box("side", len(exclusions), f"{len(exclusions)} files not used", *reasons)]
    boxes += [box("side", masks, f"{masks} masks, each kept with its image")] if masks else []
    boxes += [box("main", len(table), size(table))]
    if without := len(table) - len(labelled):
        boxes += [box("side", without, f"{without} images without a label")]
        boxes += [box("main", len(labelled), size(labelled, "labelled images"))]
    for protocol, split in parts.items():
        lines = [f"{protocol} protocol, fold {fold}"]
        lines += [f"{part}: {size(split[split['part'] == part])}" for part in splits.PARTS]
        lines += [f"{len(splits.straddling(split))} groups stand in more than one part"]
        lines += [f"left out: {len(labelled) - len(split)} images"] if len(split) < len(labelled) else []
        boxes.append(box("part", len(split), *lines))
    return boxes


def card(study: Mapping[str, Any], known: Mapping[str, str], task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the model card's template for one task; ``known`` is ``checklists.facts``."""
    own, numbers = study["tasks"][task], study["numbers"]
    ran = [name for name in own["splits"] if any(key[0] == task and key[3] == name for key in numbers)]
    classes = checklists.class_counts(own["table"], task)

    def rows(pipeline: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
        found = {name: [numbers.get((task, pipeline, name, protocol)) for protocol in ran] for name in names}
        return [
            {
                "label": names[name],
                "published": study["published"].get((task, pipeline, name)),
                "values": [checklists.number(value) for value in values],
            }
            for name, values in found.items()
            if any(values)
        ]

    by_class = {f"{kind}_{name}": f"{kind.upper()}, {name}" for name in classes.index for kind in ("f1", "auc")}
    counts = {
        (name, part): checklists.class_counts(split[split["part"] == part], task).reindex(classes.index, fill_value=0)
        for name, split in own["splits"].items()
        for part in splits.PARTS
    }
    return {
        "task": task,
        "study": study,
        "own": own,
        "ran": ran,
        "counts": counts,
        "classes": classes,
        "fingerprint": datasets.fingerprint(own["table"]),
        "normal_share": (own["table"]["label"] == "normal").mean(),
        "excluded": own["exclusions"]
        .groupby("kind", as_index=False)
        .agg(files=("file", "size"), first=("file", "min")),
        "choices": choices(task, settings, own["pipelines"]).to_dict("records"),
        "main": {name: rows(name, METRICS) for name in own["pipelines"]},
        "by_class": {name: rows(name, by_class) for name in own["pipelines"]},
        "facts_text": known,
        "boxes": flow(own["table"], own["exclusions"], own["splits"], own["folds"][0]),
    }


def write(
    report_dir: Path, settings: Mapping[str, Any], tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
) -> list[Path]:
    """Write the files of ``reporting.DOCUMENTS`` into a report folder (see ``gather`` for the arguments)."""
    study, name = gather(report_dir, settings, tables), re.sub(r"\s+", " ", str(settings["report_name"]))
    known, written = checklists.facts(study), []
    for task in study["tasks"]:
        values = {**card(study, known, task, settings), "title": TITLES[task]}
        page = rendering.page(f"Model card: {TITLES[task]}")
        html = rendering.fill("documents/model_card.html.j2", page=page, name=name, took=rendering.took, **values)
        svg = rendering.fill("documents/flow.svg.j2", boxes=values["boxes"], title=TITLES[task])
        written.append(rendering.write(report_dir / f"model_card_{task}.html", html))
        written.append(rendering.write(report_dir / f"flow_{task}.svg", svg))
    answers = checklists.fill(known)
    about = {"about": checklists.guidelines(), "statuses": checklists.STATUSES}
    page = rendering.page("Answers for reporting checklists")
    html = rendering.fill(
        "documents/checklist.html.j2", page=page, name=name, demo=study["demo"], answers=answers, **about
    )
    written.append(rendering.write(report_dir / "checklist.html", html))
    written.append(rendering.write(report_dir / "checklist.csv", answers.to_csv(index=False)))
    return written

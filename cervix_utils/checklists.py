"""checklists.yaml + facts of a run -> answers for CLAIM 2024, TRIPOD+AI and STARD-AI: an aid, no claim of compliance."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cervix_utils import datasets, splits

ITEMS = Path(__file__).with_name("checklists.yaml")
STATUSES = {"from the run": "run", "by hand": "hand", "not possible": "not"}  # status -> class in style.css
MISSING = "not in this run"  # opens the text of every fact that a run does not give
NAMES = {"herlev": "Herlev cells", "colposcopy": "cervix photographs"}
COLLECTIONS = {
    "herlev": "Herlev (smear2005; Jantzen, Norup, Dounias, Bjerregaard, NiSIS 2005), single Pap-smear cells with masks",
    "colposcopy": "MobileODT (Intel and MobileODT Cervical Cancer Screening, Kaggle 2017), cervix photographs",
}


@cache
def guidelines() -> dict[str, dict[str, Any]]:
    """Guideline -> title, source, fits (what of this project it is about) and items, of checklists.yaml."""
    return yaml.safe_load(ITEMS.read_text("utf-8"))


def number(found: Mapping[str, Any] | None) -> str:
    """An entry of ``reporting.headline`` as text: value (interval), of how many folds the mean; a dash for None."""
    if not found:
        return "–"
    notes = [] if pd.isna(found["low"]) else [f"{found['low']:.3f} to {found['high']:.3f}"]
    notes += [f"mean of {found['folds']} folds"] if found["folds"] > 1 else []
    return f"{found['value']:.3f}" + (f" ({'; '.join(notes)})" if notes else "")


def listed(counts: pd.Series) -> str:
    """``{'a': 2, 'b': 1}`` -> ``2 a, 1 b``, or ``none``."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def class_counts(table: pd.DataFrame, task: str) -> pd.Series:
    """Labelled images by class, the task's classes first and in their order."""
    labels = table.loc[table["label"] != "", "label"]
    return labels.value_counts().reindex(dict.fromkeys([*datasets.CLASSES[task], *sorted(set(labels))]), fill_value=0)


def facts(study: Mapping[str, Any]) -> dict[str, str]:
    """Named fields of the answers, from ``documents.gather``; what the run lacks starts with ``MISSING``."""
    settings, run, tasks = study["settings"], study["run"], study["tasks"]

    def each(text) -> str:
        """One part a task, '; ' between them."""
        return "; ".join(f"{NAMES[task]}: {text(task, own)}" for task, own in tasks.items())

    def recorded(key: str) -> str:
        """What recipe.json of the trained networks says under ``key``."""
        found = {
            name: sorted({str(r[key]) for r in own["trained"] if key in r}, key=lambda text: (len(text), text))
            for name, own in tasks.items()
        }
        known = [f"{NAMES[name]}: {', '.join(values)}" for name, values in found.items() if values]
        return "; ".join(known) or f"{MISSING}: no finished training under runs/ says it"

    def measured(*metrics: str) -> str:
        """Each metric of each protocol: the pipelines with their intervals."""
        rows: dict[str, list[str]] = {}
        for (task, pipeline, metric, protocol), found in study["numbers"].items():
            if metric in metrics and task in tasks:
                rows.setdefault(f"{NAMES[task]}, {protocol} protocol, {metric}", []).append(
                    f"{pipeline} {number(found)}"
                )
        return (
            "; ".join(f"{of}: {', '.join(values)}" for of, values in sorted(rows.items()))
            or f"{MISSING}: results.csv has no {' or '.join(metrics)}"
        )

    def cut(task: str, own: Mapping[str, Any]) -> str:
        sizes = {name: split["part"].value_counts().reindex(splits.PARTS) for name, split in own["splits"].items()}
        return f"fold {own['folds'][0]}, " + ", ".join(f"{name} {listed(size)}" for name, size in sizes.items())

    def known(task: str, own: Mapping[str, Any]) -> str:
        """Share of the test part with a relative in training; what the protocols are for."""
        audits = {name: splits.audit(split, settings["phash_distance"]) for name, split in own["splits"].items()}
        shares = {name: audit.set_index("relative").at["same group", "share"] for name, audit in audits.items()}
        return ", ".join(f"{share:.0%} ({name})" for name, share in shares.items())

    cells = tasks["herlev"]["table"]
    protocols = {name for own in tasks.values() for name in own["splits"]}
    commit = run.get("commit", "unknown")
    seconds = sum(run.get("seconds", {}).values())
    return {
        "command": study["command"],
        "date": run.get("date", f"{MISSING}: run.json")[:16].replace("T", " "),
        "commit": "unknown (no git checkout of this project, or no git)" if commit == "unknown" else commit,
        "versions": ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()) or f"{MISSING}: run.json",
        "minutes": f"{seconds / 60:.0f} minutes for all notebooks" if seconds else f"{MISSING}: times of notebooks",
        "fingerprints": each(lambda task, own: datasets.fingerprint(own["table"])),
        "collections": "pictures drawn by this project (its demo): no patient, no meaning"
        if study["demo"]
        else "; ".join(COLLECTIONS[task] for task in tasks),
        "images": each(lambda task, own: f"{len(own['table'])} images in {own['table']['group'].nunique()} groups"),
        "classes": each(lambda task, own: listed(class_counts(own["table"], task))),
        "normal_kinds": listed(cells.loc[cells["label"] == "normal", "original"].value_counts()),
        "normal_share": f"{(cells['label'] == 'normal').mean():.0%}",
        "excluded": each(lambda task, own: listed(own["exclusions"]["kind"].value_counts())),
        "unlabelled": each(lambda task, own: f"{(own['table']['label'] == '').sum()}"),
        "sizes": each(
            lambda task, own: (
                f"{own['table']['width'].min()} x {own['table']['height'].min()} to "
                f"{own['table']['width'].max()} x {own['table']['height'].max()} pixels (least and largest sides)"
            )
        ),
        "masks": f"{(cells['mask'] != '').sum()} of {len(cells)} cells",
        "protocols": "; ".join(f"{name}: {splits.PROTOCOLS[name]}" for name in splits.PROTOCOLS if name in protocols),
        "parts": each(cut),
        "known": each(known),
        "folds": each(
            lambda task, own: (
                f"{', '.join(map(str, own['folds']))} of {settings['herlev_n_folds'] if task == 'herlev' else 3}"
            )
        ),
        "n_test": each(
            lambda task, own: ", ".join(f"{(s['part'] == 'test').sum()} ({n})" for n, s in own["splits"].items())
        ),
        "pipelines": each(lambda task, own: ", ".join(own["pipelines"])),
        "input": f"{settings['herlev_image_size']} x {settings['herlev_image_size']} pixels for cells, "
        f"{settings['colposcopy_image_size']} x {settings['colposcopy_image_size']} for photographs",
        "epochs": f"{settings['herlev_epochs']} for cells, {settings['colposcopy_sgd_epochs']} (sgd) and "
        f"{settings['colposcopy_epochs']} (modern) for photographs",
        "balanced": "classes drawn equally often (not by the sgd recipe)"
        if settings["balanced_sampling"]
        else "no class balancing",
        "flips": f"{settings['test_flips']}",
        "initialisation": recorded("initialisation"),
        "device": recorded("device"),
        "precision": recorded("precision"),
        "selection": recorded("epoch_kept"),
        "seed": f"{settings['seed']}",
        "n_boot": f"{settings['n_boot']}",
        "phash_distance": f"{settings['phash_distance']}",
        "valid_fraction": f"{settings['valid_fraction']:g}",
        "metrics": ", ".join(sorted({key[2] for key in study["numbers"]})) or f"{MISSING}: results.csv is not there",
        "accuracy": measured("accuracy"),
        "auc": measured("auc_mean"),
        "operating_point": measured("sensitivity", "specificity"),
        "confusion": ", ".join(study["notebooks"]) or f"{MISSING}: no page of notebook 2 or 3",
        "attribution": f"Integrated Gradients ({settings['attribution_method']}, {settings['attribution_steps']} steps, "
        f"baseline {settings['attribution_baseline']}) of the pipeline {settings['attribution_pipeline']} on at most "
        f"{settings['attribution_images']} test cells; Grad-CAM for photographs"
        if settings["attribution_images"]
        else f"{MISSING}: the report has no notebook 4 (attribution_images is 0)",
        "photographs": "shown" if settings["show_photographs"] else "not shown",
    }


def fill(known: Mapping[str, str]) -> pd.DataFrame:
    """One row an item: guideline, item, section, topic, status, answer (text; every field filled from ``facts``).

    Where the run lacks a fact the answer says so and the status is ``by hand``. Raises KeyError for a field that
    ``known`` does not have.
    """
    rows = []
    for guideline, entry in guidelines().items():
        for item in entry["items"]:
            answer = item["answer"].format_map(known)
            status = "by hand" if MISSING in answer and item["status"] == "from the run" else item["status"]
            rows.append({"guideline": guideline, **item, "status": status, "answer": answer})
    return pd.DataFrame(rows, columns=["guideline", "item", "section", "topic", "status", "answer"])

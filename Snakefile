"""The analysis as a DAG: notebook -> executed notebook -> HTML -> index. Run it through `make reports`."""

import json
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from cervix_utils import jobs, paths

name = config.pop("name", "demo")
try:
    settings, reports = jobs.plan(name, config)
except ValueError as error:
    raise WorkflowError(str(error)) from None

STEP = f"{sys.executable} -m cervix_utils.jobs"
out = paths.reports_dir(name)
pages = {"reporting.py", "jobs.py", "rendering.py"}  # change what a page looks like, not what a notebook says
modules = sorted(path for path in Path("cervix_utils").glob("*.py") if path.name not in pages)
look = sorted(path for path in Path("cervix_utils").rglob("*") if path.name in pages or "templates" in path.parts[:-1])
training = {stem for stem in reports if stem[:2] in ("02", "03")}
shared_cores = max(1, workflow.cores // min(settings["training_jobs"], len(training)))


wildcard_constraints:
    stem="|".join(reports),


rule all:
    input:
        out / "index.html",


rule execute:
    """One notebook for one protocol and fold."""
    input:
        lambda w: [out / f"{stem}.ipynb" for stem in jobs.needs(w.stem, reports)],
        modules,
        paths.CONFIG / "schema.yaml",
        notebook=lambda w: paths.NOTEBOOKS / f"{jobs.notebook_of(w.stem)}.ipynb",
    output:
        out / "{stem}.ipynb",
    params:
        values=lambda w: json.dumps(reports[w.stem]),
    threads: lambda w: workflow.cores if jobs.uses_gpu(settings) and w.stem in training else shared_cores
    resources:
        gpu=lambda w: int(jobs.uses_gpu(settings) and w.stem[:2] in ("02", "03", "04")),
    shell:
        "{STEP} execute {input.notebook:q} {output:q} {params.values:q}"


use rule execute as train_cells with:
    """The longest jobs start first, so that no core waits for the last one."""
    output:
        out / "{stem}.ipynb",
    wildcard_constraints:
        stem="03_.+",
    priority: 1


ruleorder: train_cells > execute


rule page:
    """One executed notebook as one HTML file."""
    input:
        look,
        notebook=out / "{stem}.ipynb",
    output:
        out / "{stem}.html",
    shell:
        "{STEP} page {input.notebook:q} {output:q}"


rule index:
    input:
        [out / f"{stem}.html" for stem in reports],
    output:
        out / "index.html",
        out / "run.json",
    params:
        settings=json.dumps(settings),
    shell:
        "{STEP} index {name:q} {params.settings:q}"

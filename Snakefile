"""The analysis as a DAG: notebook -> executed notebook -> HTML -> index. Run it through `make reports`."""

import json
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from cervix_utils import jobs, paths, reporting

name = config.pop("name", "demo")
try:
    settings, reports = jobs.plan(name, config)
except ValueError as error:
    raise WorkflowError(str(error)) from None

STEP = f"{sys.executable} -m cervix_utils.jobs"
out = paths.reports_dir(name)
package = sorted(path for path in Path("cervix_utils").rglob("*") if path.is_file())
pages = {"reporting.py", "jobs.py", "rendering.py"}  # change what a page looks like, not what a notebook says
last = {"documents.py", "checklists.py", "checklists.yaml", "overview.html.j2", "macros.html.j2"}  # of the last step alone
beside = [path for path in package if path.name in last or path.parent.name == "documents"]
look = [path for path in package if path not in beside and (path.name in pages or "templates" in path.parts)]
modules = [path for path in package if path.match("cervix_utils/*.py") and path not in [*beside, *look, Path("cervix_utils/publishing.py"), Path("cervix_utils/adopting.py")]]
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
    threads: lambda w: workflow.cores if w.stem == jobs.EXPLAIN or jobs.uses_gpu(settings) and w.stem in training else shared_cores
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
    """The record of the run, the documents beside the pages, and the overview."""
    input:
        [out / f"{stem}.html" for stem in reports],
        beside,
    output:
        out / "index.html",
        out / "run.json",
        [out / file for file in reporting.DOCUMENTS],
    params:
        settings=json.dumps(settings),
    shell:
        "{STEP} index {name:q} {params.settings:q}"

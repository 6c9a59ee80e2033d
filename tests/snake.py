"""The workflow as a subprocess, and what it has left."""

import os
import subprocess
import sys

from cervix_utils import paths

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--rerun-incomplete"]
# One small network a task: the way is the same, in half a minute.
SMALL = [
    "herlev_pipelines=[combined]",
    "herlev_protocols=[paper]",
    "herlev_architecture=resnet18",
    "colposcopy_pipelines=[modern]",
    "colposcopy_protocols=[paper]",
    "colposcopy_epochs=1",
    "attribution_images=0",
    "elsewhere_task=none",
    "n_boot=50",
]


def call(reports, *settings, cores=2, root=paths.ROOT, options=()):
    """(exit status, log) of the workflow on the demo."""
    environment = os.environ | {"CERVIX_REPORTS": str(reports), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [
            *SNAKEMAKE,
            "--cores",
            str(cores),
            "--nolock",
            *options,
            "--config",
            "name=demo",
            *settings,
        ],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


def succeeds(reports, *settings, **options):
    code, log = call(reports, *settings, **options)
    assert code == 0, log[-4000:]
    return log


def networks(reports):
    """Content of every predictions.csv of a trained network, by the place of its folder."""
    files = (reports / "demo/runs").glob("*/*/*/predictions.csv")
    return {str(file.parent.relative_to(reports)): file.read_bytes() for file in files}

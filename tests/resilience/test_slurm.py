"""The workflow on Slurm: a controller and two nodes on this machine alone, in a temporary folder.

Run by `make test-slurm`; needs root, and Debian's or Ubuntu's slurm-wlm and munge.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import snake
import torch

from cervix_utils import paths

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun")
NODES = ("n1", "n2")
SMALL = [*snake.SMALL, "herlev_epochs=2"]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdPidFile={place}/%n.pid
SlurmdLogFile={place}/%n.log
SlurmdSpoolDir={place}/spool/%n
StateSaveLocation={place}/state
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=32000"


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    if os.getuid() != 0 or not Path("/proc/self/environ").is_file():
        return "needs root on Linux"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "no snakemake-executor-plugin-slurm: make test-slurm"
    return ""


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=missing() or "a cluster can be started"),
]


def within(seconds: float, what):
    """The first true value of ``what()``; fails when it takes longer than so many seconds."""
    until = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.3)
    return value


def free_ports(number: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in held]
    [each.close() for each in held]
    return ports


def processes(*marks: str) -> dict[int, str]:
    """Processes that have all of these variables in their environment -> their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            if set(marks) <= set(entries):
                found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
        except OSError:
            continue  # ended meanwhile
    return {pid: words for pid, words in found.items() if words}


class Cluster:
    """munge, a controller and two nodes of one CPU and one (pretended) GPU each."""

    def __init__(self, place: Path):
        self.place, self.running, self.workflows = place, {}, []
        host, ports = socket.gethostname().split(".")[0], free_ports(3)
        text = CONFIGURATION.format(place=place, host=host, port=ports[0])
        lines = [NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports[1:])]
        text += "\n".join(f"{line} Gres=gpu:1" for line in lines)
        (place / "slurm.conf").write_text(f"{text}\n")
        (place / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")
        (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (place / "munge.key").write_bytes(secrets.token_bytes(64))
        (place / "munge.key").chmod(0o400)
        for folder in ("state", "spool", "bin", "cache"):
            (place / folder).mkdir()
        self.environment = os.environ | {"SLURM_CONF": str(place / "slurm.conf")}
        self.environment |= {"PATH": f"{place}/bin:{os.environ['PATH']}"}
        # the plugin takes SLURM_CONF from a job's srun: on a real cluster it lies where srun looks
        srun = f'#!/bin/sh\nSLURM_CONF={place}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        (place / "bin/srun").write_text(srun)
        (place / "bin/srun").chmod(0o755)

    def start(self) -> None:
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.place}/munge.{end}" for option, end in files.items()]
        self.launch("munged", *options, "--foreground", "--force")
        within(20, (self.place / "munge.socket").exists)
        self.launch("slurmctld", "-D", "-f", str(self.place / "slurm.conf"))
        [self.start_node(node) for node in NODES]
        within(60, lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2)

    def start_node(self, node: str) -> None:
        self.launch("slurmd", "-D", "-f", str(self.place / "slurm.conf"), "-N", node, known=node)

    def launch(self, program: str, *options: str, known: str = "") -> None:
        """A daemon in the foreground, a process of ours."""
        with (self.place / f"{known or program}.out").open("a") as out:
            self.running[known or program] = subprocess.Popen(
                [program, *options], env=self.environment, stdout=out, stderr=out
            )

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout

    def jobs(self, state: str = "all") -> list[dict[str, str]]:
        """What squeue says of each job, also of those that have ended."""
        columns = ["JobID", "State", "NodeList", "RestartCnt", "tres-per-job", "Comment"]
        form = ",".join(f"{column}:80" for column in columns)
        lines = self.ask("squeue", "-h", f"--states={state}", "-O", form).splitlines()
        cut = [[line[at : at + 80].strip() for at in range(0, 480, 80)] for line in lines]
        return [dict(zip(columns, line)) for line in cut]

    def kill_node(self, node: str, reports: Path) -> None:
        """As a power cut does: the node's daemon, its steps and their processes, all at once."""
        self.running.pop(node).kill()
        mine = processes(f"SLURMD_NODENAME={node}", f"CERVIX_REPORTS={reports}")
        stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split() for pid in mine]
        above = {int(stat[1]) for stat in stats}
        steps = {pid for pid in above if Path(f"/proc/{pid}/comm").read_text() == "slurmstepd\n"}
        assert steps and any("ipykernel" in words for words in mine.values())
        for pid in [*steps, *mine]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        within(60, lambda: not self.jobs("running,completing,pending"))
        for process in reversed(self.running.values()):
            process.terminate()
        [process.wait(30) for process in self.running.values()]


@pytest.fixture(scope="module")
def cluster():
    place = Path(tempfile.mkdtemp(prefix="cervix"))  # short, as the path of a socket must be
    made = Cluster(place)
    try:
        made.start()
        yield made
        made.stop()
    finally:
        for workflow in made.workflows:  # of a test that failed
            if workflow.poll() is None:
                os.killpg(workflow.pid, signal.SIGKILL)
        [process.kill() for process in made.running.values() if process.poll() is None]
        shutil.rmtree(place)


def start(cluster: Cluster, reports: Path, *settings: str, target: str = "") -> subprocess.Popen:
    """The workflow as `make reports` starts it, its words in ``<reports>.log``; without Slurm where
    only one ``target`` is wanted."""
    how = ["--cores", "2", str(reports / target)]
    if not target:
        how = ["--workflow-profile", "workflow/profiles/slurm", "--latency-wait", "20"]
        how += ["--slurm-init-seconds-before-status-checks", "5"]
    reports.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "snakemake", *how, "--directory", str(reports), "--nolock"]
    command += ["--rerun-incomplete", "--config", "name=demo", *SMALL, *settings]
    places = {"CERVIX_REPORTS": str(reports), "CERVIX_CACHE": str(cluster.place / "cache")}
    given = [str(paths.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = cluster.environment | places | {"PYTHONPATH": os.pathsep.join(given)}
    with reports.with_suffix(".log").open("a") as log:
        streams = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        streams["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # heed Ctrl-C
        process = subprocess.Popen(command, cwd=paths.ROOT, env=environment, **streams)
    cluster.workflows.append(process)
    return process


def ends(process: subprocess.Popen, reports: Path, code: int = 0) -> str:
    """The log of a workflow that must end with this status."""
    assert process.wait(1500) == code, said(reports)[-4000:]
    return said(reports)


def said(reports: Path) -> str:
    return reports.with_suffix(".log").read_text()


def made(reports: Path) -> dict[str, bytes]:
    """Every table of a report by its place, but histories: these have seconds."""
    files = [file for file in (reports / "demo").rglob("*.csv") if file.name != "history.csv"]
    return {str(file.relative_to(reports)): file.read_bytes() for file in files}


def training(cluster: Cluster, reports: Path) -> dict[str, str]:
    """A running job of notebook 2 or 3, as soon as the notebook has a kernel."""

    def kernel():
        for job in cluster.jobs("running"):
            if job["Comment"].startswith(("rule_02_", "rule_03_")):
                marks = f"SLURMD_NODENAME={job['NodeList']}", f"CERVIX_REPORTS={reports}"
                if any("ipykernel" in words for words in processes(*marks).values()):
                    return job
        return None

    return within(600, kernel)


@pytest.fixture(scope="module")
def here(cluster, tmp_path_factory):
    """The tables that the same settings give on this machine, without Slurm."""
    reports = tmp_path_factory.mktemp("here") / "reports"
    ends(start(cluster, reports, target="demo/results.csv"), reports)
    return made(reports)


def test_a_node_dies_in_mid_job_and_the_report_is_the_same_to_the_bit(cluster, here, tmp_path):
    reports = tmp_path / "reports"
    process = start(cluster, reports)
    job = training(cluster, reports)
    began = time.monotonic()
    cluster.kill_node(job["NodeList"], reports)

    def again():
        running = {entry["JobID"]: entry for entry in cluster.jobs("running")}
        found = running.get(job["JobID"], job)
        return found if found["RestartCnt"] == "1" else None

    assert within(300, again)["NodeList"] != job["NodeList"]
    print(f"{job['Comment']} on {job['NodeList']}, again after {time.monotonic() - began:.0f} s")
    cluster.start_node(job["NodeList"])
    log = ends(process, reports)
    ran = {entry["JobID"]: entry for entry in cluster.jobs()}
    print(f"whole after {time.monotonic() - began:.0f} s", *ran.values(), sep="\n")
    assert (reports / "demo/index.html").is_file() and not list(reports.glob(".*.slurm"))
    assert made(reports) == here and "demo/results.csv" in here
    pages = ("01_", "02_", "03_", "05_", "06_")
    assert log.count("has been submitted") == len(ran) == len(pages)
    assert {entry["State"] for entry in ran.values()} == {"COMPLETED"}
    within(60, lambda: cluster.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2)


def test_ctrl_c_cancels_the_jobs_and_their_processes_end(cluster, tmp_path):
    reports = tmp_path / "reports"
    process = start(cluster, reports, "herlev_epochs=200", "colposcopy_epochs=200")
    job = training(cluster, reports)
    process.send_signal(signal.SIGINT)
    ends(process, reports, 1)
    within(60, lambda: not cluster.jobs("running,completing,pending"))
    within(30, lambda: not processes(f"CERVIX_REPORTS={reports}"))
    states = {entry["JobID"]: entry["State"] for entry in cluster.jobs()}
    assert states[job["JobID"]] == "CANCELLED"


def test_jobs_that_a_killed_workflow_left_end_before_others_begin(cluster, tmp_path):
    reports = tmp_path / "reports"
    process = start(cluster, reports, "herlev_epochs=200", "colposcopy_epochs=200")
    left = training(cluster, reports)
    process.kill()
    process.wait()
    time.sleep(5)
    assert left["JobID"] in {job["JobID"] for job in cluster.jobs("running")}  # not ended by itself
    process = start(cluster, reports, "herlev_epochs=200", "colposcopy_epochs=200")
    within(600, lambda: said(reports).count("has been submitted") >= 4)
    states = {entry["JobID"]: entry["State"] for entry in cluster.jobs()}
    assert states.pop(left["JobID"]) == "CANCELLED"
    assert {"RUNNING", "PENDING"} & set(states.values())
    process.send_signal(signal.SIGINT)
    ends(process, reports, 1)


def test_a_gpu_is_asked_for_where_the_settings_do(cluster, tmp_path):
    reports = tmp_path / "reports"
    process = start(cluster, reports, "device=cuda")
    within(600, lambda: said(reports).count("has been submitted") >= 3)
    asked = {job["Comment"][5:8]: job["tres-per-job"] for job in cluster.jobs("running,pending")}
    if not torch.cuda.is_available():  # as on these nodes: what a failed job said is shown
        within(600, lambda: "PyTorch sees no CUDA GPU" in said(reports))
    process.send_signal(signal.SIGINT)
    ends(process, reports, 1)
    assert asked.items() >= {"02_": "gres:gpu:1", "03_": "gres:gpu:1"}.items()

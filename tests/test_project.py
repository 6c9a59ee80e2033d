"""What holds the project together: pinned packages, nothing in git that must not be there, files
people look for."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml

from cervix_utils import paths

DECLARED = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = {
    "cervix_utils": 3400,
    "benchmarks": 700,
    "tools": 476,
    "workflow": 193,
}  # lines of code at most
CODE = {folder: sorted((paths.ROOT / folder).rglob("*.py")) for folder in FOLDERS}
MODULES = CODE["cervix_utils"]
NAMED = [module for module in MODULES if module.name != "__init__.py"]
IMPORT_NAMES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "skimage": "scikit-image",
}
SILENT = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER", "ENCODING"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
FROM_ANOTHER = {"IPython", "traitlets", "tornado"}  # of ipykernel and nbconvert


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(line):
    return normal(re.match(r"[A-Za-z0-9_.-]+", line)[0])


def locked():
    """name -> {version: marker} of requirements.lock."""
    found = {}
    text = (paths.ROOT / "requirements.lock").read_text()
    for name, version, marker in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)(?: ; ([^\\\n]+))?", text, re.MULTILINE
    ):
        found.setdefault(normal(name), {})[version] = marker
    return found


def test_environment_yml_pins_what_the_lock_pins_and_nothing_else():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    pinned = dict(line.split("==") for line in pip if not line.startswith("--"))
    wanted = [*DECLARED["dependencies"], *DECLARED["optional-dependencies"]["dev"]]
    assert sorted(map(normal, pinned)) == sorted(map(requirement, wanted))
    lock = locked()
    for name, version in pinned.items():
        assert version in lock[normal(name)] and ">=" not in lock[normal(name)][version], name
    assert "python=3.11" in environment["dependencies"] and DECLARED["requires-python"].startswith(
        ">=3.11"
    )


def test_lock_holds_every_dependency_with_hashes_and_no_address():
    lock, text = locked(), (paths.ROOT / "requirements.lock").read_text()
    assert {requirement(line) for line in DECLARED["dependencies"]} <= set(lock)
    assert "--hash=sha256:" in text and "://" not in text and "--index" not in text
    assert len(re.findall(r"==", text)) <= text.count("--hash=sha256:")


def test_a_profile_pins_what_the_extra_of_its_name_asks_for_with_hashes():
    text = (paths.ROOT / "workflow/profiles/slurm/requirements.txt").read_text()
    pinned = re.findall(r"^([\w.=-]+) \\$", text, re.MULTILINE)
    assert pinned == DECLARED["optional-dependencies"]["slurm"]
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= 2 * len(pinned)
    assert "://" not in text and "--index" not in text


def test_installed_packages_are_the_locked_ones():
    from importlib.metadata import version

    for name in ("torch", "torchvision", "fastai", "papermill", "captum", "snakemake"):
        assert version(name) in locked()[name], name


def test_every_import_is_a_declared_dependency_and_every_dependency_is_used():
    imported = set()
    for module in [module for modules in CODE.values() for module in modules]:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"cervix_utils"} | FROM_ANOTHER
    declared = {requirement(line) for line in DECLARED["dependencies"]}
    assert {normal(IMPORT_NAMES.get(name, name)) for name in imported} <= declared
    unused = declared - {normal(IMPORT_NAMES.get(name, name)) for name in imported}
    assert unused == {"ipywidgets", "jupyterlab", "pyarrow", "snakemake"}  # used by commands


@pytest.mark.parametrize("folder", FOLDERS)
def test_code_stays_within_its_budget(folder, capsys):
    lines = {module: code_lines(module) for module in CODE[folder]}
    with capsys.disabled():
        print(
            f"\n{folder}: {sum(map(len, lines.values()))} lines of code, {FOLDERS[folder]} at most"
        )
    assert sum(map(len, lines.values())) <= FOLDERS[folder]
    for module, counted in lines.items():
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = len(counted & set(range(node.lineno, node.end_lineno + 1)))
                assert length <= 40, f"{module.name}: {node.name} has {length} lines"


def code_lines(module):
    """Numbers of the lines that hold code: no blank lines, comments or docstrings."""
    text = module.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = [token for token in tokens if tokenize.tok_name[token.type] not in SILENT]
    lines = {n for token in code for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


@pytest.mark.parametrize("module", NAMED, ids=lambda path: path.stem)
def test_modules_explain_themselves(module):
    tree = ast.parse(module.read_text())
    assert ast.get_docstring(tree)
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_the_layers_are_kept():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=paths.ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_no_data_weights_or_pickles_in_git():
    files = git("ls-files").split()
    assert not [
        f
        for f in files
        if re.search(r"\.(bmp|jpe?g|tiff?|pth|pt|pkl|safetensors|npz|npy)$", f, re.IGNORECASE)
    ]
    assert not [
        f for f in files if (paths.ROOT / f).exists() and (paths.ROOT / f).stat().st_size > 2**20
    ]


def test_no_pickle_is_ever_loaded():
    for module in MODULES:
        text = module.read_text()
        assert not re.search(
            r"load_learner|pickle\.load|weights_only\s*=\s*False|allow_pickle\s*=\s*True", text
        ), module
        assert all(
            "weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)
        ), module


def test_research_use_is_said_where_people_look():
    assert "research use only" in (paths.ROOT / "README.md").read_text().lower()
    templates = paths.ROOT / "cervix_utils/report/templates/report"
    assert "research use only" in (templates / "macros.html.j2").read_text().lower()


def test_make_help_lists_the_commands():
    done = subprocess.run(
        ["make", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(
        f"make {word}" in done
        for word in ("help", "reports", "lab", "test", "lint", "clean", "data-herlev", "pdf")
    )


def test_jupyterlab_starts_as_root_and_on_this_machine_alone():
    done = subprocess.run(["make", "-n", "lab"], cwd=paths.ROOT, capture_output=True, text=True)
    command = next(line for line in done.stdout.splitlines() if "jupyter lab" in line)
    assert "--ip=127.0.0.1" in command
    assert ("--allow-root" in command) == (os.getuid() == 0)

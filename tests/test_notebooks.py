"""Notebooks are literature: rules that a machine can check. test_workflow.py executes them."""

import ast
import re

import nbformat
import pytest

from cervix_utils import config, paths

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
ORDER = [
    "01_data_exploration",
    "02_colposcopy_resnet50",
    "03_herlev_resnet101",
    "04_explainability",
    "05_comparison",
    "06_calibration",
    "07_own_images",
    "08_elsewhere",
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4), request.param.stem


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ORDER


def test_title_question_and_answer(notebook):
    book, stem = notebook
    first, words = (
        book.cells[0],
        "\n".join(c.source for c in book.cells if c.cell_type == "markdown"),
    )
    assert first.cell_type == "markdown" and first.source.startswith(f"# {int(stem[:2])} · ")
    assert "**Question.**" in first.source and re.search(r"^## Answer$", words, re.MULTILINE)


def test_no_definitions_and_short_cells(notebook):
    cells = code_cells(notebook[0])
    trees = [ast.parse(cell.source) for cell in cells]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, definitions)]
    assert len(cells) <= 30
    assert (
        max(len(cell.source.splitlines()) for cell in cells if "parameters" not in tags(cell)) <= 12
    )


def test_no_outputs_counts_or_machine_metadata(notebook):
    book, _ = notebook
    for cell in code_cells(book):
        assert not cell.outputs and cell.execution_count is None
    assert set(book.metadata) <= {"kernelspec", "language_info"}
    assert book.metadata.kernelspec.name == "python3"


def test_every_figure_has_a_caption_of_its_own(notebook):
    drawn = [cell for cell in code_cells(notebook[0]) if "plt.show()" in cell.source]
    captions = [cell.metadata.get("caption", "") for cell in drawn]
    assert all(re.fullmatch(r"[A-Z0-9].{20,180}\.", text) for text in captions), captions
    others = [cell for cell in code_cells(notebook[0]) if cell not in drawn]
    assert not [cell for cell in others if "caption" in cell.metadata]


def test_no_absolute_path_and_no_address(notebook):
    source = "\n".join(cell.source for cell in notebook[0].cells)
    assert not re.search(r"""(["'\s(])(/[a-z]+/|~/|[A-Z]:\\)""", source)
    assert "http" not in source


def test_imports_are_explicit_and_in_one_cell(notebook):
    imports = (ast.Import, ast.ImportFrom)
    cells = [
        c
        for c in code_cells(notebook[0])
        if any(isinstance(n, imports) for n in ast.walk(ast.parse(c.source)))
    ]
    assert cells == code_cells(notebook[0])[:1]
    assert len(ast.parse(cells[0].source).body) <= 12
    assert "*" not in [
        alias.name for node in ast.parse(cells[0].source).body for alias in node.names
    ]


def tags(cell):
    return cell.metadata.get("tags", [])


def parameters(book):
    """{name: (type name, value, line)} of the one parameters cell."""
    (cell,) = [cell for cell in code_cells(book) if "parameters" in tags(cell)]
    lines = cell.source.splitlines()
    nodes = ast.parse(cell.source).body
    assert len(nodes) == len(lines) and all(isinstance(node, ast.AnnAssign) for node in nodes)
    return {
        n.target.id: (n.annotation.id, ast.literal_eval(n.value), line)
        for n, line in zip(nodes, lines)
    }


def test_parameters_are_the_demo_typed_and_explained(notebook):
    book, stem = notebook
    demo, entries = config.validate(config.read("demo"), "demo.yaml"), config.schema()
    found = parameters(book)
    assert list(found) == config.keys_of(stem)
    for name, (kind, value, line) in found.items():
        assert value == demo[name] and type(value) is TYPES[kind], name
        code, help_text = line.split("  # ")
        assert help_text and code.count("=") == 1 and "=" not in help_text, (
            name
        )  # papermill's parser drops such lines
        assert len(help_text) > 5 and entries[name]["description"].startswith(help_text), name


def test_the_setup_cell_checks_the_parameters(notebook):
    book, stem = notebook
    cells = code_cells(book)
    place = next(index for index, cell in enumerate(cells) if "parameters" in tags(cell))
    assert f'config.check(globals(), "{stem}")' in cells[place + 1].source
    assert "pages.provenance(" in cells[-1].source


def test_one_figure_stands_for_each_notebook_and_shows_no_patient(notebook):
    (cell,) = [cell for cell in code_cells(notebook[0]) if "thumbnail" in tags(cell)]
    assert "plt.show()" in cell.source
    assert not re.search(r"pictures|overlay|mask_outline|gallery|imshow", cell.source)


def test_galleries_are_opt_in(notebook):
    for cell in code_cells(notebook[0]):
        if re.search(
            r"plots\.(pictures|overlay|gallery)\(|show_batch|plot_top_losses", cell.source
        ):
            allowed = r"^ *if .*(pictures_allowed|data_root == \"demo\").*:$"
            assert re.search(allowed, cell.source, re.MULTILINE)

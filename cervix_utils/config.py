"""Configurations: flat YAML files of notebook parameters, checked against config/schema.yaml
first."""

import ast
import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import fastjsonschema
import yaml

from cervix_utils import paths


class ConfigError(ValueError):
    """Keys of a configuration are unknown or hold values that the schema does not allow; all are
    named."""


@cache
def schema() -> dict[str, dict]:
    """Key -> its entry in config/schema.yaml (type, unit, default, notebooks, description)."""
    return yaml.safe_load((paths.CONFIG / "schema.yaml").read_text())["properties"]


def keys_of(notebook: str) -> list[str]:
    """The parameters of one notebook, e.g. ``03_herlev_resnet101``, in schema order."""
    number = int(notebook[:2])
    return [key for key, entry in schema().items() if number in entry["notebooks"]]


def unknown(keys: Iterable[str], known: Iterable[str]) -> list[str]:
    """One sentence for each of ``keys`` that is not ``known``, naming the nearest known one."""
    known, problems = list(known), []
    for key in map(str, keys):  # YAML keys may be numbers
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
            problems.append(f"unknown key '{key}': {hint}")
    return problems


def refuse(problems: list[str], where: str) -> None:
    """Raise one ConfigError that lists all ``problems`` found in ``where``; do nothing where there
    are none."""
    if problems:
        lines = problems if len(problems) == 1 else ["", *(f"- {problem}" for problem in problems)]
        raise ConfigError(f"{where}: " + "\n".join(lines))


def _problem(value: Any, entry: dict[str, Any]) -> str:
    """What a value must be and is not; empty where it will do."""
    number, items = entry.get("type") == "number", value if isinstance(value, list) else [value]
    if number and isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if not number and any(isinstance(item, float) for item in items):
        return "must be without a decimal point"
    try:
        fastjsonschema.validate(entry, value)
    except fastjsonschema.JsonSchemaValueException as error:
        return error.message.replace("data", "", 1).strip()
    except RecursionError:
        return "must not hold itself"
    return ""


def examine(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``values`` completed with defaults, which also replace those that will not do; what is wrong,
    one sentence a key."""
    complete, problems = {}, unknown(values, schema())
    for key, entry in schema().items():
        complete[key] = value = values.get(key, entry["default"])
        if problem := _problem(value, entry):
            complete[key], allowed = entry["default"], entry.get("enum", entry.get("type"))
            hint = " (in YAML write 1.0e-3, not 1e-3)" if allowed == "number" else ""
            wrong = f"key '{key}': {reprlib.repr(value)} will not do, it {problem}"
            problems.append(f"{wrong}; allowed: {allowed}{hint}. {entry['description']}")
    return complete, problems


def validate(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` completed with defaults, or one ConfigError that says of every key what is wrong
    with it."""
    complete, problems = examine(values)
    refuse(problems, where)
    return complete


def read(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``config/<name>.yaml`` says, with ``overrides`` on top, not checked yet. ConfigError
    where there is no such file of keys and values."""
    files = {file.stem: file for file in sorted(paths.CONFIG.glob("*.yaml"))}
    shipped = [stem for stem in files if stem != "schema" and re.fullmatch(r"[\w-]+", stem)]
    if name not in shipped:
        raise ConfigError(f"no configuration '{name}': config/ holds {', '.join(shipped)}")
    try:
        text = files[name].read_text("utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases (*name) are not allowed, write the value out")
        values = yaml.safe_load(text) or {}
        if not isinstance(values, dict):
            raise ValueError("no 'key: value' lines, copy a shipped configuration")
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{files[name]} is not YAML of keys and values: {error}") from None
    return values | {key: _typed(value) for key, value in (overrides or {}).items()}


def _typed(value: Any) -> Any:
    """A value of the command line as YAML has it: Snakemake gives ``[0, 1]`` as ['0', '1']."""
    if isinstance(value, list):
        return [item if isinstance(item, list) else _typed(item) for item in value]
    plain = isinstance(value, str) and re.fullmatch(r"true|false|-?\d+", value, re.IGNORECASE)
    return yaml.safe_load(value) if plain else value


def injected(namespace: Mapping[str, Any]) -> list[str]:
    """Names assigned by the cell that papermill injected, read from IPython's input history
    ``In``."""
    cells = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    statements = ast.parse(cells[-1]).body if cells else []
    return [name.id for line in statements if isinstance(line, ast.Assign) for name in line.targets]


def check(namespace: Mapping[str, Any], notebook: str) -> dict[str, Any]:
    """The parameters of a running notebook, validated; called by its setup cell with ``globals()``.

    papermill only warns of a parameter that no notebook has; this stops the run (ConfigError).
    """
    known, where = keys_of(notebook), f"the parameters of {notebook}"
    refuse(unknown(injected(namespace), known), where)
    values = validate({key: namespace[key] for key in known}, where)
    return {key: values[key] for key in known}

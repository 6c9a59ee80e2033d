"""Configurations: flat YAML files of notebook parameters, checked against config/schema.yaml before anything runs."""

import ast
import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fastjsonschema
import yaml

from cervix_utils import paths


class ConfigError(ValueError):
    """A configuration key is unknown, missing or holds a value that its schema does not allow."""


def schema() -> dict[str, dict]:
    """Key -> its entry in config/schema.yaml (type, unit, default, notebooks, description)."""
    return yaml.safe_load((paths.CONFIG / "schema.yaml").read_text())["properties"]


def keys_of(notebook: str) -> list[str]:
    """The parameters of one notebook, e.g. ``03_herlev_resnet101``, in schema order."""
    return [key for key, entry in schema().items() if int(notebook[:2]) in entry["notebooks"]]


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for the first of ``keys`` that is not ``known``, naming the nearest known one."""
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
            raise ConfigError(f"unknown key '{key}' in {where}: {hint}")


def validate(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` completed with defaults, or ConfigError naming the key, what is wrong and what is allowed."""
    entries = schema()
    refuse_unknown(values, entries, where)
    complete = {key: values.get(key, entry["default"]) for key, entry in entries.items()}
    for key, value in complete.items():
        try:
            fastjsonschema.validate(entries[key], value)
            if isinstance(value, float) and (entries[key].get("type") != "number" or not math.isfinite(value)):
                raise fastjsonschema.JsonSchemaValueException(f"data must be a finite {entries[key].get('type')}")
        except fastjsonschema.JsonSchemaValueException as error:
            hint = " (in YAML write 1.0e-3, not 1e-3)" if "number" in str(entries[key].get("type")) else ""
            allowed = entries[key].get("enum", entries[key].get("type"))
            raise ConfigError(
                f"key '{key}' in {where}: {value!r} will not do, it {error.message.replace('data', '', 1).strip()}; "
                f"allowed: {allowed}{hint}. {entries[key]['description']}"
            ) from None
    return complete


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A YAML configuration with ``overrides`` on top, validated and complete."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except FileNotFoundError:
        known = sorted(file.stem for file in paths.CONFIG.glob("*.yaml") if file.stem != "schema")
        raise ConfigError(f"no configuration {path}: known are {', '.join(known)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no list of 'key: value' lines: copy one of the shipped configurations")
    validate(values, str(path))
    given = {key: _typed(value) for key, value in (overrides or {}).items()}
    return validate({**values, **given}, f"{Path(path).name} with SET")


def _typed(value: Any) -> Any:
    """Lists of the command line, whose items Snakemake leaves as text: ``[0, 1]`` comes as ['0', '1']."""
    return (
        [yaml.safe_load(item) if isinstance(item, str) else item for item in value]
        if isinstance(value, list)
        else value
    )


def injected(namespace: Mapping[str, Any]) -> list[str]:
    """Names assigned by the cell that papermill injected, read from IPython's input history ``In``."""
    cells = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    statements = ast.parse(cells[-1]).body if cells else []
    return [target.id for line in statements if isinstance(line, ast.Assign) for target in line.targets]


def check(namespace: Mapping[str, Any], notebook: str) -> dict[str, Any]:
    """The parameters of a running notebook, validated; called by its setup cell with ``globals()``.

    papermill only warns of a parameter that no notebook has; this stops the run (ConfigError) before it starts.
    """
    known = keys_of(notebook)
    refuse_unknown(injected(namespace), known, f"the parameters of {notebook}")
    values = validate({key: namespace[key] for key in known}, f"the parameters of {notebook}")
    return {key: values[key] for key in known}

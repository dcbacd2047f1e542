"""Methods by name: from the command line or a YAML file to a config, and back to a label."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from mlpfusion.errors import InputError, shown
from mlpfusion.methods.table import METHODS, ONE_SHOT
from mlpfusion.storage.yaml import check_type, parse_option


def method_name(config: type) -> str:
    """Returns the name of a method on the command line: the name of its file.

    >>> from mlpfusion import NeuronPruning
    >>> method_name(NeuronPruning)
    'neuron-pruning'
    """
    return config.__module__.rpartition(".")[2].replace("_", "-")


def method_from_name(name: str, options: dict[str, Any] | None = None, among: Iterable[type] = ONE_SHOT) -> Any:
    """Makes the config of a method, by name and options, from the types in `among`.

    Raises `InputError` for an unknown name, an unknown option or a bad value.

    >>> method_from_name("fusion", {"refine": False})
    Fusion(num_init=1, max_iter=300, refine=False)
    """
    types = {method_name(config): config for config in among}
    if name not in types:
        raise InputError(f"`method` must be one of {', '.join(types)}, got {shown(name)}")
    defaults, values = asdict(types[name]()), dict(options or {})
    for option, value in values.items():
        if option not in defaults:
            raise InputError(f"options of {name} must be among {', '.join(defaults) or 'none'}, got {shown(option)}")
        values[option] = check_type(f"`{option}` of {name}", value, [type(defaults[option])])
    try:
        return types[name](**values)
    except ValueError as error:
        raise InputError(re.sub(r"^`(\w+)`", rf"`\1` of {name}", str(error))) from error


def parse_method(text: str, among: Iterable[type] = ONE_SHOT) -> Any:
    """Parses `NAME:OPTION=VALUE:..` into a config, values as in YAML.

    Raises `InputError` as `parse_option` and `method_from_name` do.

    >>> parse_method("fusion:refine=false")
    Fusion(num_init=1, max_iter=300, refine=False)
    """
    name, *options = text.strip().split(":")
    return method_from_name(name, dict(parse_option(option) for option in options), among)


def method_label(config: Any) -> str:
    """Formats a config for a table: the name, and the options that differ from the defaults.

    >>> method_label(parse_method("fusion:refine=false"))
    'fusion refine=False'
    """
    defaults = asdict(type(config)())
    changed = [f"{name}={value}" for name, value in asdict(config).items() if value != defaults[name]]
    return " ".join([method_name(type(config)), *changed])


def known_methods(among: Iterable[type] = METHODS) -> str:
    """Lists the names of the config classes, for a message."""
    return ", ".join(config.__name__ for config in among)

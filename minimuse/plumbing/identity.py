"""Which training this is: what decides on the weights, and how two trainings differ.

config.json and every checkpoint say which training they belong to. Going on with other settings,
data, text encoder or seed would mix two trainings in one model, so it is refused, and the message
says what is different.
"""

import dataclasses
import json
from contextlib import suppress
from typing import Any

from minimuse.plumbing import config as configs
from minimuse.plumbing.places import DATA_NAMES

# Settings that decide on no weights: how to fit into memory, how to draw, and whether a damaged
# image is an error.
FREE = ("scale", "sampling", "sampling_hi", "skip_unreadable")

# So many differences are named.
MOST = 4


def differences(here: dict[str, Any], there: dict[str, Any], place: str) -> str:
    """What differs between two trainings, such as "base.width is 64 here and 32 in runs/mine".

    Each is the contents of a config.json or of a checkpoint's key. "" if they are the same. Folders
    are not compared: a folder may move, and `runs/manifest.py` compares what it holds.
    """
    if not isinstance(there, dict):
        return f"{place} says {there} of its training"
    values_here, values_there = deciding(here), deciding(there)
    found = []
    for name in sorted(values_here.keys() | values_there.keys()):
        a, b = values_here.get(name), values_there.get(name)
        if a == b:
            continue
        if name == "data":
            a, b = here.get("data"), there.get("data")
        found.append(f"{name} is {a} here and {b} in {place}")
    more = [f"{len(found) - MOST} more"] if len(found) > MOST else []
    return ", ".join(found[:MOST] + more)


def deciding(about: dict[str, Any]) -> dict[str, str]:
    """What decides on the weights, as text, by names such as "stages.base.steps"."""
    values = {}
    for key, value in about.items():
        if key not in ("config", "ways", "vocabulary"):
            values[key] = value
    config = with_defaults(about.get("config"))
    if isinstance(values.get("text"), dict):
        values["text encoder"] = values.pop("text").get("fingerprint")
    elif "text" in values:
        values["text encoder"] = values.pop("text")  # checkpoints keep the fingerprint alone
    if "data" in values and values["data"] not in DATA_NAMES:
        values["data"] = "a folder"
        # How many images it has. A damaged one may have been left out since.
        values.pop("pictures", None)
    return flattened(config | values)


def with_defaults(config: Any) -> dict[str, Any]:
    """The settings that decide; those that an older version did not know have today's defaults."""
    if not isinstance(config, dict):
        return {"config": config}
    config = {name: value for name, value in config.items() if name not in FREE}
    with suppress(ValueError):  # no whole configuration
        config = dataclasses.asdict(configs.from_json(config))
    return {name: value for name, value in config.items() if name not in FREE}


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dicts as one, with dots in the names, and values as JSON, without quotes."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat

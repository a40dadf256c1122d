"""The JSON Schema of gate results: `python -m edgec.gate.schema > docs/gate-result.schema.json`."""

import inspect
import re
import sys
from typing import Any

import msgspec

from edgec.gate.result import SCHEMA_VERSION, Finding, GateResult, Subject


def gate_schema() -> dict[str, Any]:
    """Return the schema of what `edgec gate --report json` writes; fields may be added to it within a version."""
    made = msgspec.json.schema(GateResult)
    for struct in (GateResult, Finding, Subject):
        _describe(made["$defs"][struct.__name__], inspect.getdoc(struct) or "")
    result = made["$defs"]["GateResult"]
    result["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    result["required"] = [*result["required"], "schema_version"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgec:gate-result:{SCHEMA_VERSION}",
        "title": "What edgec gate found",
        **made,
    }


def schema_page() -> str:
    """Return docs/gate-result.schema.json."""
    return msgspec.json.format(msgspec.json.encode(gate_schema()), indent=2).decode() + "\n"


def _describe(schema: dict[str, Any], docstring: str) -> None:
    """Put what a docstring says of a struct and its fields where readers of the schema look for it."""
    schema["description"], _, fields = docstring.partition("\n\nArgs:\n")
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", fields, re.MULTILINE):
        schema["properties"][name]["description"] = " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(schema_page())

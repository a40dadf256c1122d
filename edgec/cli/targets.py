"""`edgec targets`: the devices that edgec knows."""

import click

from edgec.cli._console import json_option, print_json, print_table


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE]")
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the targets, or show every fact of one with its source."""
    from edgec.spec.load import list_targets, load_target
    from edgec.spec.table import cells, facts

    if name is None:
        targets = list_targets()
        if as_json:
            print_json(targets)
            return
        rows = [[cells(t)[i] for i in (0, 1, 2, 3, 5, 6)] for t in targets]
        print_table(("target", "aliases", "device", "backends", "memory", "bandwidth"), rows)
        return
    target = load_target(name)
    if as_json:
        print_json(target)
        return
    rows = [[key, _text(value), target.sources.get(key, "")] for key, value in facts(target).items()]
    print_table(("fact", "value", "source"), rows, title=target.name)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""`edgec profiles`: the wishes that edgec knows."""

import click

from edgec.cli._console import json_option, print_json, print_table


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE]")
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the profiles, or show one."""
    import msgspec

    from edgec.spec.load import list_profiles, load_profile

    found = list_profiles() if name is None else [load_profile(name)]
    if as_json:
        print_json(found if name is None else found[0])
        return
    if name is None:
        print_table(("profile", "what it does"), [(profile.name, profile.title) for profile in found])
        return
    rows = []
    for key, value in msgspec.to_builtins(found[0]).items():
        inner = value if isinstance(value, dict) else {"": value}
        rows += [(f"{key}.{k}".rstrip("."), v) for k, v in inner.items() if v is not None]
    print_table(("key", "value"), rows)

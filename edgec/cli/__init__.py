"""The command line: one module per command; the module's name is the command's name."""

import os
import pkgutil
import sys
import traceback
from importlib import import_module
from typing import NoReturn

import click

from edgec import __version__
from edgec.cli import _interrupt
from edgec.errors import EdgecError, explain


class _Commands(click.Group):
    """Find commands in this folder, so that adding a file adds a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"edgec.cli.{cmd_name.replace('-', '_')}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgec")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def edgec(debug: bool) -> None:
    """Compile trained models for edge devices, and keep them honest in CI."""
    del debug  # read from the command line in main(), where errors are printed


def main() -> NoReturn:
    """Run the command line and exit with the documented code (see edgec/errors.py)."""
    debug = "--debug" in sys.argv[1:]
    _interrupt.install()
    try:
        edgec.main(standalone_mode=False)
        sys.stdout.flush()
        sys.stderr.flush()
        # Tearing down an interpreter with torch in it takes half a second, to free what the kernel frees at once.
        os._exit(0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        os._exit(130)  # what a second Ctrl-C left behind in a pool of threads would be waited for
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as raised:  # noqa: BLE001 - the last line of defence
        if debug:
            traceback.print_exc()
        told = raised if isinstance(raised, EdgecError) else explain(raised)
        click.echo(f"error: {told}", err=True)
        sys.exit(told.exit_code)

"""The command line: one module per command; the module's name is the command's name."""

import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from edgec import __version__
from edgec.cli import _interrupt
from edgec.cli._console import say
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _reader_may_leave():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave():
            return super().invoke(ctx)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """End well where nobody reads on (`| head`): click would end with 1, which says that something is worse."""
    try:
        yield
    except BrokenPipeError as error:
        raise click.exceptions.Exit(0) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgec")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def edgec(debug: bool) -> None:
    """Compile trained models for edge devices, and keep them honest in CI."""
    del debug  # read from the command line in main(), where errors are printed


def main() -> NoReturn:
    """Run the command line and exit with the documented code (see edgec/errors.py)."""
    debug = "--debug" in sys.argv[1:]
    # ONNX Runtime would report its use, and says so at length where it cannot keep an identity in $HOME.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _interrupt.install()
    _open_what_is_closed()
    try:
        edgec.main(standalone_mode=False)
        sys.stdout.flush()
        sys.stderr.flush()
        _end(0)
    except click.exceptions.Exit as exit_:
        _end(exit_.exit_code)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        _end(2)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; nothing is half written")
        _end(130)
    except BrokenPipeError:
        _end(0)
    except Exception as raised:  # noqa: BLE001 - the last line of defence
        if debug:
            traceback.print_exc()
        told = raised if isinstance(raised, EdgecError) else explain(raised)
        say(f"error: {told}")
        _end(told.exit_code)


def _open_what_is_closed() -> None:
    """Let what the caller closed (`>&-`) be nothing, lest the next file that is opened become stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _end(code: int) -> NoReturn:
    """End with that code, and at once.

    Tearing down an interpreter with torch in it takes half a second, to free what the kernel frees at once; it would
    wait for what a second Ctrl-C left behind in a pool of threads, and turn the code into another if stdout is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

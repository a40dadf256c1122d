"""Run commands as users do."""

import pytest
from click.testing import CliRunner

from edgec.cli import edgec
from edgec.errors import EdgecError


def invoke(*arguments):
    return CliRunner().invoke(edgec, [str(argument) for argument in arguments], catch_exceptions=False)


def fails(*arguments):
    """Return the error of a command; anything that is no EdgecError gets through."""
    with pytest.raises(EdgecError) as caught:
        invoke(*arguments)
    return caught.value


def changed(path, text, changes):
    """Write a profile with parts of its text replaced, each of which is there; return its path."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path

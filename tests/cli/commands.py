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

"""Every error that edgec reports, and the exit code of each.

```
EdgecError                     70  a bug in edgec
├── RegressionError             1  a gate found a regression, or a build left its profile's bounds
├── UsageError                  2  usage or configuration
│   └── OutputError             2  the output cannot be written (exists, disk full, no permission)
├── CheckpointError             3  the checkpoint is refused
├── BundleError                 3  the bundle is refused
├── PlanError                   4  the plan is impossible on this target
├── InconclusiveError           5  inconclusive, or the environment is too noisy to say
└── MissingRuntimeError         6  a runtime is missing
```

An interrupted command (Ctrl-C, SIGTERM) exits with 130 and leaves nothing behind.
"""

import errno
from importlib import import_module
from importlib.util import find_spec

# There is no room where a file is being written, whichever that is.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class EdgecError(Exception):
    """An error with a message (what), a place (where) and advice (what to do).

    Args:
        what: what is wrong, in one sentence.
        where: file, tensor, node or key path, if there is one.
        hint: what the user can do about it.
    """

    exit_code = 70

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  to do: {self.hint}")
        return "\n".join(lines)


class RegressionError(EdgecError):
    """A measured value is outside its bound."""

    exit_code = 1


class UsageError(EdgecError):
    """The command line or a configuration file is wrong."""

    exit_code = 2


class OutputError(UsageError):
    """The output cannot be written."""


class CheckpointError(EdgecError):
    """The checkpoint is damaged, incomplete or not understood."""

    exit_code = 3


class BundleError(EdgecError):
    """The bundle is damaged, incomplete or not trusted."""

    exit_code = 3


class PlanError(EdgecError):
    """The target cannot do what the profile asks."""

    exit_code = 4


class InconclusiveError(EdgecError):
    """The measurement does not allow a verdict."""

    exit_code = 5


class MissingRuntimeError(EdgecError):
    """A package that this command needs is not installed, or is broken."""

    exit_code = 6


def require(package: str, extra: str, *, load: bool = True) -> None:
    """Make sure that a package which an extra installs is there.

    Args:
        package: the name that it is imported by.
        extra: what installs it.
        load: import it, which finds libraries that it lacks; False only looks for it.

    Raises:
        MissingRuntimeError: it is not installed, or it cannot be imported.
    """
    if find_spec(package) is None:
        raise MissingRuntimeError(
            f"this command needs the Python package '{package}', which is not installed",
            hint=f'pip install "edgec[{extra}]"',
        )
    try:
        if load:
            import_module(package)
    except (ImportError, OSError) as error:  # OSError: a library that it loads itself
        raise MissingRuntimeError(
            f"the Python package '{package}' cannot be loaded: {error}", hint="install it again"
        ) from error


def first_line(error: Exception) -> str:
    """Return what an error of a library says, without its traces."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explain(error: Exception) -> EdgecError:
    """Return what to tell of an error that nobody expected: a broken package, a full disk or memory, or a bug."""
    if isinstance(error, ImportError) and not (error.name or "").startswith("edgec"):
        return MissingRuntimeError(f"a package that edgec needs cannot be loaded: {error}", hint="install it again")
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return OutputError(
            f"a file cannot be written: {error.strerror}",
            where=error.filename,
            hint="make room, raise `ulimit -f`, or set TMPDIR and EDGEC_CACHE to folders on another disk",
        )
    if isinstance(error, MemoryError):
        return UsageError(
            "there is not enough memory" + (f": {first_line(error)}" if str(error) else ""),
            hint="ask for less at once (rows, lengths, samples), or use a machine with more memory",
        )
    return EdgecError(
        f"edgec failed on something that it did not expect: {type(error).__name__}: {error}",
        hint="this is a bug in edgec; `edgec --debug ...` shows where",
    )

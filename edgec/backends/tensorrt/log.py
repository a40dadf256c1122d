"""What TensorRT-RTX says, kept instead of printed."""

from typing import Any

_ERRORS = 8


def make_logger(trt: Any) -> Any:
    """Return a logger whose `errors` are the last errors, and whose `layers` is what the builder says of its engine."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: tuple[str, ...] = ()
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors = (*self.errors, message.strip())[-_ERRORS:]
            elif message.startswith("Layers:"):
                self.layers = message

    return Logger()

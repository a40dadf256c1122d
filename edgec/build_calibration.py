"""The calibration text of a build, as its plan names it."""

import torch

from edgec.calibrate.dataset import Dataset, load_dataset
from edgec.errors import PlanError, UsageError
from edgec.generate.tokenizer import Tokenizer
from edgec.spec.plan import Plan


def check_device(plan: Plan) -> None:
    """Make sure, before anything is done, that the device is there that a plan calibrates on.

    Raises:
        PlanError: it is a GPU, and there is none.
    """
    if plan.calibration is not None and plan.calibration.device == "cuda" and not torch.cuda.is_available():
        raise PlanError(
            "the profile calibrates on a GPU, and torch finds none here",
            where=f"profile '{plan.profile}'",
            hint='leave `device = "cuda"` out, or install a torch that is built for CUDA',
        )


def device_of(plan: Plan) -> str:
    """Return where a plan calibrates; the CPU where no text is looked at."""
    return "cpu" if plan.calibration is None else plan.calibration.device


def planned_text(plan: Plan, tokenizer: Tokenizer) -> Dataset:
    """Return the windows of the text that a plan calibrates on; it names one.

    Raises:
        UsageError: the text cannot be read, is too short, or changed since it was planned with.
    """
    text = plan.calibration
    assert text is not None
    dataset = load_dataset(text.files, tokenizer, tokens=text.tokens, window=text.window, seed=text.seed)
    changed = [name for name, sha256 in dataset.sha256.items() if sha256 != text.files[name]]
    if changed:
        raise UsageError("the calibration text is not what was planned with", where=changed[0], hint="build again")
    return dataset

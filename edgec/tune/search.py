"""Search the settings that a profile has for all layers at once, where no sum says what they do."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edgec.errors import require

Space = Mapping[str, Sequence[str]]
Setting = dict[str, str]
Method = Literal["grid", "bayes"]

# What Optuna raises for lines that are no JSON, or that say something else than its own.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)


def search(
    method: Method, space: Space, evaluate: Callable[[Setting], float], journal: Path, *, trials: int, seed: int = 0
) -> list[tuple[float, Setting]]:
    """Return (value, setting) of each trial, the smallest value first.

    A search that was interrupted goes on where it was: its trials are in `journal`. One that
    cannot be read begins anew.

    Args:
        method: every setting in a random order, or those that the best ones so far speak for (TPE).
        space: name -> what it may be.
        evaluate: gives the value of a setting; infinite where it is impossible.
        journal: a file.
        trials: in all, those in the journal included.
        seed: of the order.

    Raises:
        MissingRuntimeError: Optuna is not installed.

    Source: Akiba et al. 2019, Optuna (arXiv:1907.10902); Bergstra et al. 2011, Algorithms for Hyper-Parameter
    Optimization, for the tree-structured Parzen estimator.
    """
    require("optuna", "tune")
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)

    def begin() -> Any:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name=method, load_if_exists=True)

    try:
        study = begin()
    except _UNREADABLE:
        journal.unlink()
        study = begin()
    state = optuna.trial.TrialState
    finished = [trial.params for trial in study.trials if trial.state == state.COMPLETE]
    waiting = [trial.system_attrs.get("fixed_params") for trial in study.trials if trial.state == state.WAITING]
    if method == "grid":
        wanted = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        random.Random(seed).shuffle(wanted)  # noqa: S311 - an order, no secret
        wanted = wanted[:trials]
        trials = len(wanted)
    else:  # what was interrupted comes first
        wanted = [
            t.params for t in study.trials if t.state in (state.FAIL, state.RUNNING) and len(t.params) == len(space)
        ]
        # A sampler that begins anew would propose what it proposed before.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(finished), n_startup_trials=4)
    for setting in wanted:
        if setting not in (*finished, *waiting):
            study.enqueue_trial(setting)
    if len(finished) < trials:
        study.optimize(lambda trial: evaluate(_setting(trial, space)), n_trials=trials - len(finished))
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE and t.value is not None]
    return sorted(((t.value, t.params) for t in done if t.value is not None), key=lambda pair: pair[0])


def _setting(trial: Any, space: Space) -> Setting:
    return {name: trial.suggest_categorical(name, list(values)) for name, values in space.items()}

"""The program as functions: `equimid.pretrain` and `equimid.evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equimid.data.open import check_exists
from equimid.errors import UserError
from equimid.recipes import configured
from equimid.recipes.describe import written
from equimid.records import Record, read_records

if TYPE_CHECKING:
    from equimid.engine import Callback

__all__ = ["evaluate", "pretrain"]


def pretrain(
    data: str | Path,
    out: str | Path,
    recipe: str = "ser-small",
    *,
    finish: bool = True,
    callbacks: "Sequence[Callback]" = (),
    **settings: Any,
) -> Path:
    """Pretrain a network on images, measure it, and write report and backbone; returns the run's folder.

    The same call on the same folder resumes a run that was stopped; a finished run is left as it is.

    Args:
        data: a folder of images or of shards, a text file of paths, or a name such as "digits".
        out: the run's folder. It receives `backbone/`, `report.html`, `records.jsonl`, `metrics.csv` and checkpoints.
        recipe: what to run; `equimid recipes` lists them.
        finish: False leaves out measurement and report.
        callbacks: what watches the run, see `equimid.engine.Callback`: `on_step`, `on_log`, `on_checkpoint`, `on_end`.
        settings: of the recipe, as groups (`train={"epochs": 5}`) or by dotted names (`**{"train.epochs": 5}`);
            `ser=None` leaves SER out. docs/settings.md has all of them.

    Raises:
        UserError: an unknown recipe or setting, a value out of range, images that cannot be used, a folder of another
            run. It is a ValueError.
        KeyboardInterrupt: a signal stopped the run; its checkpoint is written.

    Example:
        >>> run = equimid.pretrain("photos", "runs/mine", recipe="ser-tiny", train={"epochs": 5})
        >>> backbone = equimid.load_backbone(run)
    """
    check_exists(str(data))
    config = configured(recipe, [*_as_assignments(settings), f"data.source={data}"])
    from equimid.runs.pretrain import pretrain as run

    outcome = run(config, Path(out), finish=finish, callbacks=callbacks)
    if outcome.stopped_by is not None:
        raise KeyboardInterrupt
    return Path(out)


def evaluate(
    model: str | Path,
    data: str | Path | None = None,
    what: Sequence[str] = (),
    *,
    train: str | Path | None = None,
    out: str | Path | None = None,
    weights: Literal["auto", "pretrained", "random"] = "auto",
    random: bool = False,
    **settings: Any,
) -> list[Record]:
    """Measure a network; returns all records of it on these images, and writes them with a page.

    Args:
        model: a run's folder, a backbone's folder, "timm:NAME" or "hf:NAME".
        data: what it is measured on; by default a run's own images.
        what: names of measurements, such as "knn" and "equivariance" (`equimid evaluate` lists them); none = the
            routine: kNN and linear probe where there are labels, equivariance, pictures.
        train: labelled training images that lie elsewhere, for probes and robustness.
        out: where records and page go; by default the run's folder, or measured/MODEL.
        weights: of "timm:" and "hf:" models.
        random: measure a network of random weights beside it, also where that is not the rule.
        settings: of the groups evaluation and runtime, as for `pretrain`.

    Raises:
        UserError: no such measurement, network, images or setting, or a folder of another network. It is a ValueError.

    Example:
        >>> records = equimid.evaluate("runs/mine", "labelled", ["knn"], evaluation={"knn_k": 10})
        >>> [(r.subject, r.value) for r in records if r.metric == "top1"]
    """
    from equimid.runs.evaluate import evaluate as measure
    from equimid.runs.networks import images_of

    page = measure(
        str(model),
        None if data is None else str(data),
        [what] if isinstance(what, str) else what,
        train=None if train is None else str(train),
        out=None if out is None else Path(out),
        weights=weights,
        random=random,
        settings=_as_assignments(settings),
    )
    on = images_of(str(model)) if data is None else str(data)
    return [r for r in read_records(page.parent / "records.jsonl") if r.data == on]


def _as_assignments(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested or dotted settings as `key=value`."""
    assignments: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            if not value:
                raise UserError(f"{prefix}{key} is an empty group; give its settings, as {key}={{'name': value}}")
            assignments += _as_assignments(value, f"{prefix}{key}.")
        else:
            assignments.append(f"{prefix}{key}={written(value)}")
    return assignments

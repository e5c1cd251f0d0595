"""What other tools logged of an RL run, read into one shape: step -> numbers by column.

    trl          trainer_state.json of a checkpoint, or the run's folder (its last checkpoint)
    verl         JSON Lines of its file logger, {"step": 1, "data": {"actor/entropy": 0.4, ...}}, or
                 the console log, whose lines hold "step:1 - actor/entropy:0.4 - ..."
    csv          a header and a row per step, as wandb and others export
    tensorboard  a folder of event files; read by the package tensorboard

Records of one step are put together, the last value of a column counts: a run that was resumed
logs steps again. Numbers that are not finite are left out.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("trl", "verl", "csv", "tensorboard")
_STEP_COLUMNS = (
    *("step", "Step", "_step", "global_step"),
    *("train/global_step", "training/global_step"),
)
_EVENTS = "*tfevents*"
# Numbers may come as Python's, or as numpy writes them: np.float64(0.4).
_CONSOLE_STEP = re.compile(r"\bstep:(\d+) - (.*)")
_CONSOLE_NUMBER = re.compile(r"^(?:np\.\w+\()?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\)?$")


@dataclass(frozen=True)
class RunLog:
    """Numbers of one run by optimizer step, rising."""

    source: str
    format: str  # trl, verl, csv or tensorboard
    steps: Mapping[int, Mapping[str, float]]  # step -> column -> number
    max_steps: int | None  # length of the run, where the log says it

    @property
    def columns(self) -> list[str]:
        """All columns, in alphabetical order."""
        return sorted({name for record in self.steps.values() for name in record})

    def series(self, column: str) -> list[tuple[int, float]]:
        """(step, number) of one column."""
        return [(step, record[column]) for step, record in self.steps.items() if column in record]


def read_run(path: str | Path, *, format: str | None = None, step: str | None = None) -> RunLog:
    """Read a run's log.

    Args:
        path: see the module.
        format: one of `FORMATS`; told by the path and the file when left out.
        step: the column of the optimizer step in a CSV file.

    Raises:
        FileNotFoundError: nothing there, or a folder with no log in it.
        ValueError: an unknown format, a file that is not of it, or no step in it.
        ModuleNotFoundError: event files without the package that reads them.

    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}; give a run's log or folder")
    if format not in (None, *FORMATS):
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    max_steps = None
    if source.is_dir():
        source, format = _in_folder(source, format)
    kind = format or _format_of(source)
    records: Iterable[tuple[Any, Mapping[str, Any]]]
    if kind == "tensorboard":
        records = _tensorboard(source)
    elif kind == "trl":
        state = _json_of(source)
        max_steps = int(state.get("max_steps") or 0) or None
        logged = (record for record in state["log_history"] if isinstance(record, dict))
        records = [(record.get("step"), record) for record in logged]
    elif kind == "csv":
        records = _csv(source, step)
    else:
        records = _verl(source)
    steps = _together(records, source)
    if not steps:
        raise ValueError(
            f"{source} holds no numbers by step: is it a log of format {kind}, and has the run "
            "logged anything yet (logging_steps)?"
        )
    return RunLog(str(path), kind, steps, max_steps)


def _in_folder(folder: Path, format: str | None) -> tuple[Path, str]:
    """The log inside a run's folder."""
    states = [
        file
        for file in (*folder.glob("trainer_state.json"), *folder.glob("*/trainer_state.json"))
        if file.is_file()
    ]
    events = any(folder.rglob(_EVENTS))
    if format == "tensorboard" or (format is None and events and not states):
        if events:
            return folder, "tensorboard"
    elif states and format in (None, "trl"):
        return max(states, key=lambda file: int(_json_of(file).get("global_step") or 0)), "trl"
    raise FileNotFoundError(
        f"{folder} holds neither trainer_state.json (of a checkpoint, or in one) nor TensorBoard's "
        "event files; give the log file itself"
    )


def _format_of(file: Path) -> str:
    if "tfevents" in file.name:
        return "tensorboard"
    return {".json": "trl", ".csv": "csv"}.get(file.suffix.lower(), "verl")


def _json_of(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(
            f"{file} has no log_history: give a trainer_state.json, or name the --format"
        )
    return state


def _csv(file: Path, step: str | None) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened, skipinitialspace=True)
        try:
            header, rows = list(reader.fieldnames or ()), list(reader)
        except csv.Error as error:
            raise ValueError(
                f"{file}, after line {reader.line_num}, is not CSV: {error}"
            ) from error
        names = _STEP_COLUMNS if step is None else (step,)
        column = next((name for name in names if name in header), None)
        if column is None:
            raise ValueError(
                f"{file} has no column {' or '.join(names)} of the optimizer step; it has "
                f"{', '.join(header) or 'no header'}: name it with --step"
            )
        return [(row.get(column), row) for row in rows]


def _verl(file: Path) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    """JSON Lines or console log, line by line; other lines of a console log are passed over."""
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        for line in opened:
            text = line.strip()
            if text.startswith("{"):
                try:
                    record = json.loads(text)
                except json.JSONDecodeError:
                    continue  # a kill cut it short, or a console printed a dictionary
                data = record.get("data", record)
                if isinstance(data, dict):
                    yield record.get("step", data.get("training/global_step")), data
            elif match := _CONSOLE_STEP.search(text):
                pairs = (part.rpartition(":") for part in match[2].split(" - "))
                numbers = {name.strip(): _CONSOLE_NUMBER.match(v.strip()) for name, _, v in pairs}
                yield match[1], {name: n[1] for name, n in numbers.items() if n}


def _tensorboard(place: Path) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    # Kept out of the module's head: an optional dependency, the extra `tensorboard`.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    files = [place] if place.is_file() else sorted(place.rglob(_EVENTS))
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                yield event.step, {tag: event.value}
        # torch's SummaryWriter and newer writers put scalars into tensors.
        for tag in events.Tags()["tensors"]:
            for event in events.Tensors(tag):
                value = make_ndarray(event.tensor_proto)
                if value.ndim == 0:
                    yield event.step, {tag: value.item()}


def _together(
    records: Iterable[tuple[Any, Mapping[str, Any]]], source: Path
) -> dict[int, dict[str, float]]:
    steps: dict[int, dict[str, float]] = {}
    for raw, record in records:
        if (step := _number(raw)) is None:
            continue  # a summary at the end of a run has no step
        if step != int(step):
            raise ValueError(f"{source}: {raw} is no optimizer step; name its column with --step")
        numbers = {name: n for name, value in record.items() if (n := _number(value)) is not None}
        steps.setdefault(int(step), {}).update(numbers)
    return dict(sorted((step, record) for step, record in steps.items() if record))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

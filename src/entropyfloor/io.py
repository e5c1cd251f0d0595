"""Files and folders that survive a kill: atomic writes, JSON Lines, the guard of a run's folder.

The lowest layer of the package: knows of no model and no measure.

    write_atomic, save_json        a file is whole or absent, also if the process dies writing it
    plain, restore                 dataclasses to JSON data and back
    whole_folder                 the same of a folder
    write_pictures               what may fail, apart: a failing picture costs the picture
    append_jsonl, read_jsonl       a file that grows; a line that a kill cut short is left out
    claim_folder, check_settings   a folder belongs to one set of settings: two never mix in it
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write UTF-8 text, or bytes, beside ``path``, then rename; missing parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_bytes(_encoded(content) if isinstance(content, str) else content)
    os.replace(unfinished, path)


def _encoded(text: str) -> bytes:
    r"""UTF-8; half a surrogate pair, which a model may write, as ``\udXXX``: so JSON escapes it."""
    return text.encode("utf-8", errors="backslashreplace")


def save_json(path: Path, content: Any) -> None:
    """Write JSON atomically.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have; what was there is left alone.

    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


@contextmanager
def whole_folder(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a new folder to be filled, which becomes ``target`` once it is whole.

    Args:
        target: what is there is replaced; missing parents are made.
        shared: processes that do not know of each other may write it at once: each has a folder of
            its own, the first wins, and what is there stays.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
        unfinished.chmod(0o755)  # mkdtemp's 0700 would shut out whoever shares the cache
    else:
        unfinished = target.with_name(f".unfinished-{target.name}")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a kill
        unfinished.mkdir()
    try:
        yield unfinished
        if not shared:
            shutil.rmtree(target, ignore_errors=True)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_pictures(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Call each function with its path; one that raises is said in a warning, the others go on.

    A plot or a page is made from text and values that nobody foresaw, and compute was paid for the
    numbers: write those first. A failing picture costs the picture.
    """
    for path, write in files.items():
        try:
            write(path)
        except Exception as error:  # whatever it is, the report is worth more
            words = f"{path} could not be written ({error!r}); all else was"
            warnings.warn(words, stacklevel=2)


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records, a line each, and wait until they are on the disk."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(_encoded(lines))
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(
    path: Path, *, repair: bool = False, ends: Callable[[dict[str, Any]], bool] = lambda _: True
) -> list[dict[str, Any]]:
    """Read the whole lines of a file that :func:`append_jsonl` wrote, up to where a kill cut it.

    Args:
        path: none there reads as no records.
        repair: cut the file off after what was read, so that it can be added to.
        ends: whether a record is the last of those that count together or not at all.

    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    records: list[dict[str, Any]] = []
    read = whole = kept = 0
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(record, dict):
            break
        records.append(record)
        read += len(line)
        if ends(record):
            whole, kept = read, len(records)
    if repair and whole < len(content):
        os.truncate(path, whole)
    return records[:kept]


def check_settings(
    folder: Path,
    before: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    holds: str = "holds a run",
) -> None:
    """Refuse to go on in a folder that was made with other settings.

    Args:
        folder: for the message.
        before: what it was made with, as read from JSON.
        wanted: what is wanted now; plain data for JSON.
        holds: verb and object of the message.

    Raises:
        ValueError: they differ; the message names the differences.

    """
    now = json.loads(json.dumps(wanted))
    differ = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    if differ:
        listed = "; ".join(
            f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ
        )
        raise ValueError(
            f"{folder} {holds} with other settings ({listed}), which must not be mixed: give "
            "another one (--output-dir), repeat those settings to go on with it, or delete the "
            "folder"
        )


def claim_folder(folder: Path, settings: Mapping[str, Any], *, file: str = "settings.json") -> None:
    """Claim an empty folder for these settings, or check that it has them.

    Args:
        folder: made if missing.
        settings: everything that determines what will be written there; plain data for JSON.
        file: where in the folder they are kept.

    Raises:
        ValueError: the folder was claimed with other settings; the message names the differences.

    """
    path = folder / file
    if path.is_file():
        check_settings(folder, json.loads(path.read_text(encoding="utf-8")), settings)
    else:
        save_json(path, settings)


def plain(value: Any) -> Any:
    """Tuples to lists and keys to text, so that JSON gives back what was written."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def restore(kind: Any, value: Any) -> Any:
    """Build what an annotation says from JSON data: undo ``dataclasses.asdict`` and `plain`.

    Args:
        kind: a dataclass, a named tuple, ``tuple[X, ...]``, ``list[X]``, ``dict[str, X]`` (or of
            other keys), any of them ``| None``; all else is left as it is.
        value: from JSON.

    """
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(value, dict):
        if isinstance(kind, type) and is_dataclass(kind):
            fields = get_type_hints(kind)
            return kind(**{name: restore(fields[name], part) for name, part in value.items()})
        if origin is dict:
            return {parts[0](key): restore(parts[1], part) for key, part in value.items()}
    if isinstance(value, list):
        if origin in (tuple, list):
            return origin(restore(parts[0], part) for part in value)
        if isinstance(kind, type) and issubclass(kind, tuple):
            return kind(*value)
    if type(None) in parts and value is not None:
        return restore(next(part for part in parts if part is not type(None)), value)
    return value

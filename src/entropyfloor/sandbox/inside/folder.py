"""A folder that hostile code has filled: measure it and remove it."""

import os
import shutil
from contextlib import suppress

_MOST_ENTRIES = 20_000


def bytes_below(folder: str) -> int:
    """Bytes on disk below a folder; a very large number where it holds too many files to count."""
    total, entries, waiting = 0, 0, [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                entries += 1
                if entries > _MOST_ENTRIES:
                    return 1 << 62
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    total += max(status.st_blocks * 512, 1)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


def remove_folder(folder: str) -> None:
    """Remove a folder whatever its depth and modes.

    Each folder below is moved up to the top before it is emptied, so no path grows long and
    nothing recurses; links are removed, never followed.
    """
    with suppress(OSError):
        shutil.rmtree(folder)
        return
    count = 0
    while os.path.isdir(folder):
        folders = _empty_of_files(folder)
        if not folders:
            os.rmdir(folder)
            return
        for path in folders:
            for inner in _empty_of_files(path):
                count += 1
                os.rename(inner, os.path.join(folder, f".{count}-{os.getpid()}"))
            os.rmdir(path)


def _empty_of_files(folder: str) -> list[str]:
    """Remove all but the folders in it; those, made accessible."""
    os.chmod(folder, 0o700)
    folders = []
    with os.scandir(folder) as found:
        for entry in list(found):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    return folders

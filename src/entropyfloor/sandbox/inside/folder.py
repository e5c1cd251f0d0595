"""A folder that hostile code has filled: measure it and remove it."""

import os
from contextlib import suppress

_MOST_ENTRIES = 20_000
_DEEPEST = 64
_BEYOND_COUNTING = 1 << 62
_READABLE = 0o500


def bytes_below(folder: str) -> int:
    """Bytes on disk below a folder; a very large number for too many files, or too deep ones."""
    total, entries, waiting = 0, 0, [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        with suppress(OSError), os.scandir(path) as scanned:  # or removed meanwhile
            for entry in scanned:
                entries += 1
                if entries > _MOST_ENTRIES or depth > _DEEPEST:
                    return _BEYOND_COUNTING
                status = entry.stat(follow_symlinks=False)
                total += max(status.st_blocks * 512, 1)
                if entry.is_dir(follow_symlinks=False):
                    if status.st_mode & _READABLE != _READABLE:  # nothing hides in there
                        os.chmod(entry.path, 0o700)
                    waiting.append((entry.path, depth + 1))
    return total


def remove_folder(folder: str) -> None:
    """Remove a folder whatever its depth and modes.

    Each folder below is moved up to the top before it is emptied, so no path grows long and
    nothing recurses; links are removed, never followed.
    """
    moved = 0
    with suppress(FileNotFoundError):
        while folders := _remove_files(folder):
            for path in folders:
                for inner in _remove_files(path):
                    moved += 1
                    os.rename(inner, os.path.join(folder, f".moved-{os.getpid()}-{moved}"))
                os.rmdir(path)
        os.rmdir(folder)


def _remove_files(folder: str) -> list[str]:
    """Remove all but the folders in it; those, made accessible."""
    os.chmod(folder, 0o700)
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    return folders

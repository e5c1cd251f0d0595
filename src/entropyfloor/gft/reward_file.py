"""given_rewards.jsonl: rewards of given responses, which a resumed run does not pay for again.

    {"key": digest of dataset, row and response, "reward": float, or null if there is none}

A new run begins a new file: it cannot know that the reward functions are still the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "given_rewards.jsonl"


def response_key(name: str, row: Mapping[str, Any], number: int) -> str:
    """Digest of a response with everything that reward functions see of its row."""
    seen = {column: value for column, value in row.items() if column != "responses"}
    response = row["responses"][number]["completion"]
    text = json.dumps([name, seen, response], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RewardFile:
    """Rewards by key; NaN where no reward function applied.

    Args:
        folder: of the run.
        resumed: read what is there; else begin anew.
        writes: whether this process writes.

    """

    def __init__(self, folder: str | Path, *, resumed: bool, writes: bool) -> None:
        self._path, self._writes, self._begun = Path(folder) / FILE_NAME, writes, False
        self.known: dict[str, float] = {}
        if resumed and self._path.is_file():
            for line in self._path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a killed run
                value = entry["reward"]
                self.known[entry["key"]] = math.nan if value is None else float(value)

    def add(self, rewards: Mapping[str, float]) -> None:
        """Keep rewards, and write them at once."""
        self.known.update(rewards)
        if not self._writes or not rewards:
            return
        new = rewards if self._begun else self.known  # what was there, without a line cut short
        lines = [
            json.dumps({"key": key, "reward": None if math.isnan(value) else value})
            for key, value in new.items()
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a" if self._begun else "w") as file:
            file.write("\n".join(lines) + "\n")
        self._begun = True

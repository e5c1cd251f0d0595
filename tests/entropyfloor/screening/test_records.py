import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from entropyfloor.screening.records import plain, restore
from entropyfloor.stats.intervals import Interval


@dataclass(frozen=True)
class Inner:
    interval: Interval | None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    rows: tuple[Inner, ...]
    readings: list[tuple[int, float | None]]
    by_k: dict[int, Inner]
    settings: dict[str, Any]


ONE = Inner(Interval(0.1, 0.2), (1.0, 2.5))


@pytest.mark.parametrize(
    "record",
    [
        Outer(ONE, (ONE, Inner(None)), [(1, 0.5), (2, None)], {8: ONE}, {"a": [1, {"b": None}]}),
        Outer(None, (), [], {}, {}),
    ],
)
def test_json_and_back(record):
    again = restore(Outer, json.loads(json.dumps(plain(asdict(record)))))
    assert again == record
    assert all(type(row) is Inner for row in again.rows)
    assert again.inner is None or type(again.inner.interval) is Interval


def test_none_stays_none_and_an_unknown_field_is_refused():
    assert restore(Outer | None, None) is None
    with pytest.raises(KeyError, match="colour"):
        restore(Inner, {"interval": None, "colour": "red"})

import json
from dataclasses import fields
from importlib.resources import files

import jsonschema
import pytest

from entropyfloor.screening.paired import (
    BandPoint,
    Coverage,
    Difference,
    PairedComparison,
    PromptResults,
    SolvedByOne,
)
from entropyfloor.screening.report import (
    SCHEMA,
    SCHEMA_VERSION,
    Calibration,
    CheckpointScreening,
    DegenerateExample,
    ExampleRollout,
    GateResult,
    Histogram,
    Peak,
    PredictorCorrelation,
    Recommendation,
)
from entropyfloor.stats.group_sequential import SequentialRecord
from sample_reports import report

DOCUMENT = json.loads(
    (files("entropyfloor.screening") / "screening.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(DOCUMENT)


def written(found, tmp_path):
    return json.loads(found.write_json(tmp_path / "x.json").read_text(encoding="utf-8"))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)
    assert DOCUMENT["properties"]["schema"]["const"] == SCHEMA
    assert DOCUMENT["properties"]["schema_version"]["const"] == SCHEMA_VERSION


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("count", [1, 7])
def test_reports_are_valid(count, scored, tmp_path):
    VALIDATOR.validate(written(report(count, scored=scored), tmp_path))


RECORDS = {
    "checkpoint": CheckpointScreening,
    "histogram": Histogram,
    "example": ExampleRollout,
    "sequential": SequentialRecord,
    "recommendation": Recommendation,
    "correlation": PredictorCorrelation,
    "calibration": Calibration,
    "peak": Peak,
    "prompt_results": PromptResults,
    "gate": GateResult,
    "degenerate_example": DegenerateExample,
    "comparison": PairedComparison,
    "difference": Difference,
    "band_point": BandPoint,
    "coverage": Coverage,
    "solved_by_one": SolvedByOne,
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_schema_names_every_field(name):
    assert set(DOCUMENT["$defs"][name]["properties"]) == {f.name for f in fields(RECORDS[name])}


ROW = ("checkpoints", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 99),
        ((*ROW, "verdict"), "fine"),
        ((*ROW, "pass_at_1"), 1.5),
        ((*ROW, "intervals", "entropy_nats"), [0.1]),
        ((*ROW, "pass_at_k", "x"), 0.5),
        ((*ROW, "another"), 1),
        ((*ROW, "entropy_nats"), None),
        (("settings", "temperature"), 0),
    ],
    ids=lambda part: str(part[-1]) if isinstance(part, tuple) else "",
)
def test_what_is_wrong_is_found(path, value, tmp_path):
    document = written(report(2), tmp_path)
    part = document
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if value is None:
        del part[path[-1]]
    assert not VALIDATOR.is_valid(document)

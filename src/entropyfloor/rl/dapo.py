"""The rank-inversion paper's GRPO on trl's GRPOTrainer: its options, and its LoRA.

    g = 8 · beta = 0 · epsilon 0.2 and epsilon_high 0.28 (clip-higher) · token-level DAPO loss ·
    lr 1e-6 · T = 1, no top-p, no top-k · 400 steps          arXiv 2606.18487; DAPO: 2503.14476

Those of them that are trl 1.16's defaults are written out nevertheless, so that they stay when trl
changes its mind. ``save_steps`` is ours, 50: a restore and a peak over checkpoints need some, and
trl's 500 saves none before the end. Everything else is trl's, its entropy bonus (``entropy_coef``)
and adaptive coefficient (``use_adaptive_entropy``, ``entropy_target``, ...) included.

The paper's text does not say how many prompts a step has: ``per_device_train_batch_size`` counts
rollouts, so trl's default of 8 is a single group per step and device. Set it, or
``gradient_accumulation_steps``.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from entropyfloor.rollouts.options import check_known, flag

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

PAPER_RANK = 128
_NO_UPPER_CLIP = {"sapo", "vespo"}  # weigh ratios smoothly instead of clipping them
_ADAPTIVE_ONLY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")


@dataclass
class DAPOConfig(GRPOConfig):
    """``trl.GRPOConfig`` with the paper's defaults; contradictions raise ValueError."""

    num_generations: int = flag(8, "Rollouts per prompt: the group size g of the paper.")
    beta: float = flag(0.0, "KL coefficient; the paper has none.")
    epsilon: float = flag(0.2, "Lower clipping bound, 1 - epsilon.")
    epsilon_high: float | None = flag(0.28, "Upper clipping bound, 1 + epsilon_high (clip-higher).")
    loss_type: str = flag("dapo", "Token-level DAPO loss; trl's others are open.")
    learning_rate: float = flag(1e-6, "The paper's for GRPO.")
    temperature: float = flag(1.0, "Of sampling; the paper's is 1.")
    max_steps: int = flag(400, "Optimizer steps. -1: as many as --num_train_epochs needs.")

    save_steps: float = flag(
        50, "Steps between checkpoints: what a restore and a peak are taken from."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self)


def dapo_config(output_dir: str | Path, **overrides: Any) -> GRPOConfig:
    """Options of the paper's GRPO, any of trl's changed by name.

    Args:
        output_dir: of the run.
        overrides: fields of ``trl.GRPOConfig``. ``num_train_epochs`` without ``max_steps`` replaces
            the 400 steps.

    Raises:
        ValueError: an unknown option, or options that contradict each other.

    """
    check_known(overrides, {f.name for f in fields(GRPOConfig) if f.init}, "trl.GRPOConfig")
    if "num_train_epochs" in overrides:
        overrides.setdefault("max_steps", -1)
    return DAPOConfig(output_dir=str(output_dir), **overrides)


def check_config(config: GRPOConfig) -> None:
    """Raise ValueError for options that contradict each other, or that would have no effect."""
    default = {f.name: f.default for f in fields(type(config))}
    changed = {name for name in default if getattr(config, name) != default[name]}
    loss, high = config.loss_type, config.epsilon_high
    if loss == "cispo":
        if high is None or high < 1.0:
            raise ValueError(
                "with loss_type='cispo' epsilon_high caps the probability ratio itself, so "
                f"{high} would scale every gradient down to it; set epsilon_high (ScaleRL: 5.0)"
            )
    elif loss in _NO_UPPER_CLIP:
        if changed & {"epsilon", "epsilon_high"}:
            raise ValueError(
                f"loss_type={loss!r} does not clip, so epsilon and epsilon_high have no effect; "
                "leave them out"
            )
    elif high is not None and high < config.epsilon:
        raise ValueError(
            f"epsilon_high {high} is below epsilon {config.epsilon}: DAPO clips *higher* above; "
            "raise epsilon_high, or set both to the same value for symmetric clipping"
        )
    if config.delta is not None and config.delta <= 1.0 + (high or config.epsilon):
        raise ValueError(
            f"delta {config.delta} lies inside the clipping range, which ends at 1 + epsilon_high "
            f"= {1.0 + (high or config.epsilon):g}; set delta above it, or leave it out"
        )
    if loss == "dapo" and config.importance_sampling_level == "sequence":
        raise ValueError(
            "loss_type='dapo' sums over tokens, so importance_sampling_level='sequence' weights a "
            "rollout by its length; use 'token', or loss_type='grpo' (GSPO)"
        )
    if not config.use_adaptive_entropy:
        idle = [name for name in _ADAPTIVE_ONLY if name in changed]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} only act with use_adaptive_entropy=True; set it, or use "
                "entropy_coef for a constant bonus"
            )
    elif config.entropy_coef_min > config.entropy_coef_max:
        raise ValueError(
            f"entropy_coef_min {config.entropy_coef_min} is above entropy_coef_max "
            f"{config.entropy_coef_max}; swap them"
        )
    if config.multi_objective_aggregation == "normalize_then_sum" and "scale_rewards" in changed:
        raise ValueError(
            "multi_objective_aggregation='normalize_then_sum' normalises by itself, so "
            f"scale_rewards={config.scale_rewards!r} has no effect; leave one of them out"
        )
    if config.max_steps > 0 and "num_train_epochs" in changed:
        raise ValueError(
            f"max_steps {config.max_steps} wins over num_train_epochs {config.num_train_epochs}; "
            "set max_steps to -1 to train by epochs, or leave num_train_epochs out"
        )
    if config.sync_ref_model and config.beta == 0.0:
        raise ValueError(
            "sync_ref_model=True needs a reference model, and beta = 0 has none; set beta, or "
            "leave sync_ref_model out"
        )
    idle = sorted(name for name in changed if name.startswith("vllm_"))
    if idle and not config.use_vllm:
        raise ValueError(
            f"{', '.join(idle)} only act with use_vllm=True; set it, or leave them out"
        )


def paper_lora(model: "PreTrainedModel | str | Path", **overrides: Any) -> "LoraConfig":
    """LoRA of the paper: r = alpha = 128 on all linear layers and the input embeddings.

    Args:
        model: a model, or where one is; from a path only its configuration is read. Its own module
            names are needed: peft's "all-linear" leaves embeddings out.
        overrides: fields of ``peft.LoraConfig``.

    Returns:
        A config for ``GRPOTrainer(peft_config=...)``. The output head is left alone: trl computes
        log-probabilities from its weight. Where it is tied to the embeddings, keep the adapter as
        it is and do not merge it: merging would change the head as well.

    Raises:
        ValueError: a model without linear layers.

    """
    from accelerate import init_empty_weights
    from peft import LoraConfig
    from torch.nn import Linear
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    if isinstance(model, str | Path):
        config = AutoConfig.from_pretrained(model)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    targets = [
        name
        for name, module in model.named_modules()
        if module is embeddings or (isinstance(module, Linear | Conv1D) and module is not head)
    ]
    if len(targets) < 2:
        raise ValueError(
            f"{type(model).__name__} has no linear layers that LoRA knows; give target_modules to "
            "peft.LoraConfig yourself"
        )
    settings = {
        "r": PAPER_RANK,
        "lora_alpha": PAPER_RANK,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        **overrides,
    }
    return LoraConfig(**settings)

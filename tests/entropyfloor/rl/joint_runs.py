"""GRPO runs on a tiny random Llama, and demonstrations for their SFT term."""

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from entropyfloor.rollouts.prompts import PromptSet
from tiny_models import tiny_model, tiny_tokenizer

DEMOS = PromptSet(
    tuple({"prompt": f"{a}+1=", "completion": str(a + 1) * (1 + a % 3)} for a in range(10))
)


def first_byte(completion_ids, **_):
    """A quarter of all first tokens pass."""
    return [float(ids[0] % 4 == 0) for ids in completion_ids]


def grpo(folder, *, trainer=GRPOTrainer, callbacks=(), reward=first_byte, extra=None, **changes):
    options = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **changes,
    }
    return trainer(
        model=tiny_model(),
        reward_funcs=reward,
        args=GRPOConfig(str(folder), **options),
        train_dataset=Dataset.from_list([{"prompt": f"{a}+2="} for a in range(32)]),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        **(extra or {}),
    )

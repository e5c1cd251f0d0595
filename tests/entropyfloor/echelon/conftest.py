import pytest


@pytest.fixture(scope="session")
def tiny_recipe():
    """Makes the smallest echelon that has every stage: a few seconds."""
    return _tiny_recipe


def _tiny_recipe(**changes):
    return {
        "name": "tiny",
        "model": {"name": "small", "pretraining_steps": 3},
        "data": {"task": "small_sums", "test": 12, "rl_prompts": 16, "demonstrations": 8},
        "losses": {"ce": {"loss": "ce"}},
        "depths": [0.5, 1.5],
        "seeds": [0],
        "sft": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
        "screening": {"num_samples": 4, "group_size": 4, "ks": [1, 4]},
        "grpo": {
            "steps": 2,
            "save_every": 1,
            "prompts_per_step": 4,
            "group_size": 4,
            "learning_rate": 2e-4,
        },
        **changes,
    }

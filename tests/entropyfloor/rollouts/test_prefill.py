import copy
import inspect

import pytest
import torch

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import generate_rollouts, shared_prefill
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer

ENCODED = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [30]]


def loaded(family, **overrides):
    model = tiny_model(family, **overrides).eval()
    model.generation_config.eos_token_id = None
    return LoadedCheckpoint("tiny", "tiny", model, copy.deepcopy(tiny_tokenizer()))


def rollouts(checkpoint, batch_size, prompts=(0, 1)):
    requests = [(prompt, sample) for prompt in prompts for sample in range(4)]
    settings = Sampling(max_new_tokens=8, batch_size=batch_size)
    batches = generate_rollouts(checkpoint, ENCODED, requests, settings)
    return {(r.prompt_index, r.sample_index): r for batch in batches for r in batch}


def check_same(one, other):
    assert one.keys() == other.keys()
    for key, rollout in one.items():
        assert other[key].token_ids == rollout.token_ids
        assert other[key].entropies_nats == pytest.approx(rollout.entropies_nats, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_nothing(family, monkeypatch):
    checkpoint = loaded(family)
    shared = rollouts(checkpoint, batch_size=8)
    monkeypatch.setattr("entropyfloor.rollouts.rollouts.shared_prefill", lambda *_: None)
    check_same(rollouts(checkpoint, batch_size=8), shared)


def test_a_sliding_window_shorter_than_the_prompt():
    checkpoint = loaded("gemma2", sliding_window=4)
    check_same(rollouts(checkpoint, batch_size=1), rollouts(checkpoint, batch_size=8))


def test_a_prompt_of_one_token_beside_longer_ones():
    checkpoint = loaded("llama")
    alone = rollouts(checkpoint, batch_size=1, prompts=(0, 2))
    check_same(alone, rollouts(checkpoint, batch_size=8, prompts=(0, 2)))


def test_each_prompt_is_read_once(monkeypatch):
    checkpoint = loaded("llama")
    rows = []
    forward = checkpoint.model.forward

    def counting(input_ids=None, **arguments):
        rows.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **arguments)

    counting.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(checkpoint.model, "forward", counting)
    rollouts(checkpoint, batch_size=8)
    assert rows == [(2, 8), *[(8, 1)] * 8]


@torch.inference_mode()
def test_nothing_to_share():
    checkpoint = loaded("llama")
    ids = torch.tensor([[1, 2], [3, 4]])
    assert shared_prefill(checkpoint, ids, torch.ones_like(ids), [0, 1]) is None
    assert shared_prefill(checkpoint, ids[:, :1], torch.ones_like(ids[:, :1]), [0, 0]) is None
    cache = shared_prefill(
        checkpoint, ids[[0, 0, 1]], torch.ones(3, 2, dtype=torch.long), [5, 5, 9]
    )
    assert cache.get_seq_length() == 1
    keys = cache.layers[0].keys
    assert len(keys) == 3 and torch.equal(keys[0], keys[1]) and not torch.equal(keys[0], keys[2])

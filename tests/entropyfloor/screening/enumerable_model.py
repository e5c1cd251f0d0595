"""Nets so small that every rollout of every prompt can be enumerated, with its probability."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.screening.paired import PromptResults

VOCABULARY, END, LENGTH = 6, 1, 3
PROMPTS = [list(p) for p in itertools.product(range(VOCABULARY), repeat=3)]  # 216: the population


class _Tokenizer:
    """What rollouts need of a tokenizer: the ids are the text."""

    pad_token_id, eos_token_id = 0, END

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def enumerable_net(seed=0, moved=0.0):
    """A random net; ``moved`` is the share of another one in its weights, as training moves it."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=END,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    torch.manual_seed(seed + 1)
    other = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for parameter, towards in zip(model.parameters(), other.parameters(), strict=True):
            parameter.lerp_(towards, moved)
            if parameter.ndim > 1:
                parameter.mul_(12.0)  # peaked: different prompts, different entropies
    model.generation_config.eos_token_id = END
    return LoadedCheckpoint("net", "net", model, _Tokenizer())


@dataclass
class Enumerated:
    """Every rollout of one prompt: ids, probability, entropy at each step."""

    ids: list
    probabilities: np.ndarray
    entropies: list


@torch.no_grad()
def enumerate_rollouts(net):
    """Exact distribution of rollouts per prompt, in fp64, one forward per prefix length."""
    every = []
    for prompt in PROMPTS:
        done, alive = [], [((), 1.0, ())]
        for step in range(LENGTH):
            ids = torch.tensor([[*prompt, *prefix] for prefix, _, _ in alive])
            log_p = net.model(ids).logits[:, -1].double().log_softmax(-1)
            entropies = (-(log_p.exp() * log_p).sum(-1)).tolist()
            p = log_p.exp().tolist()
            grown = [
                ((*prefix, token), mass * p[row][token], (*before, entropies[row]))
                for row, (prefix, mass, before) in enumerate(alive)
                for token in range(VOCABULARY)
            ]
            last = step == LENGTH - 1
            done += [g for g in grown if last or g[0][-1] == END]
            alive = [g for g in grown if not last and g[0][-1] != END]
        ids, mass, entropies = zip(*done, strict=True)
        assert abs(sum(mass) - 1.0) < 1e-12
        every.append(Enumerated(list(ids), np.array(mass), [np.array(e) for e in entropies]))
    return every


def passes(ids):
    return float(ids[0] in (2, 3) and len(ids) > 1)


class Population:
    """What screenings are drawn from: per prompt the exact numbers, and results of samples."""

    def __init__(self, moved):
        self.moved, enumerated = moved, enumerate_rollouts(enumerable_net(moved=moved))
        sums = [np.array([e.sum() for e in x.entropies]) for x in enumerated]
        tokens = [np.array([len(i) for i in x.ids]) for x in enumerated]
        passed = [np.array([passes(i) for i in x.ids]) for x in enumerated]
        self.mass = [x.probabilities / x.probabilities.sum() for x in enumerated]
        self._outcomes = list(zip(sums, tokens, passed, strict=True))
        self.nats, self.tokens, self.rate = (
            np.array([m @ o[part] for m, o in zip(self.mass, self._outcomes, strict=True)])
            for part in range(3)
        )

    def screen(self, prompts, samples, rng):
        """Results of ``samples`` rollouts of each prompt, a row of the set each."""
        columns = []
        for prompt in prompts:
            drawn = rng.choice(len(self.mass[prompt]), size=samples, p=self.mass[prompt])
            columns.append([part[drawn].sum() for part in self._outcomes[prompt]])
        sums, tokens, passed = np.array(columns).T
        return PromptResults(
            tuple(range(len(prompts))),
            (samples,) * len(prompts),
            tuple(tokens.astype(int).tolist()),
            tuple(sums.tolist()),
            tuple(passed.astype(int).tolist()),
        )

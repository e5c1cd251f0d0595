"""vLLM itself behind ``screen --engine vllm``, on a CPU, beside transformers' engine."""
# ruff: noqa: E402 - nothing else is there to import where the framework is not

import os

import pytest
import torch

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are not its own here
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # dies with the test
}
vllm = pytest.importorskip("vllm", reason="needs vllm: make test-vllm")

from entropyfloor.models.checkpoints import load_checkpoint
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.teacher_forced import Completion, token_entropies
from flat_calls import even, screen
from tiny_models import tiny_model, tiny_tokenizer

PROMPTS = PromptSet(tuple({"prompt": f"{a}+{b}="} for a in range(3) for b in range(8)))
# The kernels of the CPU know heads of 32 and more; chunked prefill fails on some processors.
SHAPE = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
ENGINE = {"enable_chunked_prefill": False, "enforce_eager": True, "max_logprobs": -1}
OPTIONS = {"reward": even, "max_new_tokens": 12, "num_samples": 8, "group_size": 4}
OPTIONS["progress"] = False


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", **SHAPE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(directory):
    """The report, and the engine that screening made."""
    made = []

    class Kept(vllm.LLM):
        def __init__(self, **options):
            made.append(self)
            super().__init__(**options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vllm, "LLM", Kept)
        report = screen(
            [directory],
            prompts=PROMPTS,
            engine="vllm",
            engine_args=ENGINE,
            **OPTIONS,
        )
    return report, made[0]


def test_both_engines_draw_from_one_distribution(drawn, directory):
    report, llm = drawn
    assert report.settings["engine_args"] == ENGINE
    assert llm.llm_engine.vllm_config.scheduler_config.enable_chunked_prefill is False
    usual = screen([directory], prompts=PROMPTS, **OPTIONS)
    own, other = report.checkpoints[0], usual.checkpoints[0]
    assert own.token_entropy_histogram != other.token_entropy_histogram  # other rollouts
    for measure in ("entropy_nats", "pass_at_1", "mean_tokens"):
        mine, theirs = own.intervals[measure], other.intervals[measure]
        assert mine.low < theirs.high and theirs.low < mine.high, measure
    assert own.greedy_pass_at_1 == other.greedy_pass_at_1


def test_entropies_read_again_are_those_it_drew_from(drawn, directory):
    """vLLM's own log-probabilities, of the whole vocabulary, which are slow to hand out."""
    checkpoint = load_checkpoint(directory)
    prompts = [tuple(checkpoint.tokenizer(row["prompt"])["input_ids"]) for row in PROMPTS.rows[:4]]
    outputs = drawn[1].generate(
        [{"prompt_token_ids": list(ids)} for ids in prompts],
        vllm.SamplingParams(temperature=1.0, max_tokens=8, seed=3, logprobs=-1),
        use_tqdm=False,
    )
    completions = []
    for number, (ids, output) in enumerate(zip(prompts, outputs, strict=True)):
        completions.append(Completion(number, ids, tuple(output.outputs[0].token_ids)))
    for output, entropies in zip(outputs, token_entropies(checkpoint, completions), strict=True):
        log_p = torch.tensor(
            [[entry.logprob for entry in step.values()] for step in output.outputs[0].logprobs]
        ).double()
        assert log_p.shape[1] == checkpoint.model.config.vocab_size
        assert entropies == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), abs=1e-4)

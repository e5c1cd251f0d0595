"""vLLM draws the tokens; the checkpoint, loaded beside it, gives their entropies.

vLLM returns the log-probabilities of a few tokens, and the entropy needs all of them. So each
finished rollout is read once more by transformers, teacher-forced, through the same chunked head
as held-out loss and KL. Reading is one forward pass; generating, which vLLM makes fast, is hundreds
of steps.

Every rollout has its own seed from (seed, prompt, sample). Its tokens are not those of the
transformers engine: the generators differ, and so do the last bits of the logits.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.rollouts import (
    Rollout,
    request_batches,
    until_end,
)
from entropyfloor.rollouts.teacher_forced import Completion, token_entropies

# Of the GPU, for vLLM's weights and cache; the rest is for the checkpoint that reads rollouts.
MEMORY_SHARE = 0.6


class VLLMEngine:
    """A full model (no adapter) in vLLM, on one GPU."""

    def __init__(
        self,
        source: CheckpointSource,
        checkpoint: LoadedCheckpoint,
        *,
        context_length: int,
        trust_remote_code: bool = False,
    ) -> None:
        """Start vLLM.

        Args:
            source: the checkpoint's files.
            checkpoint: the same, loaded; gives dtype, ends of sequence, texts and entropies.
            context_length: longest prompt and completion together, tokens.
            trust_remote_code: run model code that travels with the checkpoint.

        """
        from vllm import LLM

        self._checkpoint = checkpoint
        self._llm = LLM(
            model=str(source.directory),
            tokenizer=str(source.directory),
            dtype=str(checkpoint.inner_model.dtype).removeprefix("torch."),
            load_format="safetensors",
            trust_remote_code=trust_remote_code,
            # The checkpoint's own generation config may hold a repetition penalty, or top-p.
            generation_config="vllm",
            gpu_memory_utilization=MEMORY_SHARE,
            max_model_len=context_length,
        )

    def generate(
        self,
        encoded: Sequence[Sequence[int]],
        requests: Sequence[tuple[int, int]],
        settings: Sampling,
        processes: Processes,
    ) -> Iterator[list[Rollout]]:
        """See :class:`entropyfloor.rollouts.engines.Engine`."""
        for batch in processes.share(request_batches(requests, encoded, settings.batch_size)):
            yield self._generate_batch(encoded, batch, settings)

    def _generate_batch(
        self,
        encoded: Sequence[Sequence[int]],
        batch: Sequence[tuple[int, int]],
        settings: Sampling,
    ) -> list[Rollout]:
        from vllm import SamplingParams

        ends = self._checkpoint.eos_token_ids
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(encoded[prompt])} for prompt, _ in batch],
            [
                SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k or -1,  # -1 is off in every version, 0 in newer ones
                    max_tokens=settings.max_new_tokens,
                    stop_token_ids=list(ends),
                    seed=_seed(settings.seed, *request),
                )
                for request in batch
            ],
            use_tqdm=False,
        )
        sampled = [until_end(list(output.outputs[0].token_ids), ends) for output in outputs]
        entropies = token_entropies(
            self._checkpoint,
            [
                Completion(prompt, tuple(encoded[prompt]), ids)
                for (prompt, _), (ids, _) in zip(batch, sampled, strict=True)
            ],
        )
        decode = self._checkpoint.tokenizer.decode
        rollouts = []
        for (prompt, sample), (ids, truncated), values in zip(
            batch, sampled, entropies, strict=True
        ):
            text = decode(list(ids), skip_special_tokens=True)
            rollouts.append(Rollout(prompt, sample, ids, values, text, truncated))
        return rollouts


def _seed(seed: int, prompt: int, sample: int) -> int:
    return int(np.random.SeedSequence((seed, prompt, sample)).generate_state(1)[0])

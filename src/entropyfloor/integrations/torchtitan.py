"""torchtitan: our losses inside its chunked loss, which builds the logits a chunk at a time.

    from entropyfloor.integrations.torchtitan import EntropyPreservingLoss
    loss = ChunkedLossWrapper.Config(
        num_chunks=8, loss_fn=EntropyPreservingLoss.Config(loss="gem", options={"beta": 0.7})
    )

Written for torchtitan's ``BaseLoss``; only what trains with torchtitan imports this file.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import BaseLoss

from entropyfloor_losses import loss_by_name, needs_calibration, token_statistics


class EntropyPreservingLoss(BaseLoss):
    """One of our losses, by name, as torchtitan's loss of a chunk's logits."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """Name of the loss, and its options (``tau`` as a number)."""

        loss: str = "gem"
        options: dict[str, Any] = field(default_factory=dict)

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        self.loss = loss_by_name(config.loss, **config.options)
        if needs_calibration(self.loss):
            raise ValueError(
                f"loss {config.loss!r} has tau='auto', which would have to be measured before the "
                "first step; give a number: options={'tau': 0.9}"
            )
        self.fn = self._sum
        self._maybe_compile(compile_config)

    def _sum(self, pred: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the loss and of the entropy (nats) over the scored tokens."""
        statistics = token_statistics(pred, labels, request=self.loss.request)
        values = statistics.where_scored(self.loss(statistics))
        return values.sum(), statistics.entropy.detach().sum()

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of one chunk.

        Args:
            pred: ``[batch, length, vocabulary]`` logits.
            labels: ``[batch, length]``, shifted already; -100 is ignored.
            global_valid_tokens: the divisor; None leaves the sum.

        Raises:
            ValueError: logits whose vocabulary is spread over devices.

        """
        if isinstance(pred, DTensor):
            raise ValueError(
                "the logits' vocabulary is sharded (tensor parallelism); entropy-preserving losses "
                "need it whole: use data, context or pipeline parallelism"
            )
        loss, entropy = self.fn(pred, labels)
        if global_valid_tokens is None:
            return loss, {}
        mean = entropy / global_valid_tokens
        return loss / global_valid_tokens, {"entropy_nats/mean": mean}

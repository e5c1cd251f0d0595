"""Our losses inside torchtitan's chunked loss, against its own loss and the papers'."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchtitan", reason="needs torchtitan: make test-integrations")

import reference
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss

from entropyfloor.integrations.torchtitan import EntropyPreservingLoss

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 8, 16, 61


def run(loss_fn):
    """Loss, metrics and the gradients of hidden states and head."""
    torch.manual_seed(0)
    hidden = (2 * torch.randn(ROWS, LENGTH, WIDTH)).requires_grad_()
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH))
    labels[0, :5] = -100
    chunked = ChunkedLossWrapper.Config(num_chunks=4, loss_fn=loss_fn).build()
    chunked.set_lm_head(head)
    loss, metrics = chunked(hidden, labels, (labels != -100).sum())
    loss.backward()
    return loss, metrics, hidden, head, labels


def test_cross_entropy_is_torchtitan_s_own():
    own, _, own_hidden, own_head, _ = run(CrossEntropyLoss.Config())
    ours, metrics, hidden, head, _ = run(EntropyPreservingLoss.Config(loss="ce"))
    torch.testing.assert_close(ours, own)
    torch.testing.assert_close(hidden.grad, own_hidden.grad)
    torch.testing.assert_close(head.weight.grad, own_head.weight.grad)
    assert 0 < metrics["entropy_nats/mean"] < np.log(VOCABULARY)


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("gem", {"beta": 0.7}, lambda z, y: reference.gem(z, y, 0.7)),
        ("sed", {"tau": 0.3, "lam": 1.0}, lambda z, y: reference.sed(z, y, 1.0, 2, 0.3)),
    ],
)
def test_losses_are_the_papers(name, options, formula):
    loss, _, hidden, head, labels = run(EntropyPreservingLoss.Config(loss=name, options=options))
    scored = (labels != -100).numpy()
    states = hidden.detach().double().numpy()[scored]
    weight = head.weight.detach().double().numpy()
    value, slope = formula(states @ weight.T, labels.numpy()[scored])
    assert loss.item() == pytest.approx(value.mean(), rel=1e-5)
    np.testing.assert_allclose(
        hidden.grad.numpy()[scored], slope @ weight / len(value), rtol=1e-4, atol=1e-7
    )


def test_tau_must_be_a_number():
    with pytest.raises(ValueError, match="give a number"):
        EntropyPreservingLoss.Config(loss="sed").build()

"""Softmax policies that are tables: every quantity of the coupling by enumeration.

    p(a|x) = exp z[x,a] / sum_b exp z[x,b]                        one logit per prompt and answer
    L = -sum_x w_x sum_a d(a|x) log p(a|x)                        SFT loss, nats per answer
    J =  sum_x w_x sum_a p(a|x) r(x,a)                            expected reward
    dL/dz[x,a] = w_x (p - d)          dJ/dz[x,a] = w_x p (r - J_x),   J_x = sum_a p r

    symbol  shape   meaning
    w       [X]     how often a prompt comes, sums to 1
    d       [X,A]   what demonstrators answer, rows sum to 1
    r       [X,A]   reward

The identity of arXiv:2601.07389, Theorem 3.1, follows in one line from the definitions, and so does
by how much it fails:

    L(q) - L(p) = KL(p || q) + sum_x w_x sum_a (d - p) log(p / q)

The last sum is zero where p = d (an SFT optimum of a policy that can be anything), and for a policy
that is log-linear in its parameters at any stationary point of L. Elsewhere it is not, and its sign
is open.

The other half of the paper, that SFT after RL lowers the reward, is not an identity. A constant
reward is never lowered by anything, and demonstrators who are better than the policy raise it.

The instruments for checkpoints are held against this file by the tests. Tensors are float64.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TabularTask:
    """Prompts, demonstrations and rewards that can be enumerated.

    Attributes:
        prompt_weights: ``[X]``, non-negative, sums to 1.
        demonstrations: ``[X, A]``, rows sum to 1.
        rewards: ``[X, A]``.

    """

    prompt_weights: Tensor
    demonstrations: Tensor
    rewards: Tensor


def sft_loss(logits: Tensor, task: TabularTask) -> Tensor:
    """``L``, nats per answer, of ``[X, A]`` logits."""
    return -(task.prompt_weights[:, None] * task.demonstrations * logits.log_softmax(-1)).sum()


def expected_reward(logits: Tensor, task: TabularTask) -> Tensor:
    """``J`` of ``[X, A]`` logits."""
    return (task.prompt_weights[:, None] * logits.softmax(-1) * task.rewards).sum()


def kl(of: Tensor, to: Tensor, task: TabularTask) -> Tensor:
    """``sum_x w_x KL(p_of || p_to)``, nats per answer."""
    log_p, log_q = of.log_softmax(-1), to.log_softmax(-1)
    return (task.prompt_weights[:, None] * log_p.exp() * (log_p - log_q)).sum()


def identity_gap(sft: Tensor, rl: Tensor, task: TabularTask) -> Tensor:
    """``(L(rl) - L(sft)) - KL(p_sft || p_rl)`` from its own formula; zero where ``p_sft = d``."""
    log_ratio = sft.log_softmax(-1) - rl.log_softmax(-1)
    difference = task.demonstrations - sft.softmax(-1)
    return (task.prompt_weights[:, None] * difference * log_ratio).sum()


def sft_gradient(logits: Tensor, task: TabularTask) -> Tensor:
    """``dL/dz``, ``[X, A]``."""
    return task.prompt_weights[:, None] * (logits.softmax(-1) - task.demonstrations)


def reward_gradient(logits: Tensor, task: TabularTask) -> Tensor:
    """``dJ/dz``, ``[X, A]``: the direction in which the reward rises."""
    p = logits.softmax(-1)
    advantages = task.rewards - (p * task.rewards).sum(-1, keepdim=True)
    return task.prompt_weights[:, None] * p * advantages


def sft_optimum(task: TabularTask) -> Tensor:
    """Logits whose policy answers as the demonstrators do; -inf where they never answer so."""
    return task.demonstrations.log()


def tilted(logits: Tensor, task: TabularTask, strength: float | Tensor) -> Tensor:
    """Logits of ``p exp(strength r) / Z``: natural policy gradient, followed for that long.

    It is also the policy of most reward at its KL from the start, so no other RL run pays less
    ``KL(p_rl || p_sft)`` for what it wins.
    """
    return logits + strength * task.rewards

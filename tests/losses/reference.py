"""Independent float64 references in numpy, written from the papers: values and analytic gradients.

Nothing here calls the package or torch.autograd. For each loss: per-token value and dL/dz, z the
final logits of a token (METHODS: NLL p - e_y; dH/dz = -p (log p + H); dp_y/dz = p_y (e_y - p)).
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Head:
    """How hidden states become logits."""

    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, raw):
        z = raw * self.logit_scale
        if self.softcap is not None:
            z = self.softcap * np.tanh(z / self.softcap)
        return z / self.temperature

    def derivative(self, raw):
        slope = np.full_like(raw, self.logit_scale / self.temperature)
        if self.softcap is not None:
            slope *= 1 - np.tanh(raw * self.logit_scale / self.softcap) ** 2
        return slope


def log_softmax(z):
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def entropy(z):
    log_p = log_softmax(z)
    return -(np.exp(log_p) * log_p).sum(-1)


def top_k_mass(z, k):
    p = np.exp(log_softmax(z))
    return np.sort(p, axis=-1)[:, -k:].sum(-1)


def _parts(z, y):
    log_p = log_softmax(z)
    rows = np.arange(len(y))
    one_hot = np.zeros_like(z)
    one_hot[rows, y] = 1
    return log_p, np.exp(log_p), log_p[rows, y], one_hot


def ce(z, y, smoothing=0.0):
    log_p, p, lp, e = _parts(z, y)
    value = -(1 - smoothing) * lp - smoothing * log_p.mean(-1)
    target = (1 - smoothing) * e + smoothing / z.shape[1]
    return value, p - target


def sed(z, y, lam, k, tau):
    _, p, lp, e = _parts(z, y)
    mask = (top_k_mass(z, k) < tau).astype(float)
    py = np.exp(lp)
    value = -lp + lam * mask * (py * (py - 1) + 0.25)
    # d/dz_v = (-1 + 2 lam M p_y (p_y - 1/2)) (e_y - p)_v
    return value, (-1 + 2 * lam * mask * py * (py - 0.5))[:, None] * (e - p)


def dcr(z, y, tau):
    _, p, lp, e = _parts(z, y)
    c = np.where(np.exp(lp) < tau, np.exp(lp), 1.0)
    return -c * lp, c[:, None] * (p - e)


def dft(z, y):
    _, p, lp, e = _parts(z, y)
    return -np.exp(lp) * lp, np.exp(lp)[:, None] * (p - e)


def gem(z, y, beta):
    log_p, _, lp, e = _parts(z, y)
    q = np.exp(log_softmax(z / beta))
    return -lp + (q * log_p).sum(-1), q - e


def entropy_bonus(z, y, lam, k=None, tau=None):
    log_p, p, lp, e = _parts(z, y)
    mask = np.ones(len(y)) if k is None else (top_k_mass(z, k) < tau).astype(float)
    h = entropy(z)
    slope = (lam * mask)[:, None] * p * (log_p + h[:, None])
    return -lp - lam * mask * h, p - e + slope


def top_k_entropy(z, k):
    """Value and gradient of the entropy of p renormalised on exactly k most likely tokens."""
    # Exactly k: a saturated soft cap makes ties, between which neither value nor gradient differ.
    inside = np.zeros(z.shape, dtype=bool)
    np.put_along_axis(inside, np.argsort(z, axis=-1)[:, -k:], True, axis=-1)
    log_r = np.where(inside, log_softmax(np.where(inside, z, -np.inf)), 0.0)
    r = np.where(inside, np.exp(log_r), 0.0)
    value = -(r * log_r).sum(-1)
    return value, np.where(inside, -r * (log_r + value[:, None]), 0.0)


def eaft(z, y, alpha=1.0, k=20, normaliser=None):
    _, p, lp, e = _parts(z, y)
    w = (np.maximum(top_k_entropy(z, k)[0], 0) / (normaliser or np.log(k))) ** alpha
    return -w * lp, w[:, None] * (p - e)


def power(z, y, alpha):
    _, p, lp, e = _parts(z, y)
    return (1 - np.exp(alpha * lp)) / alpha, np.exp(alpha * lp)[:, None] * (p - e)


def deft(z, y):
    _, p, lp, e = _parts(z, y)
    a = (p**2).sum(-1)
    return -np.expm1(a * lp) / a, np.exp(a * lp)[:, None] * (p - e)


def gift(z, y, zb, beta):
    """KL to the tilted base model by enumeration of the vocabulary."""
    log_p, p, _, e = _parts(z, y)
    log_t = log_softmax(log_softmax(zb) + beta * e)
    t = np.exp(log_t)
    return (t * (log_t - log_p)).sum(-1), p - t


def asft(z, y, zb, lam):
    log_p, p, lp, e = _parts(z, y)
    log_b = log_softmax(zb)
    b, py = np.exp(log_b), np.exp(lp)
    value = -py * lp + lam * (b * (log_b - log_p)).sum(-1)
    return value, py[:, None] * (p - e) + lam * (p - b)


def psft(z, y, zb, epsilon_high):
    _, p, lp, e = _parts(z, y)
    r = np.exp(lp - log_softmax(zb)[np.arange(len(y)), y])
    # PPO with advantage 1: min(r A, clip(r, 1 - low, 1 + high) A), whatever low is.
    value = -np.minimum(r, np.clip(r, 0.8, 1 + epsilon_high))
    return value, np.where(r < 1 + epsilon_high, r, 0.0)[:, None] * (p - e)


def dco_weight(log_p, n):
    """N P (1 - P)^(N-1) / (1 - (1 - P)^N) of one sequence."""
    p = np.exp(log_p.sum())
    return n * p * (1 - p) ** (n - 1) / (1 - (1 - p) ** n)


def head_gradients(hidden, weight, bias, y, loss, head, token_weights):
    """Sum over tokens of weight * loss and its gradients by hidden, weight and bias."""
    raw = hidden @ weight.T + (0 if bias is None else bias)
    value, slope = loss(head.logits(raw), y)
    g = token_weights[:, None] * slope * head.derivative(raw)
    return (value * token_weights).sum(), value, g @ weight, g.T @ hidden, g.sum(0)

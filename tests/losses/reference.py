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


def head_gradients(hidden, weight, bias, y, loss, head, token_weights):
    """Sum over tokens of weight * loss and its gradients by hidden, weight and bias."""
    raw = hidden @ weight.T + (0 if bias is None else bias)
    value, slope = loss(head.logits(raw), y)
    g = token_weights[:, None] * slope * head.derivative(raw)
    return (value * token_weights).sum(), value, g @ weight, g.T @ hidden, g.sum(0)

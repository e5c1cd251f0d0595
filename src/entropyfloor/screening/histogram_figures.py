"""Histograms of one checkpoint in the HTML report: pass rates of prompts, entropies of tokens."""

from collections.abc import Sequence

from markupsafe import Markup

from entropyfloor.render.figure_parts import bar
from entropyfloor.render.svg import Scale, figure, group, label, line, short_number
from entropyfloor.screening.report import CheckpointScreening, ScreeningReport
from entropyfloor.stats.groups import p_star


def pass_rate_figure(checkpoint: CheckpointScreening, report: ScreeningReport) -> Markup | None:
    """How many prompts have which pass rate; p*(g) marked."""
    rates = checkpoint.per_prompt_pass_rates
    if not rates:
        return None
    samples = report.settings.get("num_samples") or 10
    # One bin per possible count while they are few, centred on it; else twenty equal ones.
    bins = samples + 1 if samples <= 16 else 20
    counts = [0] * bins
    for rate in rates:
        place = round(rate * samples) if samples <= 16 else int(rate * 20)
        counts[min(place, bins - 1)] += 1
    half = 0.5 / samples if samples <= 16 else 0.0
    size = report.settings.get("group_size")
    mark = None if size is None else (p_star(size), f"p*({size}) = {p_star(size):.3f}")
    return _histogram(
        [-half + i * (1 + 2 * half) / bins for i in range(bins + 1)],
        counts,
        mark,
        "pass rate of a prompt",
        "prompts",
        ticks=[0.0, 0.25, 0.5, 0.75, 1.0],
        description=f"{checkpoint.name}: {counts[0]} of {len(rates)} prompts are in the lowest bin "
        f"of pass rates, {counts[-1]} in the highest",
    )


def token_entropy_figure(checkpoint: CheckpointScreening) -> Markup | None:
    """Share of generated tokens by their entropy; the mean marked."""
    found = checkpoint.token_entropy_histogram
    if found is None or not sum(found.counts):
        return None
    total = sum(found.counts)
    mean = checkpoint.entropy_nats
    return _histogram(
        found.edges,
        [count / total for count in found.counts],
        (mean, f"mean {mean:.3f}"),
        "entropy of a token (nats)",
        "tokens",
        description=f"{checkpoint.name}: {found.counts[0] / total:.0%} of tokens have an entropy "
        f"of at most {found.edges[1]:.2g} nats; the mean is {mean:.3f}",
    )


def _histogram(
    edges: Sequence[float],
    heights: Sequence[float],
    mark: tuple[float, str] | None,
    caption: str,
    unit: str,
    *,
    description: str,
    ticks: Sequence[float] | None = None,
) -> Markup:
    width, left, top, bottom = 330, 46, 24, 140
    x = Scale(edges[0], edges[-1], left, width - 14)
    y = Scale(0.0, max([*heights, 1e-9]) * 1.05, bottom, top)
    share = max(heights) <= 1.0 and not isinstance(heights[0], int)
    parts = []
    for tick in y.ticks(3):
        if not share and tick != int(tick):
            continue
        parts.append(line(left, y(tick), width - 8, y(tick), "grid"))
        written = f"{tick:.0%}" if share else short_number(tick)
        parts.append(label(left - 5, y(tick) + 4, written, anchor="end"))
    for low, high, value in zip(edges, edges[1:], heights, strict=False):
        shown = f"{value:.1%}" if share else f"{value:g}"
        tip = f"{max(low, 0):.3g} to {high:.3g}: {shown} {unit}"
        wide = max(0.5, x(high) - x(low) - 1)
        column = bar(x(low) + 0.5, y(value), wide, bottom - y(value), "fill")
        parts.append(group([column], tip))
    parts.append(line(left, bottom, width - 8, bottom, "axis"))
    for tick in x.ticks(5) if ticks is None else ticks:
        parts.append(label(x(tick), bottom + 16, short_number(tick), anchor="middle"))
    parts.append(label((left + width) / 2, bottom + 34, caption, anchor="middle"))
    if mark is not None:
        at = x(mark[0])
        parts.append(line(at, top - 4, at, bottom, "threshold"))
        anchor = "start" if at < width / 2 else "end"
        parts.append(label(at, top - 9, mark[1], anchor=anchor, class_="tick strong"))
    return figure(parts, width, bottom + 42, description)

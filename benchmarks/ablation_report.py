"""Tables of `benchmarks.ablations`: the papers' claims next to our results.

Differences are in points of mIoU. The noise of a score is the standard deviation over
seeds, pooled over the rows with several seeds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ablation_rows import BASE_ROW, CLAIMS, ROWS, Claim
from benchmarks.measuring import markdown_table
from deeplab_tf.visualize import render

BILINEAR = "bilinear"
_TRIMAP = "1802.02611, Fig. 5"
# With ResNet-101 (1802.02611, Sec. 4.4).
_NARROWEST_GAIN = 4.8
_SIGNIFICANT = 2.0  # standard deviations
_NOTE = (
    "Points of mIoU on val. The number after ± is twice the standard deviation of\n"
    "the difference over seeds. A claim is unclear if the difference is smaller, or\n"
    "if the deviation is unknown. Evaluations of one trained model have no noise."
)
_TRIMAP_NOTE = "mIoU in % within trimaps: mean and standard deviation over seeds."
_CLAIM_COLUMNS = ("row", "claim", "source", "published", "ours", "holds")
_SCORE_COLUMNS = ("row", "mIoU in %", "seeds", "minutes of training")
_Results = Mapping[str, Sequence[dict]]  # runs by row


def judge_claim(expected: str, difference: float, noise: float | None) -> str:
    """Returns whether a claim holds: "yes", "no" or "unclear".

    Differences up to `noise` are insignificant; None is unknown.
    """
    if noise is None or not math.isfinite(difference):
        return "unclear"
    if expected == "alike":
        return "yes" if abs(difference) <= noise else "no"
    if abs(difference) <= noise:
        return "unclear"
    return "yes" if (difference > 0) == (expected == "better") else "no"


def _list_mious(runs: Sequence[dict]) -> np.ndarray:
    return 100 * np.array([run["miou"] for run in runs])


def compute_seed_deviation(results: _Results) -> float | None:
    """Returns the pooled standard deviation of mIoU; None without repeated rows."""
    several = [_list_mious(runs) for runs in results.values() if len(runs) > 1]
    if not several:
        return None
    squares = sum(((scores - scores.mean()) ** 2).sum() for scores in several)
    return math.sqrt(squares / sum(len(scores) - 1 for scores in several))


def compare_rows(claim: Claim, results: _Results) -> tuple[float, float | None]:
    """Returns the difference between the rows of a claim, and its noise.

    Both rows must have runs. Two evaluations of one trained model have no noise.
    """
    rows = ROWS[claim.row], ROWS[claim.reference]
    own, others = (results[row.name] for row in rows)
    trained, trained_other = (row.trained_by or row.name for row in rows)
    if trained == trained_other:
        seeds = {run["seed"] for run in own} & {run["seed"] for run in others}
        own, others = (
            [r for r in runs if r["seed"] in seeds] for runs in (own, others)
        )
        noise = 0.0
    else:
        noise = compute_seed_deviation(results)
        if noise is not None:
            noise *= _SIGNIFICANT * math.sqrt(1 / len(own) + 1 / len(others))
    return _list_mious(own).mean() - _list_mious(others).mean(), noise


def compute_trimap_gains(results: _Results) -> np.ndarray:
    """Returns the decoder's gains, `[seeds, widths + 1]`; full images come last."""
    with_decoder, without = (
        {run["seed"]: _read_trimap_curve(run) for run in results[name]}
        for name in (BASE_ROW, BILINEAR)
    )
    seeds = sorted(with_decoder.keys() & without.keys())
    return np.array([with_decoder[seed] - without[seed] for seed in seeds])


def _read_trimap_curve(run: dict) -> np.ndarray:
    """Returns mIoU in per cent by trimap width, then of full images."""
    return 100 * np.array([*run["trimap"]["miou"], run["miou"]], float)


def has_trimaps(results: _Results) -> bool:
    """Returns whether both rows of the trimap table have results."""
    return bool(results[BASE_ROW] and results[BILINEAR])


def format_markdown(results: _Results) -> str:
    """Returns all tables as Markdown, without the rows that have no runs."""
    parts = [
        markdown_table(_CLAIM_COLUMNS, _list_claim_rows(results)),
        _NOTE,
        markdown_table(_SCORE_COLUMNS, _list_score_rows(results)),
    ]
    if has_trimaps(results):
        parts += [_TRIMAP_NOTE, _format_trimap_table(results)]
    return "\n\n".join([*parts, describe_origin(results)]) + "\n"


def format_trimap_markdown(results: _Results) -> str:
    """Returns the tables of the trimap claim as Markdown.

    The rows `decoder` and `bilinear` must have runs.
    """
    claims = markdown_table(
        _CLAIM_COLUMNS, [_make_trimap_claim_row(compute_trimap_gains(results))]
    )
    trimaps = _format_trimap_table(results)
    return "\n\n".join([claims, _TRIMAP_NOTE, trimaps, describe_origin(results)]) + "\n"


def _list_claim_rows(results: _Results) -> Iterator[list[str]]:
    """Yields a table row per claim: published, measured, and whether it holds."""
    for claim in CLAIMS:
        ours, holds = "not run", ""
        if results[claim.row] and results[claim.reference]:
            outcome = compare_rows(claim, results)
            ours, holds = (
                _format_signed(*outcome),
                judge_claim(claim.expected, *outcome),
            )
        published = "" if claim.published is None else _format_signed(claim.published)
        yield [claim.row, claim.text, claim.source, published, ours, holds]
    if has_trimaps(results):
        yield _make_trimap_claim_row(compute_trimap_gains(results))


def _make_trimap_claim_row(gains: np.ndarray) -> list[str]:
    """Returns the table row that compares gains near boundaries and overall."""
    bilinear = next(claim for claim in CLAIMS if claim.row == BILINEAR)
    more = gains[:, 0] - gains[:, -1]
    noise = None
    if len(more) > 1:
        noise = _SIGNIFICANT * more.std(ddof=1) / math.sqrt(len(more))
    return [
        BASE_ROW,
        "The decoder gains more in the narrowest trimap than in full images.",
        _TRIMAP,
        _format_signed(_NARROWEST_GAIN + bilinear.published),
        _format_signed(more.mean(), noise),
        judge_claim("better", more.mean(), noise),
    ]


def _format_signed(value: float, noise: float | None = None) -> str:
    return f"{value:+.2f}" + (f" ± {noise:.2f}" if noise else "")


def _format_mean_and_deviation(scores: np.ndarray) -> str:
    deviation = f" ± {scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
    return f"{scores.mean():.2f}{deviation}"


def _list_score_rows(results: _Results) -> Iterator[list[str]]:
    for name, runs in results.items():
        if runs:
            minutes = sum(run["train_seconds"] for run in runs) / 60
            score = _format_mean_and_deviation(_list_mious(runs))
            yield [name, score, str(len(runs)), f"{minutes:.1f}"]


def _format_trimap_table(results: _Results) -> str:
    """Returns mIoU of `decoder` and `bilinear`, and the gain, by trimap width."""
    columns = [
        *(
            np.array(list(map(_read_trimap_curve, results[n])))
            for n in (BASE_ROW, BILINEAR)
        ),
        compute_trimap_gains(results),
    ]
    widths = [*results[BASE_ROW][0]["trimap"]["widths"], "full image"]
    rows = (
        [str(width), *(_format_mean_and_deviation(column[:, i]) for column in columns)]
        for i, width in enumerate(widths)
    )
    return markdown_table(["width", "decoder", "bilinear", "gain"], rows)


def describe_origin(results: Mapping[str, Sequence[dict]]) -> str:
    """Returns commit, machine and versions, one line per group of equal rows."""
    rows: dict[tuple, dict[str, None]] = {}
    for name, runs in results.items():
        for run in runs:
            versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
            how = (run["steps"], run["code"], run["hardware"], versions)
            rows.setdefault(how, {})[name] = None
    lines = []
    for (steps, code, hardware, versions), names in rows.items():
        which = "All rows" if len(rows) == 1 else f"Of {', '.join(names)}"
        lines.append(f"{which}: {steps} steps, commit {code}, {hardware}; {versions}.")
    return "\n".join(lines)


def plot_trimaps(results: _Results) -> np.ndarray:
    """Plots mIoU against trimap width, with the range over seeds (v3+, Fig. 5)."""
    figure = Figure((6, 3.6), dpi=120)
    axes = figure.add_subplot()
    widths = results[BASE_ROW][0]["trimap"]["widths"]
    for name in (BASE_ROW, BILINEAR):
        curves = np.array([_read_trimap_curve(run)[:-1] for run in results[name]])
        (line,) = axes.plot(widths, curves.mean(0), marker="o", markersize=4)
        line.set_label(name)
        band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
        axes.fill_between(widths, curves.min(0), curves.max(0), **band)
    axes.set_xlim(left=0)
    axes.set_xlabel("width of the trimap in pixels")
    axes.set_ylabel("mIoU in %")
    axes.grid(color="0.9")
    axes.legend(frameon=False)
    return render(figure)

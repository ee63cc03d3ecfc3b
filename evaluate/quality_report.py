"""Tables and a figure of what :mod:`genflow.evaluate.quality` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genflow.files import atomic_path

__all__ = ["draw", "markdown", "summary"]

MEASURES = {
    "fd": "FD (fashion-mnist)",
    "distance": "distance to the solution",
}
_SHORT = {
    "FlowMatchEulerDiscreteScheduler": "diffusers Euler",
    "FlowMatchHeunDiscreteScheduler": "diffusers Heun",
    "DPMSolverMultistepScheduler": "diffusers DPM++ 2M",
    "UniPCMultistepScheduler": "diffusers UniPC",
    "DEISMultistepScheduler": "diffusers DEIS",
}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one protocol, that protocol once, and the best of ours against the best of the peers at each count.

    ``best`` holds, for each measure and count, scheduler and value of both sides and their ``ratio``, ours over the
    peer's; it is empty where one side was not measured.
    """
    protocol = rows[0]["protocol"] if rows else {}
    plain = [{key: value for key, value in row.items() if key != "protocol"} for row in rows]
    best = []
    for measure in MEASURES:
        for count in dict.fromkeys(row["count"] for row in rows):
            sides = {}
            for side, ours in (("ours", True), ("peer", False)):
                found = [row for row in plain if row["count"] == count and row["ours"] is ours and measure in row]
                if found:
                    row = min(found, key=lambda row: row[measure])
                    sides[side] = {"scheduler": row["scheduler"], "value": row[measure]}
            if len(sides) == 2:
                ratio = sides["ours"]["value"] / sides["peer"]["value"] if sides["peer"]["value"] else None
                best.append({"measure": measure, "count": count, **sides, "ratio": ratio})
    return {"protocol": protocol, "rows": plain, "best": best}


def label(scheduler: str) -> str:
    """A scheduler's entry as the tables write it."""
    name, colon, options = scheduler.partition(":")
    return _SHORT.get(name, name) + (f" {options.replace(':', ' ')}" if colon else "")


def markdown(result: dict[str, Any]) -> str:
    """A table a measure: a row a scheduler, a column a count, and last the best of ours over the best of the peers."""
    rows, protocol = result["rows"], result["protocol"]
    counts = list(dict.fromkeys(row["count"] for row in rows))
    cells = {(row["scheduler"], row["count"]): row for row in rows}
    lines = []
    for measure, title in MEASURES.items():
        lines += [f"| {title}, at evaluations | " + " | ".join(map(str, counts)) + " |"]
        lines += ["| --- |" + " ---: |" * len(counts)]
        best = {row["count"]: row for row in result["best"] if row["measure"] == measure}
        for name in dict.fromkeys(row["scheduler"] for row in rows):
            words = []
            for count in counts:
                row = cells.get((name, count), {})
                text = f"{row[measure]:.4g}" if measure in row else "failed" if "error" in row else ""
                leading = {best[count][side]["scheduler"] for side in ("ours", "peer")} if count in best else set()
                words.append(f"**{text}**" if name in leading else text)
            lines.append(f"| {label(name)} | " + " | ".join(words) + " |")
        if best:
            ratios = [f"{best[count]['ratio']:.2f}" if best.get(count, {}).get("ratio") else "" for count in counts]
            lines.append("| best of ours / best of diffusers | " + " | ".join(ratios) + " |")
        lines.append("")
    if protocol:
        lines.append(
            "FD of {samples} samples; distance: root mean square over pixels (in [-1, 1]), mean over the first "
            "{compared} seeds, to {solution} in {solution_steps} steps; guidance scale {guidance_scale:g}; {dtype}; "
            "grid: {grid}. "
            "A scheduler takes as many steps as fit into the evaluations. Bold: the best of each side.".format(
                **protocol
            )
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Both measures against the evaluations taken, on logarithmic axes; diffusers' schedulers are dashed and grey.

    Where ours were measured the picture ends a little above the worst of them, so that one failing peer does not press
    all others into a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    rows = [row for row in result["rows"] if "error" not in row]
    names = list(dict.fromkeys(row["scheduler"] for row in rows))
    ours = [name for name in names if next(row["ours"] for row in rows if row["scheduler"] == name)]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for name in names:
            points = sorted((row["evaluations"], row[measure]) for row in rows if row["scheduler"] == name)
            index = (ours if name in ours else [other for other in names if other not in ours]).index(name)
            if name in ours:
                style = {"color": pyplot.get_cmap("turbo")((index + 0.5) / len(ours)), "marker": "o"}
            else:
                style = {"color": "0.45", "linestyle": "--", "marker": "sv^Dx+*P"[index % 8]}
            axis.plot(*zip(*points, strict=True), label=label(name), markersize=4, linewidth=1.3, **style)
        counts = sorted({row["count"] for row in rows})
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=title)
        axis.set_xticks(counts)
        highest = [row[measure] for row in rows if row["ours"]]
        if highest:
            axis.set_ylim(top=1.2 * max(highest))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)

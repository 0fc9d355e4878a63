"""Formats the results of stress runs, as lines and as Markdown."""

import statistics

import report

# p99 of the generator's own delay above which the generator is the bottleneck.
LATE_US = 1000


def latency_line(run):
    line = (
        f"p50 {run['p50']}  p99 {run['p99']}  p99.9 {run['p999']}  max {run['max']} µs, "
        f"{run['responses']} responses"
    )
    if run["errors"]:
        line += f", {run['errors']} ERRORS"
    if run["late_p99"] > LATE_US:
        line += f" (the generator itself was up to {run['late_p99']} µs late)"
    for key in ("tokens", "reloads", "refused"):
        if run.get(key):
            line += f", {key}: {run[key]}"
    return line


def idle_line(row):
    each = (row["after_bytes"] - row["before_bytes"]) / row["connections"]
    return (
        f"{row['title']}: {row['before_bytes'] / 2**20:.1f} MiB before, {row['after_bytes'] / 2**20:.1f} MiB with "
        f"{row['connections']:,} idle connections ({each / 1024:.1f} KiB each), {row['still_open']:,} still open"
    )


def vendors_line(row):
    return (
        f"{row['title']}: ready after {row['median_ms']:.0f} ms "
        f"({min(row['ready_ms']):.0f}–{max(row['ready_ms']):.0f}), {row['resident_bytes'] / 2**20:.1f} MiB"
    )


def markdown(results):
    lines = ["# Countersign under stress", "", "Written by `make bench-stress`.", ""]
    lines += [line + "  " for line in report.facts_lines(results["machine"])]
    if results.get("latency"):
        lines += _latency(results["latency"])
    if results.get("swaps"):
        lines += _swaps(results["swaps"])
    if results.get("idle"):
        lines += ["", "## Idle connections", "", "Each has received one response.", ""]
        lines += [f"* {idle_line(row)}" for row in results["idle"]]
    if results.get("vendors"):
        lines += ["", "## Start", "", "From exec to the first 200 of /readyz, on one core, medians of five.", ""]
        lines += [f"* {vendors_line(row)}" for row in results["vendors"]]
    if results["left_out"]:
        lines += ["", "## Left out", ""]
        lines += [f"* {why}" for why in results["left_out"]]
    return "\n".join(lines) + "\n"


def _latency(runs):
    lines = [
        "",
        "## Open-loop latency",
        "",
        "Small GET, plaintext, at a part of each proxy's own saturation, measured just before. Random arrivals, the "
        "same for all; counted from when a request was due. Medians of the rounds.",
        "",
        "| proxy | load | requests/s | p50 µs | p99 µs | p99.9 µs | max µs | errors | generator late, p99 µs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys((run["title"], run["part"]) for run in runs):
        same = [run for run in runs if (run["title"], run["part"]) == key]
        figures = [
            f"{statistics.median(run[name] for run in same):,.0f}"
            for name in ("rate", "p50", "p99", "p999", "max")
        ]
        errors, late = sum(run["errors"] for run in same), statistics.median(run["late_p99"] for run in same)
        lines.append(f"| {key[0]} | {key[1]:.0%} | {' | '.join(figures)} | {errors} | {late:,.0f} |")
    return lines + _disturbed(runs)


def _swaps(swaps):
    runs = swaps["runs"]
    quiet = {run["round"]: run for run in runs if run["state"] == "quiet"}
    lines = [
        "",
        "## While something happens",
        "",
        f"One Countersign with ten vendors at {swaps['rate']:,.0f} requests/s, {swaps['part']:.0%} of its saturation, "
        "open loop. A "
        "credential is never renewed more than once a second, so a swap every 100 ms takes ten of them. Ratios are to "
        f"the quiet run of the same round; medians of {len(quiet)}. The ratios of a second quiet run show the noise of this "
        "machine.",
        "",
        "| while | p50 µs | p99 µs | p99.9 µs | p99 ratio | p99.9 ratio | errors | tokens fetched | reloads |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for state, title in (
        ("quiet", "nothing happens"),
        ("again", "nothing happens, once more"),
        ("swaps", "tokens are swapped"),
        ("reloads", "the configuration is reloaded"),
        ("hanging", "the token endpoint hangs, renewals under way"),
    ):
        same = [run for run in runs if run["state"] == state]
        figures = [f"{statistics.median(run[name] for run in same):,.0f}" for name in ("p50", "p99", "p999")]
        ratios = [
            f"{statistics.median(run[name] / quiet[run['round']][name] for run in same):.2f}"
            for name in ("p99", "p999")
        ]
        counts = [str(sum(run[name] for run in same)) for name in ("errors", "tokens", "reloads")]
        lines.append(f"| {title} | {' | '.join(figures + ratios + counts)} |")
    return lines + _disturbed([swaps])


def _disturbed(runs):
    if max(run["others_busy"] for run in runs) > report.DISTURBED:
        return ["", "**Other programs used the proxy's core: to be repeated on an idle machine.**"]
    return []

"""Turns runs into tables: medians, ratios to the yardstick, JSON and Markdown."""

import json
import statistics
from dataclasses import dataclass

import proxies

# Busy fraction of its core below which the proxy did not limit the rate itself.
FULL = 0.95
# Fraction of the proxy's core used by other programs above which a run is disturbed.
DISTURBED = 0.03


def limit(run):
    """Returns a mark for tables and what limited the rate, or None if the proxy did."""
    if run["busy"] >= FULL:
        return None
    if run["others_busy"] > DISTURBED:
        return "†", f"others used {run['others_busy']:.0%} of the proxy's core"
    if run["generator_core_busy"] >= FULL:
        return "*", "the generator's core was full"
    return "‡", "neither core was full"


@dataclass
class Results:
    facts: dict
    rounds: int
    seconds: int
    scenarios: list
    proxies: list
    runs: list
    absent: list

    def of(self, scenario, proxy):
        """Returns the runs of a proxy in a scenario, by round, without failed ones."""
        return {
            run["round"]: run
            for run in self.runs
            if (run["scenario"], run["proxy"]) == (scenario.name, proxy.name) and "failed" not in run
        }


def summary(results, scenario, proxy):
    """Returns medians over the rounds, the median ratio to the yardstick and its range, and errors;
    None without a run."""
    runs = results.of(scenario, proxy)
    if not runs:
        return None
    row = {
        name: statistics.median(run[name] for run in runs.values())
        for name in (
            "requests_per_second", "cpu_us", "user_us", "system_us", "switches",
            "busy", "others_busy", "generator_core_busy",
            "upstream_connections", "p50_us", "p99_us", "p999_us",
        )
    }
    row["resident_bytes"] = runs[max(runs)]["resident_bytes"]
    yardstick = results.of(scenario, proxies.BarePingora)
    ratios = [run["cpu_us"] / yardstick[number]["cpu_us"] for number, run in runs.items() if number in yardstick]
    row["ratio"] = statistics.median(ratios) if ratios else None
    row["ratio_range"] = [min(ratios), max(ratios)] if ratios else None
    errors = {}
    for run in runs.values():
        for kind, count in run["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    row["errors"] = errors
    return row


def run_line(title, run):
    if "failed" in run:
        return f"{title:<18} FAILED: {run['failed']}"
    line = (
        f"{title:<18}{run['requests_per_second']:>9.0f}/s {run['cpu_us']:>7.1f} µs "
        f"({run['user_us']:.1f} user, {run['system_us']:.1f} system)  "
        f"p50 {run['p50_us']:.0f}  p99 {run['p99_us']:.0f}  p99.9 {run['p999_us']:.0f} µs  "
        f"{run['resident_bytes'] / 2**20:.0f} MiB"
    )
    if limit(run):
        line += f"  (proxy {run['busy']:.0%} busy: {limit(run)[1]})"
    if run["errors"]:
        line += f"  ERRORS: {run['errors']}"
    return line


def facts_lines(facts):
    versions = [*facts["versions"].values(), *facts["generators"].values()]
    return [
        f"{facts['processor']}, {facts['cores']} cores, Linux {facts['kernel']}, {facts['system']}",
        f"commit {facts['commit']}, {facts['compiler']}",
        ", ".join(dict.fromkeys(versions)),
    ]


def as_json(results):
    return json.dumps(
        {
            "machine": results.facts,
            "rounds": results.rounds,
            "seconds_per_run": results.seconds,
            "scenarios": {scenario.name: scenario.title for scenario in results.scenarios},
            "summary": {
                scenario.name: {
                    proxy.name: summary(results, scenario, proxy)
                    for proxy in results.proxies
                    if results.of(scenario, proxy)
                }
                for scenario in results.scenarios
            },
            "runs": results.runs,
            "left_out": results.absent,
        },
        indent=1,
    ) + "\n"


def markdown(results):
    lines = ["# Proxies side by side", "", "Written by `make bench-compare`.", ""]
    lines += [line + "  " for line in facts_lines(results.facts)]
    lines += [
        "",
        f"Medians of {results.rounds} interleaved rounds of {results.seconds} s. *Ratio*: CPU per request to that of "
        "bare pingora in the same round, the median (and their range, where it is wide). *CPU* is user + system, all "
        "threads. A rate with a mark is not the proxy's own, which was less than 95 % busy: `*` the generator's core "
        "was full; `‡` neither core was; `†` other programs used the proxy's core, and the run is to be repeated on "
        "an idle machine. CPU per request holds all the same for `*` and `‡`. Latencies are those of callers that "
        "wait for each response: at full load they follow from the rate.",
    ]
    for scenario in results.scenarios:
        rows = [(proxy, summary(results, scenario, proxy)) for proxy in results.proxies]
        rows = [(proxy, row) for proxy, row in rows if row]
        if not rows:
            continue
        lines += [
            "",
            f"## {scenario.title[0].upper()}{scenario.title[1:]}",
            "",
            "| proxy | credential | ratio | CPU µs/request | user + system | requests/s | p50 µs | p99 µs | p99.9 µs | MiB | waits/request | new upstream connections |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [_row(proxy, row) for proxy, row in rows]
        for proxy, row in rows:
            if row["errors"]:
                errors = ", ".join(f"{count} × {kind}" for kind, count in row["errors"].items())
                lines += ["", f"**{proxy.title} had errors: {errors}.** Its figures are not to be relied on."]
    failed = [run for run in results.runs if "failed" in run]
    if results.absent or failed:
        lines += ["", "## Left out", ""]
        lines += [f"* {why}" for why in results.absent]
        lines += [f"* {run['proxy']}, {run['scenario']}, round {run['round'] + 1}: {run['failed']}" for run in failed]
    return "\n".join(lines) + "\n"


def _row(proxy, row):
    ratio = "–"
    if row["ratio"] is not None:
        ratio = f"{row['ratio']:.2f}"
        low, high = row["ratio_range"]
        if high - low >= 0.05:
            ratio += f" ({low:.2f}–{high:.2f})"
    return (
        f"| {proxy.title}{' (errors)' if row['errors'] else ''} | {proxy.credential} | {ratio} | {row['cpu_us']:.1f} "
        f"| {row['user_us']:.1f} + {row['system_us']:.1f} "
        f"| {row['requests_per_second']:,.0f}{limit(row)[0] if limit(row) else ''} "
        f"| {row['p50_us']:,.0f} | {row['p99_us']:,.0f} | {row['p999_us']:,.0f} "
        f"| {row['resident_bytes'] / 2**20:.1f} | {row['switches']:.2f} | {row['upstream_connections']:.0f} |"
    )

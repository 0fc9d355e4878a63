"""The bar chart for the README, without a library, since it is the only picture.

The picture has no background, and its colours are legible on a light and on a dark one.
"""

from html import escape

import proxies
import report
import scenarios

# Fill colours for user time; system time has the same colour, paler.
OURS, OTHERS = "#d9730d", "#4d8fcc"
TEXT = "#808890"
COLUMN, COLUMNS = 460, 2
LABEL, VALUE = 148, 112
BAR, GAP, HEADING, MARGIN = 16, 7, 36, 22


def svg(results):
    """Returns the chart: CPU per request, a panel for each main scenario, a bar for each proxy."""
    panels = []
    for scenario in results.scenarios:
        rows = [(proxy, report.summary(results, scenario, proxy)) for proxy in results.proxies]
        rows = sorted((row for row in rows if row[1]), key=lambda row: row[1]["cpu_us"])
        if rows and (scenario.name in scenarios.QUICK or len(results.scenarios) == 1):
            panels.append((scenario, rows))
    drawn, top = [], 24
    for first in range(0, len(panels), COLUMNS):
        line = panels[first : first + COLUMNS]
        drawn += [_panel(*panel, column * COLUMN, top) for column, panel in enumerate(line)]
        top += HEADING + max(len(rows) for _, rows in line) * (BAR + GAP) + MARGIN
    facts = results.facts
    note = (
        f"strong: user, pale: kernel; × is the ratio to bare pingora. One core of {facts['processor']}, "
        f"Linux {facts['kernel'].split('-')[0]}, commit {facts['commit']}"
    )
    width, height = COLUMN * COLUMNS, top + 6
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="title" '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="13" fill="{TEXT}">',
        '<title id="title">CPU time per request of Countersign and other proxies</title>',
        '<text x="0" y="14" font-size="15" font-weight="600">CPU time per request, in µs</text>',
        *drawn,
        f'<text x="0" y="{top - 4}" font-size="11">{escape(note)}</text>',
        "</svg>",
    ]) + "\n"


def _panel(scenario, rows, left, top):
    scale = (COLUMN - LABEL - VALUE) / max(row["cpu_us"] for _, row in rows)
    title = scenario.title[0].upper() + scenario.title[1:]
    parts = [f'<text x="{left}" y="{top + 20}" font-weight="600">{escape(title)}</text>']
    bar_left, y = left + LABEL, top + HEADING - 6
    for proxy, row in rows:
        ours = isinstance(proxy, proxies.Countersign)
        colour = OURS if ours else OTHERS
        user, system = row["user_us"] * scale, row["system_us"] * scale
        baseline = y + BAR - 4
        weight = ' font-weight="600"' if ours else ""
        value = f"{row['cpu_us']:.1f}"
        if row["ratio"] is not None:
            value += f"  × {row['ratio']:.2f}"
        if row["errors"]:
            value += "  errors"
        parts += [
            f'<text x="{bar_left - 8}" y="{baseline}" text-anchor="end"{weight}>{escape(proxy.title)}</text>',
            f'<rect x="{bar_left}" y="{y}" width="{user:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<rect x="{bar_left + user:.1f}" y="{y}" width="{system:.1f}" height="{BAR}" fill="{colour}" '
            'fill-opacity="0.5"/>',
            f'<text x="{bar_left + user + system + 8:.1f}" y="{baseline}" xml:space="preserve"{weight}>'
            f"{escape(value)}</text>",
        ]
        y += BAR + GAP
    return "\n".join(parts)

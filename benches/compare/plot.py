"""The bars for the README. Written by hand: no library is worth one picture.

The picture has no background, and only colours that can be read on a light and on a dark one.
"""

from html import escape

import proxies
import report

# Fill for user time; that for system time is the same, paler.
OURS, OTHERS = "#d9730d", "#4d8fcc"
TEXT = "#808890"
WIDTH, LABEL, VALUE = 760, 150, 190
BAR, GAP, HEADING = 16, 7, 40


def svg(results):
    """CPU per request, a panel for each scenario, a bar for each proxy."""
    panels, top = [], 8
    for scenario in results.scenarios:
        rows = [(proxy, report.summary(results, scenario, proxy)) for proxy in results.proxies]
        rows = sorted((row for row in rows if row[1]), key=lambda row: row[1]["cpu_us"])
        if rows:
            panels.append(_panel(scenario, rows, top))
            top += HEADING + len(rows) * (BAR + GAP) + 10
    facts = results.facts
    note = (
        f"full: user, pale: kernel · × is the ratio to bare pingora · one core of {facts['processor']}, "
        f"Linux {facts['kernel'].split('-')[0]}, commit {facts['commit']}"
    )
    top += 12
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8}" width="{WIDTH}" '
        f'height="{top + 8}" role="img" aria-labelledby="title" '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="13" fill="{TEXT}">',
        '<title id="title">CPU time per request of Countersign and other proxies</title>',
        *panels,
        f'<text x="0" y="{top}" font-size="11">{escape(note)}</text>',
        "</svg>",
    ]) + "\n"


def _panel(scenario, rows, top):
    scale = (WIDTH - LABEL - VALUE) / max(row["cpu_us"] for _, row in rows)
    title = f"{scenario.title}: CPU µs per request"
    parts = [f'<text x="0" y="{top + 20}" font-weight="600">{escape(title[0].upper() + title[1:])}</text>']
    y = top + HEADING - 8
    for proxy, row in rows:
        ours = proxy.name == proxies.Countersign.name
        colour = OURS if ours else OTHERS
        user, system = row["user_us"] * scale, row["system_us"] * scale
        middle = y + BAR - 4
        weight = ' font-weight="600"' if ours else ""
        value = f"{row['cpu_us']:.1f}"
        if row["ratio"] is not None:
            value += f"   × {row['ratio']:.2f}"
        if row["errors"]:
            value += "   with errors"
        parts += [
            f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end"{weight}>{escape(proxy.title)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{user:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<rect x="{LABEL + user:.1f}" y="{y}" width="{system:.1f}" height="{BAR}" fill="{colour}" '
            'fill-opacity="0.5"/>',
            f'<text x="{LABEL + user + system + 8:.1f}" y="{middle}" xml:space="preserve"{weight}>'
            f"{escape(value)}</text>",
        ]
        y += BAR + GAP
    return "\n".join(parts)

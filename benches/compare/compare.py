#!/usr/bin/env python3
"""Compares the cost of a request in several proxies, measured side by side in one run.

    make bench-compare                        everything, about eleven minutes
    make bench-compare ARGS=--quick           four scenarios, one round, about two minutes
    make bench-compare ARGS='--only get-64 --proxies bare,countersign --rounds 5 --seconds 5'
    make bench-compare ARGS='--only get-64 --proxies bare --also before=../countersign --no-save'

The proxy has one core, everything else the other. All proxies of a scenario run at the same time.
In each round they get load one after the other, for some seconds each. The result is the median over
the rounds of the ratio to the yardstick of the same round.

CPU time is that of all threads of all of a proxy's processes, divided by the requests that the
upstream has counted: both over the same window, after connections have been set up.

Writes results.json and results.md here and docs/performance.svg.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import sys
import tempfile

import generators
import machine
import plot
import proxies
import report
import scenarios
from machine import GENERATOR_CORE, ROOT
from measure import one_run, verify
from fixtures import Certificates, Upstream


def main():
    options = arguments()
    # Exits as by Ctrl-C, so that every process that was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {GENERATOR_CORE})
    chosen = chosen_scenarios(options)
    found, absent = chosen_proxies(options)
    facts = machine.facts(found)
    print("\n".join(report.facts_lines(facts)), flush=True)
    runs = []
    with tempfile.TemporaryDirectory(prefix="countersign-bench-") as directory, contextlib.ExitStack() as stack:
        directory = pathlib.Path(directory)
        certificates = Certificates(directory)
        upstream = stack.enter_context(Upstream(proxies.Nginx(), certificates, directory))
        for scenario in chosen:
            runs += measure(scenario, found, upstream, certificates, directory / scenario.name, options, absent)
    results = report.Results(facts, options.rounds, options.seconds, chosen, found, runs, absent)
    text = report.markdown(results)
    print("\n" + text)
    if options.save:
        here = pathlib.Path(__file__).parent
        (here / "results.json").write_text(report.as_json(results))
        (here / "results.md").write_text(text)
        (ROOT / "docs" / "performance.svg").write_text(plot.svg(results))
        print("saved: benches/compare/results.json, benches/compare/results.md, docs/performance.svg")


def arguments():
    parser = argparse.ArgumentParser(description="Compares the cost of a request in several proxies.")
    parser.add_argument("--quick", action="store_true", help="four scenarios, one round")
    parser.add_argument("--only", metavar="S,S", help="these scenarios: " + ", ".join(s.name for s in scenarios.ALL))
    parser.add_argument("--proxies", metavar="P,P", help="these proxies: " + ", ".join(p.name for p in proxies.ALL))
    parser.add_argument(
        "--also",
        metavar="NAME=PATH",
        type=another_build,
        action="append",
        default=[],
        help="another build of Countersign; may be repeated",
    )
    parser.add_argument("--rounds", type=int, help="rounds per scenario (3; --quick: 1)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds per run (3); 0.7 of them are not counted")
    parser.add_argument("--no-save", dest="save", action="store_false", help="write no files")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.seconds < 1 or options.rounds < 1:
        parser.error("--seconds and --rounds are at least 1")
    return options


def chosen_scenarios(options):
    names = options.only.split(",") if options.only else scenarios.QUICK if options.quick else None
    return by_name(scenarios.ALL, names, "scenario")


def chosen_proxies(options):
    """Returns the proxies that can run, and the reasons why the others cannot."""
    kinds = by_name(proxies.ALL, options.proxies.split(",") if options.proxies else None, "proxy")
    found, absent = [], []
    for proxy in [kind() for kind in kinds] + options.also:
        why = proxy.missing()
        if why:
            absent.append(f"{proxy.title}: {why}")
        else:
            found.append(proxy)
    return found, absent


def another_build(text):
    name, equals, path = text.partition("=")
    taken = [proxy.name for proxy in proxies.ALL]
    if not equals or not name.replace("-", "").isalnum() or name in taken:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=PATH; a name has letters, digits and -, and must not be in use")
    return proxies.AnotherBuild(name, pathlib.Path(path).absolute())


def by_name(everything, names, what):
    if names is None:
        return list(everything)
    known = {each.name: each for each in everything}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no {what} {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names]


def measure(scenario, found, upstream, certificates, directory, options, absent):
    """Measures all rounds of one scenario; appends to `absent` what could not run in it."""
    print(f"\n{scenario.title}", flush=True)
    why = generators.missing(scenario.caller)
    if why:
        absent.append(f"{scenario.title}: {why}")
        print(f"  left out: {why}", flush=True)
        return []
    runs = []
    with contextlib.ExitStack() as stack:
        running = []
        for proxy in found:
            why = proxy.cannot(scenario)
            if not why:
                place = proxies.place_for(scenario, upstream, certificates, directory / proxy.name)
                program = stack.enter_context(proxy.start(place))
                why = verify(proxy, program, place)
            if why:
                absent.append(f"{proxy.title}, {scenario.title}: {why}")
                print(f"  {proxy.title}: left out: {why}", flush=True)
            else:
                running.append((proxy, program, place))
        for number in range(options.rounds):
            for proxy, program, place in running:
                run = one_run(scenario, program, place, upstream, options.seconds)
                run |= {"scenario": scenario.name, "proxy": proxy.name, "round": number}
                runs.append(run)
                print("  " + report.run_line(proxy.title, run), flush=True)
    return runs


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

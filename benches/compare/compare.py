#!/usr/bin/env python3
"""What a request costs in each proxy, measured side by side in one run.

    make bench-compare                        everything, about eleven minutes
    make bench-compare ARGS=--quick           four scenarios, one round, about two minutes
    make bench-compare ARGS='--only get-64 --proxies bare,countersign --rounds 5 --seconds 5'

The proxy has one core, everything else the other. All proxies of a scenario are up at the same
time; load goes to one after the other, for some seconds each, and that is one round. What counts
is the ratio to the yardstick of the same round, and of those the median.

CPU is read for all threads of all of a proxy's processes, and divided by the requests that the
upstream counted meanwhile: both over the same window, after connections have been set up.

Writes results.json and results.md here and docs/performance.svg.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request

import generators
import machine
import plot
import proxies
import report
import scenarios
from processes import eventually
from stand import CALLER_KEY, Certificates, TokenEndpoint, Upstream

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "target" / "bench"
BUILT = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PROXY_CORE, GENERATOR_CORE = 0, 1
# Of a run's start: connections, handshakes, first growth of buffers.
WARM_SECONDS = 0.5
# Of its end, where the generator stops before we have looked.
MARGIN_SECONDS = 0.2


def main():
    options = arguments()
    # Ends like Ctrl-C, so that everything started is ended as well.
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
        upstream = stack.enter_context(Upstream(nginx(), GENERATOR_CORE, certificates, directory))
        tokens = stack.enter_context(TokenEndpoint())
        for scenario in chosen:
            surroundings = (upstream, tokens, certificates, directory / scenario.name)
            runs += measure(scenario, found, surroundings, options, absent)
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
    parser = argparse.ArgumentParser(description="What a request costs in each proxy.")
    parser.add_argument("--quick", action="store_true", help="four scenarios, one round")
    parser.add_argument("--only", metavar="S,S", help="these scenarios: " + ", ".join(s.name for s in scenarios.ALL))
    parser.add_argument("--proxies", metavar="P,P", help="these proxies: " + ", ".join(p.name for p in proxies.ALL))
    parser.add_argument("--rounds", type=int, help="rounds per scenario (3; --quick: 1)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds per run (3), of which 0.7 are not counted")
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
    """Those that can run, and why the others cannot."""
    kinds = by_name(proxies.ALL, options.proxies.split(",") if options.proxies else None, "proxy")
    found, absent = [], []
    for kind in kinds:
        proxy = kind(TOOLS, BUILT)
        why = proxy.missing()
        if why:
            absent.append(f"{proxy.title}: {why}")
        else:
            found.append(proxy)
    return found, absent


def by_name(everything, names, what):
    if names is None:
        return list(everything)
    known = {each.name: each for each in everything}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def nginx():
    proxy = proxies.Nginx(TOOLS, BUILT)
    if proxy.missing():
        sys.exit("nginx is missing, and it is the upstream: see what setup.sh said above")
    return proxy.binary()


def measure(scenario, found, surroundings, options, absent):
    """All rounds of one scenario; adds to `absent` what could not run in it."""
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
                place = proxies.place_for(scenario, *surroundings[:3], surroundings[3] / proxy.name)
                program = stack.enter_context(proxy.start(place, PROXY_CORE, GENERATOR_CORE))
                why = verify(proxy, program, place)
            if why:
                absent.append(f"{proxy.title}, {scenario.title}: {why}")
                print(f"  {proxy.title}: left out: {why}", flush=True)
            else:
                running.append((proxy, program, place))
        for number in range(options.rounds):
            for proxy, program, place in running:
                run = one_run(scenario, program, place, surroundings[0], options.seconds)
                run |= {"scenario": scenario.name, "proxy": proxy.name, "round": number}
                runs.append(run)
                print("  " + report.run_line(proxy.title, run), flush=True)
    return runs


def verify(proxy, program, place):
    """Waits until the credential reaches the upstream, and the caller's key does not. Returns what
    is wrong, or None."""
    said = ""

    def served():
        nonlocal said
        if program.ended():
            raise ChildProcessError(program.complaint())
        said = ask(place, "/vendor/check")
        return said == proxy.arrives

    try:
        eventually(served, 15, "the credential at the upstream")
    except TimeoutError as error:
        return f"{error}; last answer: {said!r}; it says: {program.complaint()}"
    except ChildProcessError as error:
        return f"did not start: {error}"
    return None


def ask(place, path):
    scheme = "https" if place.caller_tls() else "http"
    host = "localhost" if place.caller_tls() else "127.0.0.1"
    request = urllib.request.Request(
        f"{scheme}://{host}:{place.port}{path}", headers={"X-Countersign-Key": CALLER_KEY}
    )
    context = ssl.create_default_context(cafile=place.certificates.ca) if place.caller_tls() else None
    if context and place.caller == "h2":
        # A listener for HTTP/2 alone would refuse us otherwise.
        context.set_alpn_protocols(["http/1.1"])
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError) as error:
        return str(error)


def one_run(scenario, program, place, upstream, seconds):
    """Load on one proxy; what it used, and what callers saw."""
    with generators.start(scenario, place.port, seconds, GENERATOR_CORE, place.directory) as generator:
        time.sleep(WARM_SECONDS)
        before, begun = look(program, upstream)
        time.sleep(max(0.1, seconds - WARM_SECONDS - MARGIN_SECONDS))
        after, ended = look(program, upstream)
        try:
            load = generator.result()
        except Exception as error:  # pylint: disable=broad-except
            return {"failed": str(error)}
    used, requests, elapsed = after - before, ended["requests"] - begun["requests"], ended["at"] - begun["at"]
    busy = used.cpu_ns / 1e9 / elapsed
    proxy_core, generator_core = (
        (ended["cores"][core] - begun["cores"][core]) / elapsed for core in (PROXY_CORE, GENERATOR_CORE)
    )
    if not requests:
        return {"failed": f"no request reached the upstream; the proxy says: {program.complaint()}"}
    cpu_us = used.cpu_ns / 1000 / requests
    return {
        "requests_per_second": requests / elapsed,
        "cpu_us": cpu_us,
        "user_us": cpu_us * used.user_share(),
        "system_us": cpu_us * (1 - used.user_share()),
        "busy": busy,
        "others_busy": max(0.0, proxy_core - busy),
        "generator_core_busy": generator_core,
        "switches": used.voluntary_switches / requests,
        "upstream_connections": ended["connections"] - begun["connections"],
        "p50_us": load.p50,
        "p99_us": load.p99,
        "p999_us": load.p999,
        "resident_bytes": program.resident_bytes(),
        "errors": load.errors,
    }


def look(program, upstream):
    """The proxy's usage and the upstream's counts, as close to each other as can be."""
    usage, cores, at = program.usage(), machine.busy_seconds(), time.monotonic()
    connections, requests = upstream.counts()
    # The count came in the middle of this.
    at = (at + time.monotonic()) / 2
    return usage, {"connections": connections, "requests": requests, "at": at, "cores": cores}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

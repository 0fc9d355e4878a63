#!/usr/bin/env python3
"""Measures Countersign under stress, mostly as ratios to an undisturbed run of the same round.

    make bench-stress                         everything, about six minutes
    make bench-stress ARGS='--only swaps --rounds 1'

* `latency`: open-loop latency at 50 % and 80 % of each proxy's own saturation
* `swaps`: p99.9 while tokens are swapped, while reloads happen, while the token endpoint hangs
* `idle`: memory with 10,000 idle connections
* `vendors`: time to ready and memory with 1,000 vendors

Open loop means: requests are due on a fixed schedule, and a latency is measured from when it was due.
Writes stress.json and stress.md here.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import machine
import proxies
import report
import stress_report
from machine import BUILT, GENERATOR_CORE
from measure import one_run, verify
from processes import Program, eventually
from scenarios import Scenario
from fixtures import CALLER_KEY, Certificates, Upstream

PARTS = ("latency", "swaps", "idle", "vendors")
PLAIN = Scenario("stress", "small GET, plaintext")
CONNECTIONS = 128
WARM_SECONDS = 1
# A credential is renewed at most once a second, so ten of them are needed for a swap every 100 ms.
VENDORS = [f"vendor{number}" for number in range(10)]
# Many short runs in turn, since the machine's own speed varies and affects p99.9 more than what is
# measured. At a fraction of saturation low enough that a slow period does not saturate the proxy.
SWAPS_ROUNDS = 4  # for each of --rounds
SWAPS_SECONDS = 2
SWAPS_PART = 0.2
RELOADS_PER_SECOND = 2
IDLE_CONNECTIONS = 10_000
MANY_VENDORS = 1_000


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {GENERATOR_CORE})
    found, absent = [], []
    # The PGO build, as released, if there is one.
    released = proxies.CountersignByProfile()
    ours = proxies.Countersign() if released.missing() else released
    for proxy in (proxies.BarePingora(), ours, proxies.Nginx(), proxies.Haproxy(), proxies.Envoy()):
        if proxy.missing():
            absent.append(f"{proxy.title}: {proxy.missing()}")
        else:
            found.append(proxy)
    facts = machine.facts(found)
    print("\n".join(report.facts_lines(facts)), flush=True)
    results = {"machine": facts, "rounds": options.rounds, "seconds_per_run": options.seconds}
    with tempfile.TemporaryDirectory(prefix="countersign-stress-") as directory, contextlib.ExitStack() as stack:
        directory = pathlib.Path(directory)
        certificates = Certificates(directory)
        upstream = stack.enter_context(Upstream(proxies.Nginx(), certificates, directory))

        def place(name, connections=1024):
            return proxies.place_for(PLAIN, upstream, certificates, directory / name, connections)

        for part in options.only:
            print(f"\n{part}", flush=True)
            results[part] = globals()[part](found, place, upstream, options, absent)
    results["left_out"] = absent
    text = stress_report.markdown(results)
    print("\n" + text)
    if options.save:
        here = pathlib.Path(__file__).parent
        (here / "stress.json").write_text(json.dumps(results, indent=1) + "\n")
        (here / "stress.md").write_text(text)
        print("saved: benches/compare/stress.json, benches/compare/stress.md")


def arguments():
    parser = argparse.ArgumentParser(description="Countersign under stress.")
    parser.add_argument("--only", metavar="PART,PART", default=",".join(PARTS), help="these parts: " + ", ".join(PARTS))
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of latency (one less) and of swaps (four times as many) (3)"
    )
    parser.add_argument("--seconds", type=int, default=5, help="seconds per run of latency, without warming up (5)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="write no files")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = set(options.only) - set(PARTS)
    if unknown or options.seconds < 1 or options.rounds < 1:
        parser.error(f"no part {', '.join(unknown)}" if unknown else "--seconds and --rounds are at least 1")
    return options


def latency(found, place, upstream, options, absent):
    """Measures each proxy at fractions of its own saturation, measured just before."""
    runs = []
    # nginx and HAProxy handle more requests than the rest of the machine can send.
    kinds = (proxies.BarePingora, proxies.Countersign, proxies.Envoy)
    with contextlib.ExitStack() as stack:
        running = []
        for proxy in (proxy for proxy in found if isinstance(proxy, kinds)):
            where = place(f"latency-{proxy.name}")
            program = stack.enter_context(proxy.start(where))
            why = verify(proxy, program, where)
            if why:
                absent.append(f"{proxy.title}, latency: {why}")
            else:
                running.append((proxy, program, where))
        for number in range(max(1, options.rounds - 1)):
            for proxy, program, where in running:
                saturated = one_run(PLAIN, program, where, upstream, 3)
                if "failed" in saturated:
                    absent.append(f"{proxy.title}, latency: {saturated['failed']}")
                    continue
                for part in (0.5, 0.8):
                    rate = part * saturated["requests_per_second"]
                    run = open_loop(where.port, rate, options.seconds, ["/vendor/small"])
                    run |= {
                        "proxy": proxy.name, "title": proxy.title, "round": number, "part": part, "rate": rate,
                        "saturation": saturated["requests_per_second"], "busy_at_saturation": saturated["busy"],
                        "others_busy": saturated["others_busy"],
                    }
                    runs.append(run)
                    print(f"  {proxy.title}, {part:.0%} of saturation: {stress_report.latency_line(run)}", flush=True)
    return runs


def swaps(found, place, upstream, options, absent):
    """Puts the same load on one Countersign, undisturbed and with each disturbance, in turn."""
    ours = next((proxy for proxy in found if isinstance(proxy, proxies.Countersign)), None)
    if ours is None:
        return {}
    where = place("swaps")
    configuration = where.write("countersign.yaml", ours.configuration(where, VENDORS))
    paths = [f"/{vendor}/small" for vendor in VENDORS]
    runs = []
    with ours.start_with(where, configuration) as program:
        eventually(lambda: ready(where) and not program.ended(), 15, "Countersign with ten vendors")
        saturated = one_run(Scenario("swaps", "", path=paths[0]), program, where, upstream, 3)
        if "failed" in saturated:
            absent.append(f"swaps: {saturated['failed']}")
            return {}
        rate = SWAPS_PART * saturated["requests_per_second"]

        def quiet():
            return contextlib.nullcontext()

        states = [
            ("quiet", quiet),
            ("swaps", lambda: swapping(where, upstream)),
            # The ratio between two undisturbed runs.
            ("again", quiet),
            ("reloads", lambda: reloading(program, configuration, SWAPS_SECONDS)),
            ("hanging", lambda: hanging(where, upstream)),
        ]
        for number in range(SWAPS_ROUNDS * options.rounds):
            turn = number % len(states)
            for name, disturbance in states[turn:] + states[:turn]:
                with disturbance() as during:
                    before = counters(where)
                    run = open_loop(where.port, rate, SWAPS_SECONDS, paths, during)
                    after = counters(where)
                run |= {"state": name, "round": number} | {key: after[key] - before[key] for key in after}
                runs.append(run)
                print(f"  {name}: {stress_report.latency_line(run)}", flush=True)
                eventually(lambda: fresh(where), 30, "tokens, after the endpoint hung")
    return {"rate": rate, "part": SWAPS_PART, "others_busy": saturated["others_busy"], "runs": runs}


@contextlib.contextmanager
def swapping(where, upstream):
    """Makes the ten vendors renew in turn: tokens with a lifetime of 2 s are renewed after 1 s."""
    upstream.short_lived_tokens(True)
    try:
        for vendor in VENDORS:
            renew(where, vendor)
            time.sleep(0.1)
        yield None
    finally:
        upstream.short_lived_tokens(False)
    # Until the last of them has been replaced by a long-lived one.
    time.sleep(2)


@contextlib.contextmanager
def reloading(program, configuration, seconds):
    """Reloads changed configurations, spread over the measured time."""
    text = configuration.read_text()

    def during(generator):
        start = time.monotonic() + WARM_SECONDS
        for number in range(RELOADS_PER_SECOND * seconds):
            time.sleep(max(0.0, start + number / RELOADS_PER_SECOND - time.monotonic()))
            if generator.poll() is not None:
                return
            # Replaced atomically: it may be read at any time.
            changed = configuration.with_suffix(".new")
            changed.write_text(f"{text}# {number}\n")
            changed.replace(configuration)
            program.signal(signal.SIGHUP)

    yield during


@contextlib.contextmanager
def hanging(where, upstream):
    """Starts a renewal for every vendor while the token endpoint does not respond."""
    upstream.hanging_token_endpoint(True)
    try:
        for vendor in VENDORS:
            renew(where, vendor)
        yield None
    finally:
        upstream.hanging_token_endpoint(False)


def renew(where, vendor):
    url = f"http://127.0.0.1:{where.admin_port}/vendors/{vendor}/refresh"
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).close()


def counters(where):
    """Returns Countersign's counters of tokens fetched, reloads and refused requests."""
    with urllib.request.urlopen(f"http://127.0.0.1:{where.admin_port}/metrics", timeout=5) as response:
        text = response.read().decode()

    def total(pattern):
        return int(sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)))

    return {
        "tokens": total(r'countersign_credential_fetch_total\{[^}]*outcome="ok"[^}]*\}'),
        "reloads": total(r"countersign_config_reloads_total\{[^}]*\}"),
        "refused": total(r"countersign_refused_total\{[^}]*\}"),
    }


def fresh(where):
    """Tells whether no credential is being renewed."""
    with urllib.request.urlopen(f"http://127.0.0.1:{where.admin_port}/status", timeout=5) as response:
        return all(vendor["state"] == "fresh" for vendor in json.load(response)["vendors"])


def ready(where):
    connection = http.client.HTTPConnection("127.0.0.1", where.admin_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def open_loop(port, rate, seconds, paths, during=None):
    """Runs the open-loop generator; calls `during` with its process once it has started."""
    command = [
        BUILT / "examples" / "open_loop", f"127.0.0.1:{port}", f"{rate:.3f}", str(WARM_SECONDS), str(seconds),
        str(CONNECTIONS), CALLER_KEY, *paths,
    ]
    generator = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {GENERATOR_CORE}),
    )
    try:
        if during:
            during(generator)
        output, _ = generator.communicate(timeout=seconds + 30)
        return json.loads(output)
    finally:
        generator.kill()
        generator.wait(5)


def idle(found, place, _upstream, _options, absent):
    """Measures memory with idle connections, each of which has received one response."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE_CONNECTIONS + 500
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(IDLE_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
    if count < IDLE_CONNECTIONS:
        absent.append(f"idle: {count} connections instead of {IDLE_CONNECTIONS}: no more open files are allowed")
    rows = []
    for proxy in found:
        where = place(f"idle-{proxy.name}", connections=count + 100)
        with proxy.start(where) as program:
            why = verify(proxy, program, where)
            if not why:
                before = program.resident_bytes()
                try:
                    with idle_connections(where.port, count) as alive:
                        time.sleep(1)
                        after, still_open = program.resident_bytes(), alive()
                except OSError as error:
                    why = f"{error}; its log: {program.last_errors()}"
            if why:
                absent.append(f"{proxy.title}, idle: {why}")
                continue
        row = {
            "proxy": proxy.name, "title": proxy.title, "connections": count, "still_open": still_open,
            "before_bytes": before, "after_bytes": after,
        }
        rows.append(row)
        print(f"  {stress_report.idle_line(row)}", flush=True)
    return rows


@contextlib.contextmanager
def idle_connections(port, count):
    """Opens connections, gets a response on each, and yields a function that counts those still open."""
    request = (
        f"GET /vendor/small HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Countersign-Key: {CALLER_KEY}\r\n\r\n"
    ).encode()
    opened = []

    def alive():
        number = 0
        for each in opened:
            each.setblocking(False)
            try:
                number += each.recv(1) != b""
            except BlockingIOError:
                number += 1
            except OSError:
                pass
        return number

    try:
        for number in range(count):
            # Several source addresses: one may have too few ephemeral ports.
            source = (f"127.0.0.{2 + number % 8}", 0)
            each = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=source)
            opened.append(each)
            each.sendall(request)
            if not each.recv(65536).startswith(b"HTTP/1.1 200"):
                raise OSError(f"connection {number + 1} did not get a 200")
        yield alive
    finally:
        for each in opened:
            each.close()


def vendors(found, place, upstream, _options, _absent):
    """Measures the time from exec to the first 200 of /readyz, on one core; medians of five starts."""
    ours = next((proxy for proxy in found if isinstance(proxy, proxies.Countersign)), None)
    if ours is None:
        return []
    rows = []
    many = [f"vendor{number}" for number in range(MANY_VENDORS)]
    for title, names, fixed in (
        ("1 vendor, token fetched", many[:1], False),
        ("1,000 vendors, static tokens", many, True),
        ("1,000 vendors, every token fetched", many, False),
    ):
        where = place(f"vendors-{len(names)}-{fixed}")
        text = ours.configuration(where, names)
        if fixed:
            text = re.sub(
                r"client_credentials:\n(?: {8}.*\n){2} {8}client_secret: (.*)\n", r"bearer: { token: \1 }\n", text
            )
        configuration = where.write("countersign.yaml", text)
        times, sizes = [], []
        for _ in range(5):
            started = time.monotonic()
            with ours.start_with(where, configuration) as program:
                while not ready(where):
                    if program.ended() or time.monotonic() - started > 60:
                        raise RuntimeError(f"{title}: not ready; its log: {program.last_errors()}")
                    time.sleep(0.001)
                times.append(1000 * (time.monotonic() - started))
                sizes.append(program.resident_bytes())
        row = {
            "title": title, "ready_ms": times, "median_ms": statistics.median(times),
            "resident_bytes": statistics.median(sizes), "configuration_bytes": len(text),
        }
        rows.append(row)
        print(f"  {stress_report.vendors_line(row)}", flush=True)
    return rows


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

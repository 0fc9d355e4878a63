#!/usr/bin/env python3
"""Counts the instructions and allocations of one warm request.

    benches/counts.py                    count, compare with benches/counts.json; exit 1 beyond +3 %
    benches/counts.py --accept           count, and save the result as the baseline
    benches/counts.py --where            also list functions, in target/counts/*.functions.txt
    benches/counts.py --sites            also list allocation sites, in target/counts/*.sites.txt
    benches/counts.py --only "bare get,countersign get"    only these scenarios; any other word selects
                                         every scenario with it in its name
    benches/counts.py --no-instructions  only allocations: seconds instead of minutes
    benches/counts.py --rounds 5         count this many times, and print the spread

`make bench-counts ARGS=…` builds first. One caller sends one request after the other over one
connection, in plaintext, to a proxy with one worker thread; the vendor's response is small unless
noted otherwise.

Instructions are those of the whole released process, counted by valgrind's callgrind over a part of
the run that excludes the start. Allocations are those of Rust code, counted in benches/counts.rs by an
allocator around the system's; the library is the same.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import platform
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/counts.json"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RELEASE = TARGET / "release"
SAVED = TARGET / "counts"

# Relative increase above which a count has grown.
TOLERANCE = 0.03
# Maximum number of our own allocations for the small GET, by design.
OWN_ALLOCATIONS = 10

# Numbers of requests before counting and during it. Under valgrind one takes milliseconds, and periodic
# work of the process (it checks its files every three seconds) has to average out.
WARM = 300
INSTRUCTIONS_OVER = 3000
ALLOCATIONS_OVER = 10000
SITES_OVER = 1000

# Timeout in seconds, longer than anything takes on a busy machine.
TIMEOUT = 60

KEY = "bench-caller-key-0123456789abcdef"
TOKEN = "bench-token-of-a-length-that-is-usual-0123456789abcdef"


class Scenario(collections.namedtuple("Scenario", "name bare method body response top vendor")):
    """A request and the proxy's configuration. `bare`: the yardstick; `body` and `response`: sizes in
    bytes; `top` and `vendor`: lines of configuration."""

    def matches(self, words):
        names = [one.name for one in SCENARIOS]
        return any(word == self.name or word not in names and word in self.name for word in words)


def scenario(name, bare=False, method="GET", body=0, response=128, top=(), vendor=()):
    return Scenario(name, bare, method, body, response, top, vendor)


SCENARIOS = [
    scenario("bare get", bare=True),
    scenario("bare post 16 KiB", bare=True, method="POST", body=16 * 1024),
    scenario("bare get 64 KiB", bare=True, response=64 * 1024),
    scenario("countersign get"),
    scenario("countersign post 16 KiB", method="POST", body=16 * 1024),
    scenario("countersign get 64 KiB", response=64 * 1024),
    scenario("countersign get without access log", top=["access_log: false"]),
    scenario("countersign get without echo redaction", vendor=["redact_echo: false"]),
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--sites", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-instructions", action="store_true")
    parser.add_argument("--no-allocations", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()

    words = [word.strip() for word in options.only.split(",") if word.strip()]
    chosen = [one for one in SCENARIOS if not words or one.matches(words)]
    if not chosen:
        sys.exit(f"no scenario has any of {words} in its name: {[one.name for one in SCENARIOS]}")
    SAVED.mkdir(parents=True, exist_ok=True)

    rounds = []
    with Upstream() as upstream:
        for nth in range(options.rounds):
            counts = {}
            for one in chosen:
                say(f"{one.name}, round {nth + 1} of {options.rounds}")
                counts[one.name] = {}
                if not options.no_allocations:
                    counts[one.name].update(allocations(one, upstream))
                if not options.no_instructions:
                    counts[one.name].update(instructions(one, upstream, options.where))
            rounds.append(counts)
        if options.sites:
            for one in chosen:
                say(f"{one.name}: allocation sites")
                sites(one, upstream)
    counts = {
        name: {unit: median([nth[name][unit] for nth in rounds]) for unit in rounds[0][name]}
        for name in rounds[0]
    }
    if len(rounds) > 1:
        print_spread(rounds)
    print_own(counts)
    (SAVED / "latest.json").write_text(json.dumps(counts, indent=2) + "\n")
    if options.accept:
        accept(counts)
        return 0
    return compare(counts)


# ---- the two counts -------------------------------------------------------------------------------


def allocations(one, upstream):
    """Returns allocations, reallocations and bytes of one warm request."""
    with Counted(one, upstream) as proxy:
        proxy.drive(WARM)
        before = proxy.counts()
        proxy.drive(ALLOCATIONS_OVER)
        after = proxy.counts()
    each = [(now - then) / ALLOCATIONS_OVER for now, then in zip(after, before)]
    return {
        "allocations": round(each[0], 2),
        "reallocations": round(each[1], 2),
        "allocated bytes": round(each[2]),
    }


def instructions(one, upstream, where):
    """Returns the instructions of one warm request, in all threads of the process."""
    out = SAVED / f"{slug(one.name)}.callgrind"
    for old in SAVED.glob(out.name + "*"):
        old.unlink()
    tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    with Released(one, upstream, tool) as proxy:
        proxy.drive(WARM)
        proxy.monitor("zero")
        proxy.drive(INSTRUCTIONS_OVER)
        proxy.monitor("dump")
    dump = out.with_name(out.name + ".1")
    total = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if where:
        functions(one, dump)
    return {"instructions": round(int(total.group(1)) / INSTRUCTIONS_OVER)}


def functions(one, dump):
    """Writes the instructions per request by function, and, if the yardstick was counted before, the
    difference to it."""
    text = []
    for title, inclusive in (("by themselves", "no"), ("with what they call", "yes")):
        spent = collections.Counter()
        report = run(
            "callgrind_annotate", f"--inclusive={inclusive}", "--threshold=100", "--auto=no", dump
        )
        for match in re.finditer(r"(?m)^ *([\d,]+) \([ \d.]+%\) +(.*)$", report):
            each = int(match.group(1).replace(",", "")) / INSTRUCTIONS_OVER
            spent[function_name(match.group(2))] += each
        if inclusive == "no":
            # Functions that were running when counting began include everything they call.
            total = spent.pop("PROGRAM TOTALS")
            spent = collections.Counter({f: n for f, n in spent.items() if n < total / 2})
        SPENT[one.name, inclusive] = spent
        text.append(f"Instructions of one request, by function, {title}:\n")
        text.extend(f"{each:12,.1f}  {name}" for name, each in spent.most_common(TOP))
        bare = SPENT.get((yardstick(one), inclusive))
        if not one.bare and bare:
            more = collections.Counter(spent)
            more.subtract(bare)
            text.append(f"\nDifference to bare pingora ({title}):\n")
            text.extend(f"{each:+12,.1f}  {name}" for name, each in more.most_common(TOP))
        text.append("")
    to = SAVED / f"{slug(one.name)}.functions.txt"
    to.write_text("\n".join(text))
    say(f"functions: {to}")


# By scenario, and whether inclusive of called functions.
SPENT = {}
TOP = 100


def function_name(text):
    """Removes the source file, which is mostly unknown, the object, and the recursion depth."""
    text = re.sub(r" \[[^\]]*\]$", "", text)
    text = re.sub(r"^\?\?\?:|^[^ ]*\.(?:rs|c|h|S):", "", text)
    return re.sub(r"'\d+$", "", text)


def yardstick(one):
    """Returns the name of the scenario of bare pingora to compare with."""
    return "bare" + one.name.removeprefix("countersign").split(" without ")[0]


# ---- allocation sites --------------------------------------------------------------------------------


def sites(one, upstream):
    """Writes every site that allocates for a warm request, including C libraries: the difference
    between a longer and a shorter run under valgrind's DHAT."""
    seen = []
    for requests in (WARM, WARM + SITES_OVER):
        out = SAVED / f"{slug(one.name)}.dhat.json"
        tool = ["valgrind", "--tool=dhat", "--num-callers=48", f"--dhat-out-file={out}"]
        with Counted(one, upstream, tool) as proxy:
            proxy.drive(requests)
        seen.append(stacks(json.loads(out.read_text())))
    less, more = seen
    found = collections.Counter()
    size = collections.Counter()
    for stack, (blocks, octets) in more.items():
        before = less.get(stack, (0, 0))
        site = tuple(relevant_frames(stack))
        found[site] += blocks - before[0]
        size[site] += octets - before[1]
    FOUND[one.name] = found
    text = []
    bare = FOUND.get(yardstick(one))
    if not one.bare and bare:
        # Inlining differs around the same code, so only the innermost frames are compared.
        more = by_frames(found, 1)
        more.subtract(by_frames(bare, 1))
        text.append(f"{one.name}: allocations of one request beyond those of bare pingora\n")
        for site, n in more.most_common():
            if abs(n) < SITES_OVER / 100:
                continue
            text.append(f"{n / SITES_OVER:+8.2f}  {site[0]}")
            for (innermost, *outer), n in by_frames(found, 2).most_common():
                if innermost == site[0] and outer and n >= SITES_OVER / 100:
                    text.append(f"{n / SITES_OVER:16.2f} from {outer[0]}")
        text.append("")
    rows = [(n, site) for site, n in found.most_common() if n >= SITES_OVER / 100]
    total = sum(n for n, _ in rows) / SITES_OVER
    text.append(f"{one.name}: {total:.2f} allocations of one request, by site, outermost frame last\n")
    for n, site in rows:
        each = f"{n / SITES_OVER:8.2f} of {size[site] / n:8,.0f} bytes"
        text.append(f"{each}  {site[0] if site else '?'}")
        text.extend(" " * 27 + frame for frame in site[1:])
    to = SAVED / f"{slug(one.name)}.sites.txt"
    to.write_text("\n".join(text) + "\n")
    say(f"sites: {to}")


def stacks(report):
    """Returns blocks and bytes by stack of function names, innermost first."""
    frames = [re.sub(r"^0x[0-9A-F]+: ", "", frame) for frame in report["ftbl"]]
    found = {}
    for point in report["pps"]:
        stack = tuple(frames[nth] for nth in point["fs"])
        blocks, octets = found.get(stack, (0, 0))
        found[stack] = (blocks + point["tbk"], octets + point["tb"])
    return found


# By scenario.
FOUND = {}


def by_frames(found, depth):
    joined = collections.Counter()
    for site, n in found.items():
        joined[site[:depth]] += n
    return joined


# Functions between the allocating code and the allocator.
PLUMBING = re.compile(
    r"^<?(malloc|calloc|realloc|posix_memalign|__r(ust|dl)|alloc::|stats_alloc|_R.*alloc|"
    r"core::|std::|hashbrown::|<?alloc|<?stats_alloc)"
)


def relevant_frames(stack):
    frames = [frame for frame in stack if frame != "[root]"]
    while len(frames) > 1 and PLUMBING.match(frames[0]):
        frames.pop(0)
    return [re.sub(r" \(in [^)]*\)$", "", frame) for frame in frames[:5]]


# ---- the processes --------------------------------------------------------------------------------


class Proxy:
    """A running proxy that has responded once; ended on exit."""

    def __init__(self, one, upstream, tool=()):
        self.one = one
        self.upstream = upstream
        self.tool = list(tool)
        self.lines = []
        self.changed = threading.Condition()

    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="counts-")
        self.port = free_port()
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COUNTERSIGN", "RUST_LOG", "OTEL_"))
            and name.lower() not in ("https_proxy", "http_proxy")
        }
        environment["NO_COLOR"] = "1"
        tool = self.tool and [*self.tool, f"--log-file={self.dir.name}/valgrind.log"]
        self.child = subprocess.Popen(
            [*tool, *self.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        if not self.ends_by_itself:
            self.child.kill()
        try:
            self.child.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.dir.cleanup()

    def config(self):
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        lines = [
            "listeners:",
            f"  - bind: 127.0.0.1:{self.port}",
            "admin: { bind: 127.0.0.1:0 }",
            "threads: 1",
            *self.one.top,
            "callers:",
            "  bench:",
            f'    api_key: {{ sha256: "{digest}" }}',
            '    allow: [ "acme GET,POST /v1/**" ]',
            "vendors:",
            "  acme:",
            f"    upstream: http://127.0.0.1:{self.upstream.port}/api",
            "    allow_plaintext: true",
            "    auth:",
            "      client_credentials:",
            f"        token_url: http://127.0.0.1:{self.upstream.port}/token",
            "        client_id: bench",
            '        client_secret: { value: "bench-client-secret" }',
            *(f"    {line}" for line in self.one.vendor),
        ]
        path = pathlib.Path(self.dir.name) / "proxy.yaml"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def listen(self):
        for line in self.child.stderr:
            with self.changed:
                self.lines.append(line.decode(errors="replace").rstrip())
                self.changed.notify_all()

    def connect(self):
        """Sends requests until the vendor responds: before, there is no listener or no token."""
        body = b"x" * self.one.body
        head = [
            f"{self.one.method} /acme/v1/answers/{self.one.response} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "User-Agent: bench/1.0",
            "Accept: */*",
            f"X-Countersign-Key: {KEY}",
        ]
        if body:
            head += ["Content-Type: application/octet-stream", f"Content-Length: {len(body)}"]
        self.request = "\r\n".join([*head, "", ""]).encode() + body
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.drive(1)
                return
            except (OSError, Failed) as cause:
                if self.child.poll() is not None or time.monotonic() > deadline:
                    log = "\n".join(self.lines)
                    raise SystemExit(f"{self.one.name}: {cause}; the proxy's log:\n{log}") from None
                time.sleep(0.05)

    def drive(self, requests):
        for _ in range(requests):
            self.socket.sendall(self.request)
            head, _, rest = self.read_head()
            if not head.startswith(b"HTTP/1.1 200 "):
                self.socket.close()
                raise Failed(head.decode(errors="replace"))
            length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head).group(1))
            while len(rest) < length:
                chunk = self.socket.recv(1 << 20)
                if not chunk:
                    raise Failed("the response ends early")
                rest += chunk

    def read_head(self):
        read = b""
        while b"\r\n\r\n" not in read:
            chunk = self.socket.recv(1 << 16)
            if not chunk:
                raise Failed(f"no response: {read}")
            read += chunk
        return read.partition(b"\r\n\r\n")


class Released(Proxy):
    """The released program or the yardstick, unmodified."""

    ends_by_itself = False

    def command(self):
        if self.one.bare:
            listen, upstream = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.upstream.port}"
            return [RELEASE / "examples/bare_pingora", listen, upstream]
        return [RELEASE / "countersign", "serve", "--config", self.config()]

    def monitor(self, command):
        """Sends a monitor command to valgrind."""
        run("vgdb", f"--pid={self.child.pid}", command)


class Counted(Proxy):
    """The program or the yardstick with allocations counted."""

    ends_by_itself = True

    def command(self):
        program = RELEASE / "examples/counts"
        if self.one.bare:
            listen, upstream = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.upstream.port}"
            return [program, "bare", listen, upstream]
        return [program, "countersign", self.config()]

    def counts(self):
        with self.changed:
            before = len(self.lines)
            self.child.stdin.write(b"?")
            self.child.stdin.flush()
            deadline = time.monotonic() + TIMEOUT
            while time.monotonic() < deadline:
                for line in self.lines[before:]:
                    if line.startswith("counts "):
                        return [int(word) for word in line.split()[1:]]
                self.changed.wait(1)
        raise SystemExit(f"{self.one.name}: no counts; the proxy's log:\n" + "\n".join(self.lines))


class Upstream:
    """The vendor: issues a long-lived token, and responds with as many bytes as the path specifies."""

    def __enter__(self):
        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Responder)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Responder(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read = b""
        while True:
            while b"\r\n\r\n" not in read:
                chunk = self.receive()
                if not chunk:
                    return
                read += chunk
            head, _, read = read.partition(b"\r\n\r\n")
            announced = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            left = int(announced.group(1)) if announced else 0
            while len(read) < left:
                chunk = self.receive()
                if not chunk:
                    return
                read += chunk
            read = read[left:]
            target = head.split(b" ", 2)[1].decode()
            self.request.sendall(response(target))

    def receive(self):
        try:
            return self.request.recv(1 << 20)
        except OSError:
            return b""


RESPONSES = {}


def response(target):
    if target not in RESPONSES:
        if target == "/token":
            body = json.dumps(
                {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 86400}
            ).encode()
        else:
            body = text(int(target.rpartition("/")[2]))
        head = [
            "HTTP/1.1 200 OK",
            "Date: Tue, 03 Jun 2025 10:00:00 GMT",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
        ]
        RESPONSES[target] = "\r\n".join([*head, "", ""]).encode() + body
    return RESPONSES[target]


def text(size):
    """Returns JSON like that of an API, of exactly `size` bytes."""
    rows = []
    nth = 0
    while sum(map(len, rows)) < size:
        rows.append(f'{{"id":{nth},"commonName":"host-{nth}.example.com","status":"Issued"}},')
        nth += 1
    return ("[" + "".join(rows))[: size - 1].encode() + b"]"


class Failed(Exception):
    """A response that is not the vendor's."""


# ---- output ------------------------------------------------------------------------------


def compare(counts):
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"counts": {}}
    known = baseline["counts"]
    rows = []
    grown = []
    for name, units in counts.items():
        for unit, now in units.items():
            was = known.get(name, {}).get(unit)
            if was is None:
                rows.append((name, unit, "", number(now), "new"))
                continue
            change = (now - was) / was if was else float(now > 0)
            mark = ""
            if change > TOLERANCE:
                mark = "  GROWN"
                grown.append(name)
            elif change < -TOLERANCE:
                mark = "  less"
            rows.append((name, unit, number(was), number(now), f"{change:+.1%}{mark}"))
    print_table(("per request", "", "was", "is", "change"), rows)
    again = "make bench-counts ARGS=--accept"
    if not known:
        print(f"There is no baseline yet: `{again}` saves these counts as the baseline.")
        return 1
    here = machine()
    for what, was in baseline.get("machine", {}).items():
        if here.get(what) != was:
            print(f"The baseline was counted with another {what}: {was!r}, this is {here[what]!r}.")
    if grown:
        print(
            f"\nGrown by more than {TOLERANCE:.0%}: {', '.join(dict.fromkeys(grown))}.\n"
            "ARGS='--where --sites' shows where the instructions and allocations are. If the increase\n"
            f"is justified, `{again}` accepts the new counts: commit benches/counts.json with\n"
            "the reason."
        )
        return 1
    print(f"\nNothing has grown by more than {TOLERANCE:.0%}. If a count has decreased, save")
    print(f"it: `{again}`, and commit benches/counts.json.")
    return 0


def accept(counts):
    """Saves the counts as the baseline. Scenarios that were not counted keep theirs."""
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"counts": {}}
    for name, units in counts.items():
        baseline["counts"].setdefault(name, {}).update(units)
    order = [one.name for one in SCENARIOS]
    known = {name: baseline["counts"][name] for name in order if name in baseline["counts"]}
    written = {"machine": machine(), "counts": known}
    BASELINE.write_text(json.dumps(written, indent=2) + "\n")
    print(f"These counts are the baseline now: {BASELINE.relative_to(ROOT)}. Commit it, with the reason.")


def print_own(counts):
    """Prints our own part: the difference to the yardstick."""
    rows = []
    for one in SCENARIOS:
        of_pingora = counts.get(yardstick(one))
        if one.bare or one.name not in counts or not of_pingora:
            continue
        for unit, now in counts[one.name].items():
            bare = of_pingora[unit]
            rows.append((one.name, unit, number(bare), number(now), number(round(now - bare, 2)),
                         f"{now / bare:.2f}" if bare else ""))
    if rows:
        print_table(("our own part", "", "bare pingora", "countersign", "ours", "ratio"), rows)
        print(f"(Allowed: {OWN_ALLOCATIONS} allocations of our own.)\n")


def print_spread(rounds):
    rows = []
    for name, units in rounds[0].items():
        for unit in units:
            values = [nth[name][unit] for nth in rounds]
            least, most = min(values), max(values)
            spread = (most - least) / least if least else 0
            rows.append((name, unit, number(least), number(most), f"{spread:.2%}"))
    print_table((f"spread of {len(rounds)} rounds", "", "least", "most", "apart"), rows)
    print()


def print_table(titles, rows):
    rows = [titles, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        print("  ".join(cells).rstrip())


def number(value):
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


# ---- helpers --------------------------------------------------------------------------------


def machine():
    """Returns what affects the counts besides our code."""
    return {
        "rustc": run("rustc", "--version").split(" (")[0].strip(),
        "C library": " ".join(platform.libc_ver()),
        "architecture": platform.machine(),
    }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def median(values):
    values = sorted(values)
    return values[len(values) // 2]


def slug(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run(*command):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

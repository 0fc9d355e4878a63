"""One run: is the proxy doing what it is there for, and what does it use under load?"""

import ssl
import time
import urllib.error
import urllib.request

import generators
import machine
from machine import GENERATOR_CORE, PROXY_CORE
from processes import eventually
from stand import CALLER_KEY

# Of a run's start: connections, handshakes, first growth of buffers.
WARM_SECONDS = 0.5
# Of its end, where the generator stops before we have looked.
MARGIN_SECONDS = 0.2


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

"""One run: verifies that the proxy works, and measures what it uses under load."""

import ssl
import time
import urllib.error
import urllib.request

import generators
import machine
from machine import GENERATOR_CORE, PROXY_CORE
from processes import eventually
from fixtures import CALLER_KEY

# The start of a run is not measured: connections, handshakes, first growth of buffers.
WARM_SECONDS = 0.5
# Neither is its end, where the generator stops before the second sample.
MARGIN_SECONDS = 0.2


def verify(proxy, program, place):
    """Waits until the credential reaches the upstream, and the caller's key does not. Returns the
    error, or None."""
    received = ""

    def served():
        nonlocal received
        if program.ended():
            raise ChildProcessError(program.last_errors())
        received = ask(place, "/vendor/check")
        return received == proxy.arrives

    try:
        eventually(served, 15, "the credential at the upstream")
    except TimeoutError as error:
        return f"{error}; last response: {received!r}; its log: {program.last_errors()}"
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
        # Without it, a listener for HTTP/2 alone would refuse the connection.
        context.set_alpn_protocols(["http/1.1"])
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return response.read().decode()
    except (OSError, urllib.error.URLError) as error:
        return str(error)


def one_run(scenario, program, place, upstream, seconds):
    """Puts load on one proxy. Returns the resources it used and the results of the generator."""
    with generators.start(scenario, place.port, seconds, GENERATOR_CORE, place.directory) as generator:
        time.sleep(WARM_SECONDS)
        before, begun = sample(program, upstream)
        time.sleep(max(0.1, seconds - WARM_SECONDS - MARGIN_SECONDS))
        after, ended = sample(program, upstream)
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
        return {"failed": f"no request reached the upstream; the proxy's log: {program.last_errors()}"}
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


def sample(program, upstream):
    """Returns the proxy's usage and the upstream's counts, read as close together as possible."""
    usage, cores, at = program.usage(), machine.busy_seconds(), time.monotonic()
    connections, requests = upstream.counts()
    # The upstream counted in the middle of this.
    at = (at + time.monotonic()) / 2
    return usage, {"connections": connections, "requests": requests, "at": at, "cores": cores}

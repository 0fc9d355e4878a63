"""The scenarios: a declared list, not a full product of all parameters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One kind of load.

    `caller` is the protocol between generator and proxy: `h1`, `tls` (HTTP/1.1 over TLS) or `h2` (over
    TLS). With h2, `connections` is the number of requests in flight, eight to a connection.
    `closes`: each request has a connection of its own (HTTP/1.1 only).
    """

    name: str
    title: str
    path: str = "/vendor/small"
    body_bytes: int = 0
    connections: int = 64
    caller: str = "h1"
    upstream_tls: bool = False
    closes: bool = False

    def plaintext(self):
        return self.caller == "h1" and not self.upstream_tls


ALL = [
    Scenario("get-64", "small GET, 64 connections"),
    Scenario("get-1", "small GET, 1 connection", connections=1),
    Scenario("get-512", "small GET, 512 connections", connections=512),
    Scenario("close-64", "small GET, a connection each, 64 at a time", closes=True),
    Scenario("post-16k", "POST of 16 KiB, 64 connections", path="/vendor/post", body_bytes=16384),
    Scenario("get-1m", "response of 1 MiB, 8 connections", path="/vendor/large", connections=8),
    Scenario("get-64-tls-up", "small GET, 64 connections, TLS to the upstream", upstream_tls=True),
    Scenario("get-64-tls", "small GET, 64 connections, callers by TLS", caller="tls"),
    Scenario("get-64-h2", "small GET, 8 connections of 8 streams, callers by HTTP/2", caller="h2"),
    Scenario(
        "get-64-h2-tls-up",
        "small GET, 8 connections of 8 streams, callers by HTTP/2, TLS to the upstream",
        caller="h2",
        upstream_tls=True,
    ),
]

# The scenarios of --quick and of the plot.
QUICK = ["get-64", "post-16k", "get-64-tls-up", "get-64-h2"]

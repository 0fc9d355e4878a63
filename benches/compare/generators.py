"""Load generators: wrk for HTTP/1.1, h2load for HTTP/2, both with one thread on the given core."""

import json
import os
import pathlib
import re
import shutil
import subprocess
from dataclasses import dataclass

from fixtures import CALLER_KEY

STREAMS_PER_CONNECTION = 8


@dataclass
class Load:
    """The results of a generator. Latencies are in microseconds, from sending to the end of the response."""

    responses: int
    errors: dict  # kind → number; empty without errors
    p50: float
    p99: float
    p999: float


def missing(caller):
    """Returns why there is no generator for this kind of caller, or None."""
    needed = "h2load" if caller == "h2" else "wrk"
    return None if shutil.which(needed) else f"{needed} is not installed: see the output of setup.sh"


class Generator:
    """A running generator, in a session of its own; killed on exit."""

    def __init__(self, command, seconds, core):
        self._seconds = seconds
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def output(self):
        """Returns its output, once it has ended."""
        return self._process.communicate(timeout=self._seconds + 30)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait(5)


class Wrk(Generator):
    """wrk, which counts responses of 400 and above, and every kind of socket error."""

    def __init__(self, scenario, port, seconds, core, directory):
        # A host name over TLS, so that SNI is sent.
        host = "127.0.0.1" if scenario.caller == "h1" else "localhost"
        scheme = "http" if scenario.caller == "h1" else "https"
        super().__init__(
            [
                "wrk", "-t", "1", "-c", str(scenario.connections), "-d", f"{seconds}s", "--timeout", "10s",
                "-s", pathlib.Path(__file__).with_name("wrk.lua"), f"{scheme}://{host}:{port}{scenario.path}",
                "--", CALLER_KEY, str(scenario.body_bytes), "close" if scenario.closes else "keep",
            ],
            seconds,
            core,
        )

    def result(self):
        output = self.output()
        found = re.search(r"^result: (.*)$", output, re.MULTILINE)
        if not found:
            raise RuntimeError(f"wrk printed no result but: {output.strip()[-300:]}")
        result = json.loads(found[1])
        errors = {kind: count for kind, count in result["errors"].items() if count}
        return Load(result["requests"], errors, result["p50"], result["p99"], result["p999"])


class H2load(Generator):
    """h2load, whose log has a line per request, with status and duration."""

    def __init__(self, scenario, port, seconds, core, directory):
        self._log = directory / "h2load.log"
        self._log.unlink(missing_ok=True)
        connections = max(1, scenario.connections // STREAMS_PER_CONNECTION)
        super().__init__(
            [
                "h2load", "-t", "1", "-c", str(connections), "-m", str(STREAMS_PER_CONNECTION),
                "-D", str(seconds), "--log-file", self._log, "-H", f"x-countersign-key: {CALLER_KEY}",
                f"https://localhost:{port}{scenario.path}",
            ],
            seconds,
            core,
        )

    def result(self):
        output = self.output()
        durations, errors = [], {}
        for line in self._log.read_text().splitlines():
            _started, status, duration = line.split("\t")[:3]
            if status == "200":
                durations.append(int(duration))
            else:
                errors[f"status {status}"] = errors.get(f"status {status}", 0) + 1
        if "h2" not in output.partition("Application protocol: ")[2][:3]:
            raise RuntimeError(f"h2load did not use HTTP/2: {output.strip()[-300:]}")
        if not durations:
            raise RuntimeError(f"h2load received no response: {output.strip()[-300:]}")
        durations.sort()
        return Load(len(durations), errors, *(percentile(durations, part) for part in (0.5, 0.99, 0.999)))


def percentile(ascending, part):
    return float(ascending[min(len(ascending) - 1, int(part * len(ascending)))])


def start(scenario, port, seconds, core, directory):
    """Starts the generator for a scenario."""
    kind = H2load if scenario.caller == "h2" else Wrk
    return kind(scenario, port, seconds, core, directory)

"""Processes that are measured or needed for measuring: starts, pins, samples and ends them.

Every process gets a session of its own, so that Ctrl-C reaches only this one, which ends the others by ID.
"""

import os
import pathlib
import signal
import subprocess
import time
from dataclasses import dataclass

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Resources that a program and its children have used since their start."""

    cpu_ns: int
    user_ticks: int
    system_ticks: int
    voluntary_switches: int

    def __sub__(self, earlier):
        return Usage(
            self.cpu_ns - earlier.cpu_ns,
            self.user_ticks - earlier.user_ticks,
            self.system_ticks - earlier.system_ticks,
            self.voluntary_switches - earlier.voluntary_switches,
        )

    def user_share(self):
        """Returns the fraction of CPU time outside the kernel. Computed from ticks: needs seconds of load."""
        ticks = self.user_ticks + self.system_ticks
        return self.user_ticks / ticks if ticks else 0.0


class Program:
    """A running program and its children.

    Its standard output is read, by a `cat` on the generator's core; its standard error goes to a
    file, whose end `last_errors` returns.
    """

    def __init__(self, name, command, core, reader_core, directory, environment=None):
        self.name = name
        self._stderr = directory / f"{name}.stderr"
        read, write = os.pipe()
        with open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        os.close(write)
        self._reader = subprocess.Popen(
            ["cat"],
            stdin=read,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {reader_core}),
        )
        os.close(read)

    def ids(self):
        """Returns the IDs of the process and of all its descendants."""
        found, unread = [], [self.process.pid]
        while unread:
            pid = unread.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                unread += [int(child) for child in task.read_text().split()]
        return found

    def usage(self):
        """Returns the usage of all threads of all processes, including threads that have ended."""
        cpu_ns = user = system = switches = 0
        for pid in self.ids():
            # The clock ID of the process's CPU time, see clock_getcpuclockid(3).
            cpu_ns += time.clock_gettime_ns((~pid << 3) | 2)
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11])
            system += int(fields[12])
            for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
                switches += _field(status.read_text(), "voluntary_ctxt_switches")
        return Usage(cpu_ns, user, system, switches)

    def resident_bytes(self):
        """Returns resident memory; shared pages are divided among the processes (PSS)."""
        total = 0
        for pid in self.ids():
            total += _field(pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss") * 1024
        return total

    def ended(self):
        return self.process.poll() is not None

    def last_errors(self):
        """Returns the end of its standard error."""
        lines = self._stderr.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-4:]) or "(empty)"

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Sends SIGTERM, and after three seconds SIGKILL to its whole session."""
        try:
            if not self.ended():
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(3)
                except subprocess.TimeoutExpired:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait(5)
        finally:
            # It ends when the pipe has no writers; a child that is left keeps it open.
            try:
                self._reader.wait(1)
            except subprocess.TimeoutExpired:
                self._reader.kill()
                self._reader.wait(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def _field(text, name):
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name} in {text!r}")


def eventually(condition, seconds, what):
    """Waits until `condition()` returns a true value, and returns it."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)

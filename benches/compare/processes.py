"""Programs that are measured or needed for measuring: started, pinned to a core, read, ended.

Every program gets a session of its own, so that Ctrl-C reaches only us and we end the rest, by id.
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
    """What a program and its children have used since they were started."""

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
        """Of the CPU time, the part outside the kernel; from ticks, so only good over seconds."""
        ticks = self.user_ticks + self.system_ticks
        return self.user_ticks / ticks if ticks else 0.0


class Program:
    """A program under way, with whatever it starts itself.

    What it prints on standard output is really read, by a `cat` on the generator's core; standard
    error goes to a file, which `complaint` quotes.
    """

    def __init__(self, name, command, core, reader_core, directory, environment=None):
        self.name = name
        self._complaints = directory / f"{name}.stderr"
        read, write = os.pipe()
        with open(self._complaints, "wb") as complaints:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=complaints,
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
        """The process and its children, theirs included."""
        found, unread = [], [self.process.pid]
        while unread:
            pid = unread.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                unread += [int(child) for child in task.read_text().split()]
        return found

    def usage(self):
        """All threads of all processes, ended threads included."""
        cpu_ns = user = system = switches = 0
        for pid in self.ids():
            # The process's CPU clock, see clock_getcpuclockid(3).
            cpu_ns += time.clock_gettime_ns((~pid << 3) | 2)
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11])
            system += int(fields[12])
            for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
                switches += _field(status.read_text(), "voluntary_ctxt_switches")
        return Usage(cpu_ns, user, system, switches)

    def resident_bytes(self):
        """Resident memory; pages shared between its processes are counted by their share."""
        total = 0
        for pid in self.ids():
            total += _field(pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss") * 1024
        return total

    def ended(self):
        return self.process.poll() is not None

    def complaint(self):
        """The end of what it said on standard error."""
        said = self._complaints.read_text(errors="replace").strip().splitlines()
        return " | ".join(said[-4:]) or "(it said nothing)"

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """SIGTERM, and SIGKILL to its whole session after three seconds."""
        try:
            if not self.ended():
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(3)
                except subprocess.TimeoutExpired:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait(5)
        finally:
            # Without writers it ends by itself; a child left behind would keep it.
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
    """Waits until `condition()` returns something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)

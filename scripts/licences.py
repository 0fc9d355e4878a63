#!/usr/bin/env python3
"""Which licences our dependencies may have, and which dependencies we do not want.

    scripts/licences.py               check Cargo.lock; exit 1 with every finding
    scripts/licences.py --self-test   check this script against its own table

cargo-deny knows more, and building it takes CI longer than everything else that is checked here.
Looked at are the crates that are linked on this platform, tests and build scripts included. That a
version was yanked is not seen: that would take the registry.
"""

import json
import re
import subprocess
import sys

# One of these suffices for a choice (OR), every part needs one in a sum (AND).
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}

# Crate, and why it must not come in. OpenSSL itself is ours: src/late_client_auth.rs does with it
# what rustls cannot. These would bring it to places that rustls serves.
BANNED = {
    "hyper-openssl": "rustls speaks TLS wherever it can",
    "hyper-tls": "rustls speaks TLS wherever it can",
    "native-tls": "rustls speaks TLS wherever it can",
    "pingora-openssl": "rustls speaks TLS wherever it can",
}

# Two versions of these would compile, and then not know each other's types, certificates,
# runtime or metrics.
SINGLE = {
    "arc-swap",
    "http",
    "hyper",
    "pingora-core",
    "prometheus",
    "reqwest",
    "rustls",
    "tokio",
}

# How cargo names the default registry in its lock file; other kinds are git+… and path+….
REGISTRY = "registry+"


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    packages = linked_packages()
    found = findings(packages)
    for line in found:
        print(f"licences: {line}", file=sys.stderr)
    if not found:
        print(f"licences: {len(packages)} crates, nothing to object to")
    return 1 if found else 0


def linked_packages():
    version = run("rustc", "-vV")
    host = re.search(r"^host: (\S+)$", version, re.MULTILINE).group(1)
    metadata = run(
        "cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={host}"
    )
    return json.loads(metadata)["packages"]


def run(*command):
    # Whatever the command says on stderr is for the reader.
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def findings(packages):
    """One line per objection to `packages`, which look like `cargo metadata`'s."""
    found = []
    versions = {}
    for package in packages:
        name, crate = package["name"], f"{package['name']} {package['version']}"
        versions.setdefault(name, []).append(package["version"])
        if name in BANNED:
            found.append(f"{crate} is banned: {BANNED[name]} (who asks: cargo tree -i {name})")
        # None: a crate of this very repository.
        if not (package["source"] or REGISTRY).startswith(REGISTRY):
            found.append(f"{crate} does not come from the registry but {package['source']}")
        if not package["license"]:
            found.append(f"{crate} names no licence")
            continue
        try:
            if not permitted(package["license"]):
                found.append(f"{crate} is under {package['license']!r}, which is not allowed")
        except ValueError as error:
            found.append(f"{crate} has the licence {package['license']!r}: {error}")
    for name in sorted(SINGLE & versions.keys()):
        if len(versions[name]) > 1:
            several = " and ".join(sorted(versions[name]))
            found.append(f"{name} is there in versions {several} (see: cargo tree -d)")
    return found


def permitted(expression):
    """Whether an SPDX expression can be met from ALLOWED; ValueError when it is none.

    AND binds tighter than OR (SPDX 2.3, annex D.4). The slash is Cargo's old spelling of OR.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either():
        verdict = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            # Called first: a choice already met must still be read to its end.
            verdict = both() or verdict
        return verdict

    def both():
        verdict = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            verdict = one() and verdict
        return verdict

    def one():
        token = tokens.pop(0) if tokens else "the end"
        if token == "(":
            verdict = either()
            if tokens[:1] != [")"]:
                raise ValueError("a bracket is not closed")
            tokens.pop(0)
            return verdict
        if token in ("the end", ")", "AND", "OR", "WITH"):
            raise ValueError(f"{token} where a licence was expected")
        if tokens[:1] == ["WITH"]:
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0) if tokens else '?'}"
        return token in ALLOWED

    verdict = either()
    if tokens:
        raise ValueError(f"unexpected {tokens[0]}")
    return verdict


def self_test():
    expressions = [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only AND MIT", False),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only / AGPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        # AND first: this is MIT OR (GPL AND AGPL), and (GPL AND AGPL) OR MIT.
        ("MIT OR GPL-3.0-only AND AGPL-3.0-only", True),
        ("GPL-3.0-only AND AGPL-3.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("ISC AND (Apache-2.0 OR ISC) AND (GPL-3.0-only OR (MIT AND Zlib))", True),
        # Names are compared whole and by case.
        ("mit", False),
        ("MIT-Modern-Variant", False),
        ("MIT OR", ValueError),
        ("(MIT", ValueError),
        ("MIT)", ValueError),
        ("MIT Apache-2.0", ValueError),
        ("MIT WITH", False),
        ("", ValueError),
    ]

    def crate(name, version="1.0.0", licence="MIT", source=REGISTRY):
        return {"name": name, "version": version, "license": licence, "source": source}

    crates = [
        ([crate("serde"), crate("countersign", source=None)], 0),
        ([crate("openssl-sys")], 0),
        ([crate("pingora-openssl")], 1),
        ([crate("serde", source="git+https://example.com/serde#1")], 1),
        ([crate("serde", licence=None)], 1),
        ([crate("serde", licence="MIT OR")], 1),
        ([crate("serde", licence="AGPL-3.0-only")], 1),
        ([crate("rustls", "0.22.4"), crate("rustls", "0.23.1")], 1),
        ([crate("syn", "1.0.0"), crate("syn", "2.0.0")], 0),
        ([crate("native-tls", licence="AGPL-3.0-only", source="git+https://example.com/x")], 3),
    ]

    failed = 0
    for expression, want in expressions:
        try:
            got = permitted(expression)
        except ValueError:
            got = ValueError
        if got != want:
            print(f"self-test: {expression!r} gave {got}, not {want}", file=sys.stderr)
            failed += 1
    for packages, want in crates:
        got = findings(packages)
        if len(got) != want:
            print(f"self-test: {packages} gave {got}, not {want} findings", file=sys.stderr)
            failed += 1
    if not failed:
        print(f"licences: self-test of {len(expressions) + len(crates)} rows passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

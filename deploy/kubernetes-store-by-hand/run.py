#!/usr/bin/env python3
"""Drives two real `countersign serve` that share one grant through a real Kubernetes API server.

    run.py --etcd PATH --kube-apiserver PATH      starts both on loopback, for this run alone
    run.py --kubeconfig FILE                      uses a cluster of yours, as its administrator;
                                                  the namespace `countersign-by-hand` is made there
                                                  and deleted again

The service account has exactly the rights that ../kubernetes/overlays/replicas ships. The vendor
is a token server in this script, which rotates refresh tokens and ends the grant for good when a
spent one is shown again. Nothing but Python, kubectl and the binaries named is needed.
"""

import argparse
import base64
import collections
import http.server
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
SHIPPED = HERE.parent / "kubernetes"
NAMESPACE = "countersign-by-hand"
# The vendor that the shipped Role names a Lease for.
VENDOR = "maxmd"
SECRET, LEASE = "countersign-state", f"countersign-state-{VENDOR}"
PATIENCE = 60


def main():
    options = arguments()
    # Nothing it started outlives it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="countersign-by-hand-") as scratch:
        scratch = pathlib.Path(scratch)
        processes = []
        try:
            server = None if options.kubeconfig else ApiServer(options, scratch, processes)
            admin = options.kubeconfig or server.kubeconfig
            run = Run(options, scratch, processes, server, Kubectl(options.kubectl, admin))
            run.record() if options.record else run.all()
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--countersign", default="target/debug/countersign")
    parser.add_argument("--kubectl", default="kubectl")
    parser.add_argument("--etcd", default="etcd")
    parser.add_argument("--kube-apiserver", default="kube-apiserver")
    parser.add_argument("--kubeconfig", help="an administrator's, of a cluster that is there")
    parser.add_argument(
        "--as-pods",
        action="store_true",
        help="as root: proxies find service account and API server as in a pod, not by KUBECONFIG",
    )
    parser.add_argument("--record", help="only writes down there how the API server answers")
    return parser.parse_args()


# ---- what is told ------------------------------------------------------------------------------


def say(text):
    print(text, flush=True)


def step(text):
    say(f"\n== {time.strftime('%X')} {text}")


def must(holds, text):
    if not holds:
        raise SystemExit(f"FAILED: {text}")
    say(f"   ok: {text}")


def eventually(what, ask, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = ask()
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"FAILED: after {patience} s still not {what}")


# ---- the API server ----------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ApiServer:
    """etcd and kube-apiserver on loopback, with RBAC and service account tokens."""

    def __init__(self, options, scratch, processes):
        self.options, self.scratch, self.processes = options, scratch, processes
        self.port = free_port()
        self.etcd_port = free_port()
        self.kubeconfig = scratch / "admin.kubeconfig"
        self.ca = scratch / "api-server" / "apiserver.crt"
        admin_token = secrets.token_hex(16)
        self.tokens = scratch / "tokens.csv"
        self.tokens.write_text(f'{admin_token},admin,admin,"system:masters"\n')
        self.key = scratch / "service-accounts.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", self.key, "2048"], check=True, capture_output=True
        )
        peer = f"http://127.0.0.1:{free_port()}"
        client = f"http://127.0.0.1:{self.etcd_port}"
        self.spawn(
            "etcd",
            [options.etcd, "--data-dir", scratch / "etcd", "--name", "one"]
            + ["--listen-client-urls", client, "--advertise-client-urls", client]
            + ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            + ["--initial-cluster", f"one={peer}"],
        )
        self.process = None
        self.start()
        write_kubeconfig(self.kubeconfig, self.url(), self.ca.read_bytes(), {"token": admin_token})

    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def spawn(self, name, command):
        log = open(self.scratch / f"{name}.log", "ab")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start(self):
        self.process = self.spawn(
            "kube-apiserver",
            [self.options.kube_apiserver, "--bind-address", "127.0.0.1"]
            + ["--secure-port", str(self.port), "--cert-dir", self.scratch / "api-server"]
            + ["--etcd-servers", f"http://127.0.0.1:{self.etcd_port}"]
            + ["--authorization-mode", "RBAC", "--token-auth-file", self.tokens]
            + ["--service-cluster-ip-range", "10.0.0.0/24"]
            + ["--service-account-issuer", "https://kubernetes.default.svc"]
            + ["--service-account-key-file", self.key]
            + ["--service-account-signing-key-file", self.key],
        )
        eventually("ready (see kube-apiserver.log)", self.is_ready, 120)

    def is_ready(self):
        if self.process.poll() is not None:
            log = (self.scratch / "kube-apiserver.log").read_text()
            raise SystemExit(f"kube-apiserver ended:\n{log[-3000:]}")
        try:
            context = ssl._create_unverified_context()
            with urllib.request.urlopen(f"{self.url()}/readyz", context=context) as answer:
                return answer.status == 200
        except (OSError, urllib.error.HTTPError):
            return False

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def write_kubeconfig(path, server, ca, user):
    ca = base64.b64encode(ca).decode()
    cluster = {"server": server, "certificate-authority-data": ca}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [
            {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
        ],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))


class Kubectl:
    """An administrator."""

    def __init__(self, program, kubeconfig):
        self.command = [program, "--kubeconfig", str(kubeconfig)]

    def __call__(self, *words, stdin=None, fails=False):
        done = subprocess.run(
            [*self.command, *map(str, words)], input=stdin, capture_output=True, text=True
        )
        if done.returncode and not fails:
            raise SystemExit(f"kubectl {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def object(self, kind, name):
        found = self("get", kind, name, "-n", NAMESPACE, "-o", "json", fails=True)
        return json.loads(found) if found else None


# ---- the vendor --------------------------------------------------------------------------------


class Vendor:
    """Consent, tokens and an API. A refresh token is spent when its answer can be delivered, and
    one that was spent ends the grant when it is shown again."""

    def __init__(self):
        self.lifetime = 6
        self.delay = 0
        self.shown = []
        self.alive = None
        self.access = {}
        self.dead = False
        self.lock = threading.Lock()
        vendor = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                good = vendor.access.get(token, 0) > time.monotonic()
                self.answer(200 if good else 401, {"good": good})

            def do_POST(self):
                length = int(self.headers.get("Content-Length", 0))
                form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
                if form.get("grant_type") == "refresh_token":
                    with vendor.lock:
                        vendor.shown.append((form["refresh_token"], self.client_address[1]))
                    time.sleep(vendor.delay)
                    if self.is_gone():
                        self.close_connection = True
                        return
                self.answer(*vendor.issue(form))

            def is_gone(self):
                self.connection.setblocking(False)
                try:
                    return self.connection.recv(1, socket.MSG_PEEK) == b""
                except BlockingIOError:
                    return False
                except OSError:
                    return True
                finally:
                    self.connection.setblocking(True)

            def answer(self, status, body):
                body = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # Of the proxy that is killed in the middle of it.
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def issue(self, form):
        with self.lock:
            if form.get("grant_type") == "refresh_token" and (
                self.dead or form["refresh_token"] != self.alive
            ):
                self.dead = True
                return 400, {"error": "invalid_grant"}
            self.alive = secrets.token_hex(8)
            access = secrets.token_hex(8)
            self.access[access] = time.monotonic() + self.lifetime
            return 200, {
                "access_token": access,
                "refresh_token": self.alive,
                "token_type": "Bearer",
                "expires_in": self.lifetime,
            }

    def repeated(self):
        counts = collections.Counter(token for token, _ in self.shown)
        return sum(count - 1 for count in counts.values())


# ---- the proxies -------------------------------------------------------------------------------


class Proxy:
    """One `countersign serve`, and somebody who asks it for something all the time."""

    def __init__(self, name, run):
        self.name = name
        self.process = subprocess.Popen(
            [*run.program, "serve", "--config", run.config],
            env=run.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        run.processes.append(self.process)
        self.log = []
        addresses = []
        while len(addresses) < 2:
            line = self.process.stderr.readline()
            if not line:
                raise SystemExit("".join(self.log))
            self.log.append(line)
            addresses += re.findall(r"address=([0-9.:]+)", line)
        self.data, self.admin = addresses
        threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True).start()
        self.asked, self.failed, self.ending = 0, [], False
        threading.Thread(target=self.ask, daemon=True).start()

    def ask(self):
        eventually("usable", lambda: self.status()["state"] in ("fresh", "refreshing"))
        while not self.ending:
            self.asked += 1
            try:
                urllib.request.urlopen(f"http://{self.data}/{VENDOR}/thing", timeout=20).read()
            except OSError as error:
                if not self.ending:
                    self.failed.append(f"{time.strftime('%X')} {error}")
            time.sleep(0.05)

    def status(self):
        with urllib.request.urlopen(f"http://{self.admin}/status") as answer:
            return json.load(answer)["vendors"][0]

    def fetches(self, outcome):
        with urllib.request.urlopen(f"http://{self.admin}/metrics") as answer:
            text = answer.read().decode()
        wanted = rf'credential_fetch_total{{outcome="{outcome}",vendor="{VENDOR}"}} (\d+)'
        found = re.search(wanted, text)
        return int(found[1]) if found else 0

    def until_renewed(self, times=1, before=None, patience=PATIENCE):
        wanted = (self.fetches("ok") if before is None else before) + times
        try:
            eventually(f"{self.name} renewed", lambda: self.fetches("ok") >= wanted, patience)
        except SystemExit:
            say(f"   {self.name}: {json.dumps(self.status())}")
            raise

    def until_in_trouble(self):
        before = self.fetches("temporary")
        eventually(f"{self.name} in trouble", lambda: self.fetches("temporary") > before)
        return self.status()["last_error"]

    def kill(self):
        self.ending = True
        self.process.kill()
        self.process.wait()

    def has_port(self, port):
        """Whether a connection from that port of loopback is this process's."""
        inodes = set()
        for descriptor in pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor))
            except OSError:
                pass
        for line in open("/proc/net/tcp"):
            words = line.split()
            if words[1] == f"0100007F:{port:04X}" and f"socket:[{words[9]}]" in inodes:
                return True
        return False


# ---- the run -----------------------------------------------------------------------------------


class Run:
    def __init__(self, options, scratch, processes, server, kubectl):
        self.options, self.scratch, self.processes = options, scratch, processes
        self.server, self.kubectl = server, kubectl
        self.vendor = Vendor()
        self.config = scratch / "proxy.yaml"
        self.account = scratch / "account"
        self.account.mkdir()
        self.token = self.account / "token"
        self.program = [options.countersign]
        self.environment = {
            "PATH": os.environ["PATH"],
            "NO_COLOR": "1",
            "KUBECONFIG": str(scratch / "kubeconfig"),
            "STORE_KEY": secrets.token_hex(32),
        }

    def all(self):
        try:
            self.prepare()
            self.consent()
            one, two = Proxy("one", self), Proxy("two", self)
            self.share(one, two)
            self.conflict(one, two)
            one, two = self.kill_the_holder(one, two)
            self.take_rights_away(one, two)
            self.delete_the_secret(one, two)
            self.spoil_the_token(one, two)
            if self.server:
                self.stop_the_api_server(one, two)
            step("In all")
            for proxy in (one, two):
                for failure in proxy.failed[:5]:
                    say(f"   {proxy.name}: {failure}")
                must(not proxy.failed, f"{proxy.name}: {proxy.asked} requests, none failed")
            must(not self.vendor.dead, f"{len(self.vendor.shown)} refreshes, the grant is alive")
        finally:
            self.kubectl("delete", "namespace", NAMESPACE, "--wait=false", fails=True)

    def record(self):
        """What the API server says to requests like ours, right and wrong, for the mock server in
        tests/support/kubernetes.rs to be compared with. `$VERSION` is the `resourceVersion` that
        the object has then."""
        self.prepare()
        self.kubectl("delete", "secret/" + SECRET, "lease/" + LEASE, "-n", NAMESPACE)
        self.kubectl("delete", "role/countersign", "rolebinding/countersign", "-n", NAMESPACE)
        view = json.loads((self.scratch / "kubeconfig").read_text())
        cluster = view["clusters"][0]["cluster"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=ca)
        open_role = [
            *("create", "role", "everything", "-n", NAMESPACE, "--verb=get,create,update"),
            "--resource=secrets,leases.coordination.k8s.io",
        ]
        recorded = []

        def ask(token, method, path, body):
            request = urllib.request.Request(cluster["server"] + path, method=method)
            request.add_header("Content-Type", "application/json")
            if token:
                request.add_header("Authorization", f"Bearer {token}")
            data = None if body is None else json.dumps(body).encode()
            try:
                with urllib.request.urlopen(request, data, context=context) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        for case in CASES:
            who, method, path, body = case
            if who == "granted":
                self.kubectl(*open_role)
                binding = ["create", "rolebinding", "everything", "--role=everything"]
                account = f"--serviceaccount={NAMESPACE}:countersign"
                self.kubectl(*binding, account, "-n", NAMESPACE)
                # It reaches the authoriser a moment later.
                time.sleep(2)
                continue
            token = None if who == "nobody" else self.token.read_text()
            full = path.replace("NAMESPACE", NAMESPACE)
            if body is not None and "$VERSION" in json.dumps(body):
                _, there = ask(token, "GET", full, None)
                version = there["metadata"]["resourceVersion"]
                sent = json.loads(json.dumps(body).replace("$VERSION", version))
            else:
                sent = body
            status, answer = ask(token, method, full, sent)
            said = {"as": who, "method": method, "path": path, "body": body, "status": status}
            if status >= 400:
                said["reason"] = answer.get("reason")
                said["message"] = answer["message"].replace(NAMESPACE, "NAMESPACE")
            else:
                said["fields"] = sorted(answer["metadata"])
            recorded.append(said)
        lines = ",\n".join(json.dumps(said, ensure_ascii=False) for said in recorded)
        pathlib.Path(self.options.record).write_text(f"[\n{lines}\n]\n")
        say(f"   {len(recorded)} answers written to {self.options.record}")
        self.kubectl("delete", "namespace", NAMESPACE, "--wait=false", fails=True)

    def prepare(self):
        step("A namespace and a service account with the rights that are shipped")
        version = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]
        say(f"   the API server is {version['gitVersion']}")
        self.kubectl("create", "namespace", NAMESPACE)
        self.apply("base/service-account.yaml")
        self.apply("overlays/replicas/state.yaml")
        self.apply("overlays/replicas/rbac.yaml")
        may = self.kubectl(
            *("auth", "can-i", "--list", "-n", NAMESPACE),
            f"--as=system:serviceaccount:{NAMESPACE}:countersign",
        )
        for line in may.splitlines():
            if "secrets" in line or "leases" in line:
                say(f"   {' '.join(line.split())}")
        self.new_token()
        view = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
        cluster = view["clusters"][0]["cluster"]
        ca = base64.b64decode(cluster["certificate-authority-data"])
        user = {"tokenFile": str(self.token)}
        write_kubeconfig(self.scratch / "kubeconfig", cluster["server"], ca, user)
        if self.options.as_pods:
            (self.account / "ca.crt").write_bytes(ca)
            (self.account / "namespace").write_text(NAMESPACE)
            there = "/var/run/secrets/kubernetes.io/serviceaccount"
            mount = f"mkdir -p {there} && mount --bind {self.account} {there}"
            self.program = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
            self.program += [self.options.countersign]
            del self.environment["KUBECONFIG"]
            server = urllib.parse.urlsplit(cluster["server"])
            self.environment["KUBERNETES_SERVICE_HOST"] = server.hostname
            self.environment["KUBERNETES_SERVICE_PORT"] = str(server.port or 443)
        self.config.write_text(
            f"""
listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
store:
  kubernetes: {{ secret: {SECRET} }}
  encryption_key: {{ env: STORE_KEY }}
vendors:
  {VENDOR}:
    upstream: {self.vendor.url}
    allow_plaintext: true
    auth:
      authorization_code:
        authorize_url: {self.vendor.url}/authorize
        token_url: {self.vendor.url}/token
        client_id: by-hand
        client_secret: {{ env: STORE_KEY }}
        redirect_uri: https://example.com/callback
        request_timeout: 3s
"""
        )
        said = self.countersign("check")
        say(f"   check: {said.stdout.strip()}")
        must(said.returncode == 0, "`check` takes the configuration")

    def consent(self):
        step("A person's consent, with `countersign authorize`")
        self.vendor.lifetime = 8
        said = self.countersign("authorize", VENDOR, "--no-state", stdin="the-code\n")
        must(said.returncode == 0, "consented")
        stored = self.kubectl.object("secret", SECRET)["data"][VENDOR]
        raw = base64.b64decode(stored)
        must(
            self.vendor.alive.encode() not in raw,
            f"the Secret holds {len(raw)} bytes, the refresh token not legible among them",
        )

    def share(self, one, two):
        step("Two processes share the grant")
        for proxy in (one, two):
            proxy.until_renewed(3)
        must(self.vendor.repeated() == 0, "no refresh token was shown twice")
        for proxy in (one, two):
            must(
                proxy.fetches("temporary") == proxy.fetches("rejected") == 0,
                f"{proxy.name} took {proxy.fetches('ok')} tokens, no attempt failed",
            )
        must(
            len(self.vendor.shown) < one.fetches("ok") + two.fetches("ok"),
            f"{len(self.vendor.shown)} refreshes in all: one bought, the other took",
        )
        lease = self.kubectl.object("lease", LEASE)["spec"]
        say(f"   the Lease: {json.dumps(lease)}")

    def conflict(self, one, two):
        step("Another writer changes the Secret all the time")
        done = threading.Event()
        written = []

        def write():
            while not done.is_set():
                written.append(str(len(written)))
                self.kubectl(
                    *("annotate", "--overwrite", "-n", NAMESPACE, "secret", SECRET),
                    f"example.com/written={written[-1]}",
                )

        writer = threading.Thread(target=write)
        writer.start()
        for proxy in (one, two):
            proxy.until_renewed(2)
        done.set()
        writer.join()
        kept = self.kubectl.object("secret", SECRET)["metadata"]["annotations"]
        must(
            kept["example.com/written"] == written[-1],
            f"all {len(written)} changes of the other writer are kept",
        )
        must(self.vendor.repeated() == 0, "no refresh token was shown twice")

    def kill_the_holder(self, one, two):
        step("The one that is asking for a token is killed")
        # Long enough for a lease to lapse within a token's life.
        self.vendor.lifetime = 60
        for proxy in (one, two):
            proxy.until_renewed()
        self.vendor.delay = 2
        before = len(self.vendor.shown)
        eventually("asked", lambda: len(self.vendor.shown) > before, 90)
        token, port = self.vendor.shown[before]
        holder, other = (one, two) if one.has_port(port) else (two, one)
        must(holder.has_port(port), f"{holder.name} is the one; kill -9")
        holder.kill()
        since = time.monotonic()
        must(not holder.failed, f"{holder.asked} requests until then, none failed")
        other.until_renewed()
        took = time.monotonic() - since
        self.vendor.delay = 0
        again = [shown for shown, _ in self.vendor.shown[before + 1 :]].count(token)
        must(again == 1, f"{other.name} took over after {took:.1f} s and tried the token once more")
        fresh = Proxy(holder.name, self)
        eventually("usable", lambda: fresh.status()["state"] == "fresh")
        must(True, f"{holder.name} is back and has the token that {other.name} bought")
        self.vendor.lifetime = 8
        for proxy in (other, fresh):
            self.refresh(proxy)
            proxy.until_renewed(2)
        return other, fresh

    def take_rights_away(self, one, two):
        step("The service account may read, but no longer write")
        self.vendor.lifetime = 40
        for proxy in (one, two):
            proxy.until_renewed()
        role = self.kubectl.object("role", "countersign")
        for rule in role["rules"]:
            rule["verbs"] = ["get"]
        self.kubectl("replace", "-f", "-", stdin=json.dumps(role))
        before = len(self.vendor.shown)
        for proxy in (one, two):
            say(f"   {proxy.name}: {proxy.until_in_trouble()}")
        must(len(self.vendor.shown) == before, "nothing was spent that could not be kept")
        self.apply("overlays/replicas/rbac.yaml")
        for proxy in (one, two):
            proxy.until_renewed()
        must(self.vendor.repeated() == 1, "the right is back, and both go on")

    def delete_the_secret(self, one, two):
        step("The Secret is deleted, and made again empty")
        self.kubectl("delete", "secret", SECRET, "-n", NAMESPACE)
        for proxy in (one, two):
            say(f"   {proxy.name}: {proxy.until_in_trouble()}")
        self.apply("overlays/replicas/state.yaml")
        for proxy in (one, two):
            proxy.until_renewed()
        must(self.kubectl.object("secret", SECRET)["data"][VENDOR], "the grant was put back")

    def spoil_the_token(self, one, two):
        step("The service account's token is no good, then replaced in its file")
        self.token.write_text("spoilt")
        for proxy in (one, two):
            say(f"   {proxy.name}: {proxy.until_in_trouble()}")
        self.new_token()
        for proxy in (one, two):
            proxy.until_renewed()
        must(True, "the new token is in use, no restart needed")

    def stop_the_api_server(self, one, two):
        step("The API server is killed, and started again")
        # Longer than a kube-apiserver takes to start on a busy machine.
        self.vendor.lifetime = 120
        for proxy in (one, two):
            self.refresh(proxy)
            proxy.until_renewed()
        self.server.stop()
        for proxy in (one, two):
            self.refresh(proxy)
            say(f"   {proxy.name}: {proxy.until_in_trouble()}")
            must(proxy.status()["state"] != "expired", f"{proxy.name} goes on with what it holds")
        # From here on: it may answer before it says that it is ready.
        before = {proxy: proxy.fetches("ok") for proxy in (one, two)}
        self.server.start()
        for proxy in (one, two):
            # The pause between two attempts is up to a minute by now.
            proxy.until_renewed(before=before[proxy], patience=100)
        must(self.vendor.repeated() == 1, "it is back, and both go on")

    def apply(self, file):
        self.kubectl("apply", "-n", NAMESPACE, "-f", SHIPPED / file)

    def new_token(self):
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/countersign/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        request["spec"] = {"expirationSeconds": 3600}
        answer = self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request))
        fresh = self.token.with_suffix(".new")
        fresh.write_text(json.loads(answer)["status"]["token"])
        fresh.rename(self.token)

    def refresh(self, proxy):
        url = f"http://{proxy.admin}/vendors/{VENDOR}/refresh"
        urllib.request.urlopen(urllib.request.Request(url, method="POST")).read()

    def countersign(self, *words, stdin=""):
        done = subprocess.run(
            [*self.program, *words, "--config", self.config],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            say(done.stderr)
        return done


# ---- for --record ------------------------------------------------------------------------------

SECRETS = "/api/v1/namespaces/NAMESPACE/secrets"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/NAMESPACE/leases"
TIME = "2026-01-01T00:00:00.000000Z"


def a_secret(data=None, **metadata):
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}
    return {**secret, "metadata": {"name": "s", **metadata}, "data": data or {"v": "AAAA"}}


def a_lease(version=None, **spec):
    metadata = {"name": "l"} | ({"resourceVersion": version} if version else {})
    whole = {
        "holderIdentity": "one",
        "leaseDurationSeconds": 15,
        "acquireTime": TIME,
        "renewTime": TIME,
        "leaseTransitions": 0,
        **spec,
    }
    whole = {name: value for name, value in whole.items() if value is not None}
    kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    return {**kind, "metadata": metadata, "spec": whole}


CASES = [
    ("nobody", "GET", f"{SECRETS}/s", None),
    ("account", "GET", f"{SECRETS}/s", None),
    ("account", "PUT", f"{LEASES}/l", a_lease()),
    ("account", "POST", SECRETS, a_secret()),
    ("granted", None, None, None),
    ("account", "GET", f"{SECRETS}/s", None),
    ("account", "PUT", f"{SECRETS}/s", a_secret()),
    ("account", "POST", SECRETS, a_secret(resourceVersion="7")),
    ("account", "POST", SECRETS, a_secret({"v": "%"})),
    ("account", "POST", SECRETS, a_secret({"a/b": "AAAA"})),
    ("account", "POST", SECRETS, a_secret(name="S_")),
    ("account", "POST", SECRETS, a_lease()),
    ("account", "POST", SECRETS, a_secret()),
    ("account", "POST", SECRETS, a_secret()),
    ("account", "PUT", f"{SECRETS}/s", a_secret(resourceVersion="1")),
    ("account", "PUT", f"{SECRETS}/s", a_secret(resourceVersion="$VERSION")),
    ("account", "PUT", f"{SECRETS}/s", a_secret()),
    ("account", "PUT", f"{SECRETS}/s", a_secret(name="other")),
    ("account", "PUT", f"{SECRETS}/s", {**a_secret(), "type": "example.com/other"}),
    ("account", "GET", f"{LEASES}/l", None),
    ("account", "POST", LEASES, a_lease(leaseDurationSeconds=0)),
    ("account", "POST", LEASES, a_lease(renewTime="2026-01-01T00:00:00Z")),
    ("account", "POST", LEASES, a_lease(renewTime="2026-01-01T00:00:00.000Z")),
    ("account", "POST", LEASES, a_lease(renewTime="yesterday")),
    ("account", "POST", LEASES, a_lease(leaseTransitions=-1)),
    ("account", "PUT", f"{LEASES}/l", a_lease("7")),
    ("account", "PUT", f"{LEASES}/l", a_lease()),
    ("account", "POST", LEASES, a_lease()),
    ("account", "PUT", f"{LEASES}/l", a_lease("1")),
    ("account", "PUT", f"{LEASES}/l", a_lease()),
    ("account", "PUT", f"{LEASES}/l", a_lease("$VERSION", holderIdentity=None)),
    ("account", "PUT", f"{LEASES}/l", a_lease("$VERSION", holderIdentity="two")),
    ("account", "DELETE", f"{LEASES}/l", None),
]


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("this looks into /proc: run it on Linux")
    main()

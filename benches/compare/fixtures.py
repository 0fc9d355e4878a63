"""The environment of the proxies: certificates, the upstream, the token endpoint, free ports."""

import contextlib
import socket
import subprocess
import urllib.request

from machine import GENERATOR_CORE
from processes import Program, eventually

# The beginning of every token; the upstream checks that it arrives.
TOKEN_START = "bench-token-"
STATIC_TOKEN = f"{TOKEN_START}of-a-length-that-is-usual-0123456789abcdef"
CALLER_KEY = "bench-caller-key-of-a-usual-length-0123456789"
CLIENT_SECRET = "bench-client-secret"
LARGE_BYTES = 1024 * 1024


def free_ports(count):
    """Returns different ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Certificates:
    """A CA and one certificate for localhost, ECDSA P-256 as on most servers."""

    def __init__(self, directory):
        self.ca = directory / "ca.pem"
        self.cert = directory / "server.pem"
        self.key = directory / "server.key"
        self.both = directory / "server-both.pem"  # the form for HAProxy
        extensions = directory / "extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split()
        for command in (
            ["req", "-x509", *curve, "-keyout", directory / "ca.key", "-out", self.ca, "-days", "30",
             "-subj", "/CN=bench authority", "-addext", "keyUsage=critical,keyCertSign"],
            ["req", *curve, "-keyout", self.key, "-out", directory / "server.csr", "-subj", "/CN=localhost"],
            ["x509", "-req", "-in", directory / "server.csr", "-CA", self.ca, "-CAkey", directory / "ca.key",
             "-CAcreateserial", "-out", self.cert, "-days", "30", "-extfile", extensions],
        ):
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True, timeout=30)
        self.both.write_text(self.cert.read_text() + self.key.read_text())


class Upstream:
    """The vendor's server, and its token endpoint: nginx, one worker, on the generator's core.

    /vendor/check returns whether a credential arrived; requests and connections are counted. Every
    token is a new one; their lifetime can be set to two seconds instead of an hour, and the token
    endpoint can be made to hang.
    """

    def __init__(self, nginx, certificates, directory):
        if nginx.missing():
            raise SystemExit("nginx, which serves as the upstream, is missing: see the output of setup.sh above")
        self.port, self.tls_port, self._status_port, token_port = free_ports(4)
        self.token_url = f"http://127.0.0.1:{token_port}/token"
        # The kernel establishes connections to it, and nothing ever responds.
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=1024)
        # Files whose existence changes the behaviour.
        self._short, self._hang = directory / "short-lived", directory / "hang"
        (directory / "files").mkdir()
        (directory / "files" / "large").write_bytes(b"0123456789abcde\n" * (LARGE_BYTES // 16))
        (directory / "files" / "posted").write_text("posted\n")
        configuration = directory / "upstream.conf"
        configuration.write_text(self._configuration(certificates, token_port, directory))
        self._program = Program(
            "upstream",
            [nginx.binary(), "-e", "stderr", "-c", configuration],
            GENERATOR_CORE,
            GENERATOR_CORE,
            directory,
        )
        try:
            eventually(self._responds, 10, "the upstream's first response")
        except TimeoutError as error:
            self._program.end()
            raise RuntimeError(f"{error}; nginx reports: {self._program.last_errors()}") from error

    def _configuration(self, certificates, token_port, directory):
        return f"""
daemon off;
user root;
worker_processes 1;
pid {directory}/upstream.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxied;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    client_body_buffer_size 32k;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    sendfile on;
    map $http_authorization $credential {{ default absent; "~^Bearer {TOKEN_START}" present; }}
    map $http_x_countersign_key $key {{ default seen; "" unseen; }}
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        listen 127.0.0.1:{self.tls_port} ssl backlog=4096;
        ssl_certificate {certificates.cert};
        ssl_certificate_key {certificates.key};
        ssl_session_cache shared:sessions:10m;
        ssl_protocols TLSv1.2 TLSv1.3;
        default_type application/json;
        location ~ ^/vendor[0-9]*/small$ {{
            return 200 '{{"id":"0f8fad5b-d9cb-469f-a165-70867728950e","status":"issued","serial":"0123456789"}}';
        }}
        location = /vendor/check {{ default_type text/plain; return 200 "$credential $key"; }}
        # Not for all locations: it would cache the existence of files that come and go for a minute.
        location = /vendor/large {{
            alias {directory}/files/large;
            open_file_cache max=10 inactive=1h;
        }}
        # The mirror makes nginx read the body, before the POST on a file becomes a 405.
        location = /vendor/post {{
            alias {directory}/files/posted;
            open_file_cache max=10 inactive=1h;
            mirror /nothing;
            error_page 405 =200 /posted;
        }}
        location = /posted {{ return 200 '{{"id":"0f8fad5b","status":"accepted"}}'; }}
        location = /nothing {{ internal; return 204; }}
    }}
    server {{
        listen 127.0.0.1:{self._status_port};
        location / {{ stub_status; }}
    }}
    server {{
        listen 127.0.0.1:{token_port} backlog=4096;
        default_type application/json;
        location = /token {{
            if (-f {self._hang}) {{ rewrite ^ /silent last; }}
            if (-f {self._short}) {{ return 200 '{_token_response(2)}'; }}
            return 200 '{_token_response(3600)}';
        }}
        location = /silent {{ internal; proxy_pass http://127.0.0.1:{self._silent.getsockname()[1]}; }}
    }}
}}
"""

    def _responds(self):
        try:
            return self.counts()
        except OSError:
            if self._program.ended():
                raise RuntimeError(f"the upstream ended: {self._program.last_errors()}") from None
            return None

    def counts(self):
        """Returns connections accepted and requests begun so far, without those of this method."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status_port}/", timeout=10) as response:
            lines = response.read().decode().splitlines()
        accepted, _handled, requests = map(int, lines[2].split())
        self._asked = getattr(self, "_asked", 0) + 1
        return accepted - self._asked, requests - self._asked

    def short_lived_tokens(self, enabled):
        _mark(self._short, enabled)

    def hanging_token_endpoint(self, enabled):
        """Closes the waiting connections when it is disabled."""
        _mark(self._hang, enabled)
        if not enabled:
            self._silent.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._silent.accept()[0].close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._program.end()
        self._silent.close()


def _token_response(lifetime_seconds):
    # nginx's 32 random digits make each token a new one.
    token = f"{TOKEN_START}$request_id-0123456789"
    return f'{{"access_token":"{token}","token_type":"Bearer","expires_in":{lifetime_seconds}}}'


def _mark(path, present):
    if present:
        path.touch()
    else:
        path.unlink(missing_ok=True)

"""What stands around the proxies: certificates, the upstream, the token endpoint, free ports."""

import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

from processes import Program, eventually

# Every proxy sends a token that begins so; the upstream looks for it.
TOKEN_START = "bench-token-"
STATIC_TOKEN = f"{TOKEN_START}of-a-length-that-is-usual-0123456789abcdef"
CALLER_KEY = "bench-caller-key-of-a-usual-length-0123456789"
CLIENT_SECRET = "bench-client-secret"
LARGE_BYTES = 1024 * 1024


def free_ports(count):
    """Ports free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Certificates:
    """An authority and one certificate for localhost, ECDSA P-256: what most servers have."""

    def __init__(self, directory):
        self.ca = directory / "ca.pem"
        self.cert = directory / "server.pem"
        self.key = directory / "server.key"
        self.both = directory / "server-both.pem"  # as HAProxy wants it
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
    """The vendor's server: nginx, one worker, on the generator's core.

    It says at /vendor/check whether a credential arrived, and counts requests and connections.
    """

    def __init__(self, nginx, core, certificates, directory):
        self.port, self.tls_port, self._status_port, self.token_port = free_ports(4)
        (directory / "files").mkdir()
        (directory / "files" / "large").write_bytes(b"0123456789abcde\n" * (LARGE_BYTES // 16))
        (directory / "files" / "posted").write_text("posted\n")
        configuration = directory / "upstream.conf"
        configuration.write_text(self._configuration(certificates, directory))
        self._program = Program(
            "upstream", [nginx, "-e", "stderr", "-c", configuration], core, core, directory
        )
        try:
            eventually(self._answers, 10, "the upstream's first answer")
        except TimeoutError as error:
            self._program.end()
            raise RuntimeError(f"{error}; nginx says: {self._program.complaint()}") from error

    def _configuration(self, certificates, directory):
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
    open_file_cache max=10 inactive=1h;
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
        location = /vendor/large {{ alias {directory}/files/large; }}
        # The mirror is what reads the body; it answers nothing. Only then a POST on a file becomes a 405.
        location = /vendor/post {{
            alias {directory}/files/posted;
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
    # For many vendors at once, where ours in Python would be the slow one.
    server {{
        listen 127.0.0.1:{self.token_port} backlog=4096;
        location / {{
            default_type application/json;
            return 200 '{{"access_token":"{STATIC_TOKEN}","token_type":"Bearer","expires_in":3600}}';
        }}
    }}
}}
"""

    def _answers(self):
        try:
            return self.counts()
        except OSError:
            if self._program.ended():
                raise RuntimeError(f"the upstream ended: {self._program.complaint()}") from None
            return None

    def counts(self):
        """Connections accepted and requests begun so far, those of this question left out."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status_port}/", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        accepted, _handled, requests = map(int, lines[2].split())
        self._asked = getattr(self, "_asked", 0) + 1
        return accepted - self._asked, requests - self._asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._program.end()


class TokenEndpoint:
    """An OAuth2 token endpoint for client credentials that can be told to hang."""

    def __init__(self):
        self.lifetime_seconds = 3600
        self.hanging = False
        self.issued = 0
        self.asked = 0
        self._stopping = threading.Event()
        endpoint = self

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                endpoint._answer(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Answer)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/token"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, request):
        self.asked += 1
        form = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        while self.hanging and not self._stopping.is_set():
            time.sleep(0.05)
        if urllib.parse.parse_qs(form.decode()).get("grant_type") == ["client_credentials"]:
            self.issued += 1
            token = f"{TOKEN_START}{self.issued:08}-{STATIC_TOKEN[len(TOKEN_START) + 9:]}"
            status, answer = 200, {
                "access_token": token, "token_type": "Bearer", "expires_in": self.lifetime_seconds,
            }
        else:
            status, answer = 400, {"error": "unsupported_grant_type"}
        body = json.dumps(answer).encode()
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except OSError:
            pass  # whoever asked has given up

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

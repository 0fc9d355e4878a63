"""The proxies that are compared: their configuration for a scenario, and their start.

Each has one worker, one listener and one upstream, keeps as many connections to the upstream open as
it has callers, adds a credential to every request, and, if it can, writes an access log to a pipe that
is read. All other settings are defaults.
"""

import hashlib
import pathlib
import subprocess
from dataclasses import dataclass

from machine import BUILT, GENERATOR_CORE, PROXY_CORE, ROOT, TOOLS
from processes import Program
from fixtures import CALLER_KEY, CLIENT_SECRET, STATIC_TOKEN, free_ports


@dataclass
class Place:
    """Everything that a proxy's configuration refers to."""

    port: int
    admin_port: int
    caller: str  # as in Scenario
    upstream_tls: bool
    upstream_port: int  # the one for `upstream_tls`
    token_url: str
    certificates: object
    directory: pathlib.Path
    connections: int  # of callers, at most

    def caller_tls(self):
        return self.caller != "h1"

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path


class Proxy:
    """A kind of proxy. `credential` describes what it adds, for the tables."""

    name = title = credential = ""
    # Expected response of /vendor/check: whether the credential and the caller's key arrive.
    arrives = "present unseen"

    def binary(self):
        raise NotImplementedError

    def version(self):
        raise NotImplementedError

    def command(self, place):
        """Writes the configuration and returns the command and its environment."""
        raise NotImplementedError

    def cannot(self, scenario):
        """Returns why it cannot take part in a scenario, or None."""
        return None

    def missing(self):
        """Returns why it cannot run at all, or None."""
        return None if self.binary().exists() else "not installed: see the output of setup.sh"

    def start(self, place):
        command, environment = self.command(place)
        return Program(self.name, command, PROXY_CORE, GENERATOR_CORE, place.directory, environment)

    def _first_line(self, *arguments):
        ran = subprocess.run(
            [self.binary(), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
        return (ran.stdout + ran.stderr).strip().splitlines()[0]


class BarePingora(Proxy):
    name = "bare"
    title = "bare pingora"
    credential = "static header"
    arrives = "present seen"

    def binary(self):
        return BUILT / "examples" / "bare_pingora"

    def missing(self):
        return None if self.binary().exists() else "not built"

    def version(self):
        lock = (ROOT / "Cargo.lock").read_text()
        return "pingora " + lock.split('name = "pingora"\nversion = "')[1].split('"')[0]

    def command(self, place):
        arguments = []
        if place.caller_tls():
            arguments += ["--tls", place.certificates.cert, place.certificates.key]
        arguments += [f"127.0.0.1:{place.port}", f"127.0.0.1:{place.upstream_port}"]
        if place.upstream_tls:
            arguments += ["localhost", place.certificates.ca]
        return [self.binary(), *arguments], None


class Countersign(Proxy):
    name = "countersign"
    title = "Countersign"
    credential = "live OAuth2 token"

    def binary(self):
        return BUILT / "countersign"

    def missing(self):
        return None if self.binary().exists() else "not built"

    def version(self):
        return self._first_line("--version")

    def command(self, place):
        return self._serve(place.write("countersign.yaml", self.configuration(place)))

    def _serve(self, configuration):
        return [self.binary(), "serve", "--config", configuration], {"RUST_LOG": "warn"}

    def start_with(self, place, configuration):
        """Starts it with an existing configuration."""
        command, environment = self._serve(configuration)
        return Program(self.name, command, PROXY_CORE, GENERATOR_CORE, place.directory, environment)

    def configuration(self, place, vendors=("vendor",)):
        """Returns a configuration with one caller, who may call each of `vendors`, each with a login."""
        secret = place.write("client-secret", CLIENT_SECRET)
        secret.chmod(0o600)
        tls = ""
        if place.caller_tls():
            tls = f"\n    tls: {{ cert: {place.certificates.cert}, key: {place.certificates.key} }}"
        host = "https://localhost" if place.upstream_tls else "http://127.0.0.1"
        text = f"""
listeners:
  - bind: 127.0.0.1:{place.port}{tls}
admin: {{ bind: 127.0.0.1:{place.admin_port} }}
threads: 1
drain: {{ delay: 0s, timeout: 1s }}
callers:
  bench:
    api_key: {{ sha256: "{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}" }}
    allow: [ {", ".join(vendors)} ]
vendors:
"""
        for vendor in vendors:
            text += f"""
  {vendor}:
    upstream: {host}:{place.upstream_port}/{vendor}
    allow_plaintext: true
    ca: {place.certificates.ca}
    auth:
      client_credentials:
        token_url: {place.token_url}
        client_id: bench
        client_secret: {{ file: {secret} }}
"""
        return text


class AnotherBuild(Countersign):
    """The program at `path`, to measure the effect of a change or of a compiler option."""

    def __init__(self, name, path):
        self.name, self.path = name, path
        self.title = f"Countersign, {name}"

    def binary(self):
        return self.path

    def missing(self):
        return None if self.path.exists() else f"{self.path} does not exist"


class ByProfile:
    """Mixin for the same program built with profile-guided optimization."""

    def binary(self):
        return BUILT.parent / "pgo" / super().binary().name


class BarePingoraByProfile(ByProfile, BarePingora):
    name = "bare-pgo"
    title = "bare pingora, PGO"

    def missing(self):
        return None if self.binary().exists() else "not built: make release-pgo ARGS=--with-yardstick"


class CountersignByProfile(ByProfile, Countersign):
    name = "countersign-pgo"
    title = "Countersign, PGO"

    def missing(self):
        return None if self.binary().exists() else "not built: make release-pgo"


class Nginx(Proxy):
    name = "nginx"
    title = "nginx"
    credential = "static header"

    def binary(self):
        return TOOLS / "nginx" / "usr" / "sbin" / "nginx"

    def version(self):
        return self._first_line("-v").removeprefix("nginx version: ")

    def command(self, place):
        tls = http2 = ""
        if place.caller_tls():
            tls = f"ssl_certificate {place.certificates.cert}; ssl_certificate_key {place.certificates.key};"
            http2 = "ssl http2" if place.caller == "h2" else "ssl"
        # Without this, bodies larger than its buffers are written to disk; the others never do that.
        configuration = place.write("nginx.conf", f"""
daemon off;
user root;
worker_processes 1;
pid {place.directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections {2 * place.connections + 64}; }}
http {{
    access_log /dev/stdout combined;
    client_body_temp_path {place.directory}/body;
    proxy_temp_path {place.directory}/proxied;
    fastcgi_temp_path {place.directory}/fastcgi;
    scgi_temp_path {place.directory}/scgi;
    uwsgi_temp_path {place.directory}/uwsgi;
    client_body_buffer_size 32k;
    proxy_max_temp_file_size 0;
    keepalive_requests 100000000;
    upstream vendor {{
        server 127.0.0.1:{place.upstream_port};
        keepalive 1024;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{place.port} {http2} backlog=4096;
        {tls}
        location / {{
            proxy_pass {"https" if place.upstream_tls else "http"}://vendor;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_set_header X-Countersign-Key "";
            proxy_set_header Authorization "Bearer {STATIC_TOKEN}";
            proxy_ssl_trusted_certificate {place.certificates.ca};
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
        }}
    }}
}}
""")
        return [self.binary(), "-e", "stderr", "-c", configuration], None


class Haproxy(Proxy):
    name = "haproxy"
    title = "HAProxy"
    credential = "static header"

    def binary(self):
        return TOOLS / "haproxy" / "usr" / "sbin" / "haproxy"

    def version(self):
        return " ".join(self._first_line("-v").split()[:3])

    def command(self, place):
        bind = upstream = ""
        if place.caller_tls():
            alpn = "h2,http/1.1" if place.caller == "h2" else "http/1.1"
            bind = f"ssl crt {place.certificates.both} alpn {alpn}"
        if place.upstream_tls:
            upstream = f"ssl verify required ca-file {place.certificates.ca} sni str(localhost)"
        configuration = place.write("haproxy.cfg", f"""
global
    nbthread 1
    no strict-limits
    maxconn {place.connections}
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend callers
    bind 127.0.0.1:{place.port} {bind}
    default_backend vendor
backend vendor
    http-request del-header X-Countersign-Key
    http-request set-header Authorization "Bearer {STATIC_TOKEN}"
    server vendor 127.0.0.1:{place.upstream_port} {upstream}
""")
        return [self.binary(), "-db", "-f", configuration], None


class HaproxyTcp(Haproxy):
    """The lower bound: it relays bytes without parsing them."""

    name = "haproxy-tcp"
    title = "HAProxy, TCP mode"
    credential = "none: parses nothing"
    arrives = "absent seen"

    def cannot(self, scenario):
        return None if scenario.plaintext() else "a TCP relay does not terminate TLS"

    def command(self, place):
        configuration = place.write("haproxy-tcp.cfg", f"""
global
    nbthread 1
    no strict-limits
    maxconn {place.connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen callers
    bind 127.0.0.1:{place.port}
    server vendor 127.0.0.1:{place.upstream_port}
""")
        return [self.binary(), "-db", "-f", configuration], None


class Envoy(Proxy):
    name = "envoy"
    title = "Envoy"
    credential = "live OAuth2 token"

    def binary(self):
        found = list(TOOLS.glob("envoy/lib/python3*/site-packages/envoy/_bin/envoy"))
        return found[0] if found else TOOLS / "envoy" / "bin" / "envoy"

    def version(self):
        words = self._first_line("--version").replace("/", " ").split()
        return "Envoy " + next((word for word in words if word.count(".") == 2), "?")

    def command(self, place):
        listener_tls = upstream_tls = ""
        if place.caller_tls():
            alpn = "[h2]" if place.caller == "h2" else "[http/1.1]"
            listener_tls = f"""
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: {alpn}
            tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
            tls_certificates:
            - certificate_chain: {{ filename: {place.certificates.cert} }}
              private_key: {{ filename: {place.certificates.key} }}"""
        if place.upstream_tls:
            upstream_tls = f"""
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: localhost
        common_tls_context:
          tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
          validation_context:
            trusted_ca: {{ filename: {place.certificates.ca} }}
            match_typed_subject_alt_names:
            - {{ san_type: DNS, matcher: {{ exact: localhost }} }}"""
        token_port = place.token_url.rpartition(":")[2].partition("/")[0]
        configuration = place.write("envoy.yaml", f"""
static_resources:
  secrets:
  - name: client-secret
    generic_secret: {{ secret: {{ inline_string: {CLIENT_SECRET} }} }}
  listeners:
  - name: callers
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {place.port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: callers
          codec_type: AUTO
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
          http_filters:
          - name: envoy.filters.http.credential_injector
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
              overwrite: true
              credential:
                name: envoy.http.injected_credentials.oauth2
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2
                  token_fetch_retry_interval: 1s
                  token_endpoint: {{ cluster: tokens, uri: "{place.token_url}", timeout: 3s }}
                  client_credentials:
                    client_id: bench
                    client_secret: {{ name: client-secret }}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: vendor
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: vendor }}
                request_headers_to_remove: [ x-countersign-key ]{listener_tls}
  clusters:
  - name: vendor
    type: STATIC
    load_assignment:
      cluster_name: vendor
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {place.upstream_port} }} }} }}{upstream_tls}
  - name: tokens
    type: STATIC
    load_assignment:
      cluster_name: tokens
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {token_port} }} }} }}
""")
        return [
            self.binary(), "-c", configuration, "--concurrency", "1", "--disable-hot-restart",
            "--log-level", "error",
        ], None


class Caddy(Proxy):
    name = "caddy"
    title = "Caddy"
    credential = "static header"

    def binary(self):
        return TOOLS / "caddy" / "usr" / "bin" / "caddy"

    def version(self):
        return "Caddy " + self._first_line("version").split()[0]

    def command(self, place):
        tls, scheme, upstream_tls = "", "http", ""
        if place.caller_tls():
            tls = f"tls {place.certificates.cert} {place.certificates.key}"
            scheme = "https"
        if place.upstream_tls:
            upstream_tls = f"""
            tls
            tls_server_name localhost
            tls_trusted_ca_certs {place.certificates.ca}
            versions 1.1"""
        configuration = place.write("Caddyfile", f"""
{{
    admin off
    auto_https off
    default_sni localhost
    servers {{
        protocols h1 {"h2" if place.caller == "h2" else ""}
    }}
}}
{scheme}://:{place.port} {{
    {tls}
    log {{
        output stdout
        format json
    }}
    reverse_proxy 127.0.0.1:{place.upstream_port} {{
        header_up Host localhost
        header_up Authorization "Bearer {STATIC_TOKEN}"
        header_up -X-Countersign-Key
        transport http {{
            keepalive_idle_conns_per_host 1024{upstream_tls}
        }}
    }}
}}
""")
        return [self.binary(), "run", "--adapter", "caddyfile", "--config", configuration], {
            "GOMAXPROCS": "1",
            "HOME": str(place.directory),
            "XDG_DATA_HOME": str(place.directory),
            "XDG_CONFIG_HOME": str(place.directory),
        }


YARDSTICK = BarePingora.name
ALL = [BarePingora, BarePingoraByProfile, Countersign, CountersignByProfile, Nginx, Haproxy, HaproxyTcp, Envoy, Caddy]


def place_for(scenario, upstream, certificates, directory, connections=1024):
    """Returns a proxy's environment in a scenario, with its own ports and directory."""
    directory.mkdir(parents=True)
    port, admin_port = free_ports(2)
    return Place(
        port=port,
        admin_port=admin_port,
        caller=scenario.caller,
        upstream_tls=scenario.upstream_tls,
        upstream_port=upstream.tls_port if scenario.upstream_tls else upstream.port,
        token_url=upstream.token_url,
        certificates=certificates,
        directory=directory,
        connections=connections,
    )

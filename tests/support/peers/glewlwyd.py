"""Glewlwyd, configured for one person and one client whose refresh tokens work once.

Started by a test as `python3 glewlwyd.py '{"root": …}'`; showing a refresh token again costs the
client all of its tokens.

stdout: one JSON line, {"event": "listening", "port": N, "cookie": "…"}: the cookie is the session
of the person, who has consented already. Ends, and Glewlwyd with it, when its standard input does.
"""

import http.client
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import time

given = json.loads(sys.argv[1])
root, home = given["root"], given["home"]


def main():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(f"{root}/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3") as script:
        database = sqlite3.connect(f"{home}/glewlwyd.db")
        database.executescript(script.read())
        database.close()
    with open(f"{home}/glewlwyd.conf", "w") as file:
        file.write(configuration(port))
    server = subprocess.Popen(
        [f"{root}/usr/bin/glewlwyd", "--config-file", f"{home}/glewlwyd.conf"],
        stdout=sys.stderr,
    )
    try:
        cookie = set_up(port, server)
        told = {"event": "listening", "port": port, "cookie": cookie}
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    finally:
        server.kill()
        server.wait()


def configuration(port):
    modules = f"{root}/usr/lib/glewlwyd"
    return f"""
port = {port}
bind_address = "127.0.0.1"
external_url = "https://localhost:{port}"
login_url = "login.html"
api_prefix = "api"
cookie_secure = 0
log_mode = "console"
log_level = "INFO"
session_expiration = 3600
session_key = "session"
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "{modules}/user"
client_module_path = "{modules}/client"
user_auth_scheme_module_path = "{modules}/scheme"
plugin_module_path = "{modules}/plugin"
use_secure_connection = true
secure_connection_key_file = "{given["key"]}"
secure_connection_pem_file = "{given["cert"]}"
hash_algorithm = "SHA512"
database = {{ type = "sqlite3", path = "{home}/glewlwyd.db" }}
"""


def set_up(port, server):
    call = Caller(port)
    for _ in range(200):
        if server.poll() is not None:
            raise SystemExit("glewlwyd ended at once")
        try:
            # What its Debian package installs; nobody but this test reaches it.
            call("POST", "/api/auth/", {"username": "admin", "password": "password"})
            break
        except OSError:
            time.sleep(0.05)
    plugin = {
        "module": "oidc",
        "name": "oidc",
        "display_name": "oidc",
        "parameters": {
            "iss": f"https://localhost:{port}/api/oidc",
            "jwt-type": "sha",
            "jwt-key-size": "256",
            "key": "for-tests",
            "access-token-duration": given["accessTokenSeconds"],
            "refresh-token-duration": 3600,
            "code-duration": 60,
            "refresh-token-rolling": True,
            "refresh-token-one-use": "always",
            "allow-non-oidc": True,
            "auth-type-code-enabled": True,
            "auth-type-refresh-enabled": True,
            "pkce-allowed": True,
            "subject-type": "public",
            "allowed-scope": ["openid"],
        },
    }
    call("POST", "/api/mod/plugin/", plugin)
    client = {
        "client_id": "person",
        "name": "person",
        "enabled": True,
        "confidential": True,
        "password": given["secret"],
        "redirect_uri": given["redirectUris"],
        "authorization_type": ["code", "refresh_token"],
        "token_endpoint_auth_method": ["client_secret_post", "client_secret_basic"],
        "scope": [],
    }
    call("POST", "/api/client/", client)
    everything = {"username": "admin", "enabled": True, "scope": ["g_admin", "g_profile", "openid"]}
    call("PUT", "/api/user/admin", everything)
    call("PUT", "/api/auth/grant/person", {"scope": "openid"})
    return call.cookie


class Caller:
    """Keeps the session's cookie."""

    def __init__(self, port):
        self.port, self.cookie = port, ""
        self.context = ssl.create_default_context(cafile=given["ca"])

    def __call__(self, method, path, body):
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=self.context, timeout=20
        )
        headers = {"Content-Type": "application/json", "Cookie": self.cookie}
        connection.request(method, path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise SystemExit(f"{method} {path}: {answer.status} {text}")
        cookie = answer.getheader("Set-Cookie")
        if cookie:
            self.cookie = cookie.partition(";")[0]
        connection.close()


main()

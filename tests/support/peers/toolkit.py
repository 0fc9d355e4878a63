"""django-oauth-toolkit in front of a small API that accepts only its tokens.

Started by a test as `python toolkit.py '{"cert": …}'`; the settings are below. A refresh token is
replaced at each use, and showing one again costs its whole family.

stdout: one JSON line per event. The first is {"event": "listening", "port": N}, then one "token"
line per call of the token endpoint. Ends when its standard input does, so a test that dies leaves
no server behind.
"""

import json
import os
import ssl
import sys
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.conf import settings
from django.http import JsonResponse
from django.urls import include, path

given = json.loads(sys.argv[1])

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": given["database"],
            # Every request has a thread; writers wait for each other.
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
    },
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "oauth2_provider",
    ],
    MIDDLEWARE=[
        # Announces the length of every answer.
        "django.middleware.common.CommonMiddleware",
        f"{__name__}.logged_in",
        f"{__name__}.told",
    ],
    OAUTH2_PROVIDER={
        "ACCESS_TOKEN_EXPIRE_SECONDS": given["accessTokenSeconds"],
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "PKCE_REQUIRED": True,
        "SCOPES": {"read": "read", "write": "write"},
    },
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for-tests",
    USE_TZ=True,
)


def tell(event, **fields):
    # One write: several threads tell.
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def logged_in(get_response):
    """The person at the browser has logged in already, and is asked nothing."""

    def middleware(request):
        from django.contrib.auth.models import User

        request.user = User.objects.get(username="person")
        return get_response(request)

    return middleware


def told(get_response):
    def middleware(request):
        fields = request.POST.dict() if request.path == "/token/" else {}
        response = get_response(request)
        if request.path == "/token/":
            told = {"grant": fields.get("grant_type"), "status": response.status_code}
            if response.status_code != 200:
                told["error"] = json.loads(response.content).get("error")
            tell("token", **told)
        return response

    return middleware


def whoami(request):
    from oauth2_provider.models import AccessToken

    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    found = AccessToken.objects.filter(token=token).first() if scheme == "Bearer" else None
    if found is None or not found.is_valid():
        detail = "Authentication credentials were not provided."
        return JsonResponse({"detail": detail}, status=401)
    return JsonResponse({"client": found.application.name, "scope": found.scope})


django.setup()

urlpatterns = [
    path("", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("hr/v1/whoami/", whoami),
]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def process_request_thread(self, request, address):
        # The handshake is part of the connection's own thread.
        try:
            tls = context.wrap_socket(request, server_side=True)
        except OSError:
            return self.shutdown_request(request)
        super().process_request_thread(tls, address)

    def handle_error(self, request, address):
        # A proxy that was killed has left its connection.
        print(f"{address}: {sys.exc_info()[1]}", file=sys.stderr)


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def until_stdin_ends():
    sys.stdin.read()
    os._exit(0)


def main():
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from oauth2_provider.models import Application

    call_command("migrate", verbosity=0)
    person = User.objects.create(username="person")
    both = {"user": person, "client_secret": given["secret"], "client_type": "confidential"}
    Application.objects.create(
        name="machine",
        client_id="machine",
        authorization_grant_type="client-credentials",
        **both,
    )
    Application.objects.create(
        name="person",
        client_id="person",
        authorization_grant_type="authorization-code",
        redirect_uris=" ".join(given["redirectUris"]),
        skip_authorization=True,
        **both,
    )
    server = make_server(
        "127.0.0.1", 0, get_wsgi_application(), server_class=Server, handler_class=Quiet
    )
    tell("listening", port=server.server_port)
    server.serve_forever()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(given["cert"], given["key"])
threading.Thread(target=until_stdin_ends, daemon=True).start()
main()

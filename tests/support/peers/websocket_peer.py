"""A WebSocket server that repeats what it hears, and a client of it.

    websocket_peer.py serve               prints its port; ends with its standard input
    websocket_peer.py talk URL            a conversation; prints what it got as JSON
    websocket_peer.py stay URL SILENCE    holds a connection, pinging every SILENCE seconds (0: never),
                                          says "open" and then for how long it was
"""

import json
import sys
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

ALIKE = {"ping_interval": None, "max_size": None, "compression": None}


def listen():
    def echo(socket):
        for message in socket:
            if message == "whoami":
                message = socket.request.headers.get("Authorization", "")
            socket.send(message)

    with serve(echo, "127.0.0.1", 0, **ALIKE) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.socket.getsockname()[1], flush=True)
        sys.stdin.read()


def talk(url):
    # Some clients say that there is no body, which ends the request and not what follows it.
    no_body = {"Content-Length": "0"}
    with connect(url, proxy=None, additional_headers=no_body, **ALIKE) as socket:
        socket.send("whoami")
        got = {"whoami": socket.recv(10), "via": socket.response.headers.get("Via")}
        frame = bytes(range(256)) * 8192
        socket.send(frame)
        got["big"] = socket.recv(20) == frame
        got["pong"] = socket.ping().wait(10)
        many = [str(number) for number in range(500)]
        for word in many:
            socket.send(word)
        got["many"] = [socket.recv(10) for _ in many] == many
    got["closed"] = socket.close_code
    print(json.dumps(got))


def stay(url, silence):
    silence = float(silence)
    with connect(url, proxy=None, **ALIKE) as socket:
        began = time.monotonic()
        print("open", flush=True)
        if silence:
            def ping():
                try:
                    while True:
                        time.sleep(silence)
                        socket.ping()
                except ConnectionClosed:
                    pass

            threading.Thread(target=ping, daemon=True).start()
        try:
            socket.recv()
        except ConnectionClosed:
            pass
        print(time.monotonic() - began, flush=True)


{"serve": listen, "talk": talk, "stay": stay}[sys.argv[1]](*sys.argv[2:])

"""A gRPC server behind TLS, and a client of it, with messages that are plain bytes.

    grpc_peer.py serve CERT KEY           prints its port; ends with its standard input
    grpc_peer.py call TARGET [CA]         prints what it got as JSON; plaintext without CA
    grpc_peer.py refused TARGET KEY METHOD…   the same of calls that are refused, each of a KEY, `-`: without
"""

import json
import os
import sys
import threading
import time
from concurrent import futures

import grpc

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CANCELLED = threading.Event()


def serve(cert, key):
    def whoami(request, context):
        return dict(context.invocation_metadata()).get("authorization", "").encode()

    def echo(request, context):
        return request

    def fail(request, context):
        context.set_trailing_metadata((("x-detail", "kept"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no: 100 % é")

    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def total(requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def talk(requests, context):
        for request in requests:
            yield request

    def wait(request, context):
        context.add_callback(CANCELLED.set)
        CANCELLED.wait(30)
        return b""

    def was_cancelled(request, context):
        cancelled = CANCELLED.wait(20)
        CANCELLED.clear()
        return b"yes" if cancelled else b"no"

    handlers = {
        "Whoami": grpc.unary_unary_rpc_method_handler(whoami),
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8), options=UNLIMITED)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", handlers)])
    with open(key, "rb") as key, open(cert, "rb") as cert:
        credentials = grpc.ssl_server_credentials([(key.read(), cert.read())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0)


def call(target, ca=None):
    if ca:
        with open(ca, "rb") as ca:
            credentials = grpc.ssl_channel_credentials(ca.read())
        channel = grpc.secure_channel(target, credentials, UNLIMITED)
    else:
        channel = grpc.insecure_channel(target, UNLIMITED)

    def unary(name, request, timeout=20):
        return channel.unary_unary(f"/t.T/{name}")(request, timeout=timeout)

    def refused(name, timeout=20):
        try:
            unary(name, b"", timeout)
        except grpc.RpcError as error:
            return error
        return None

    got = {"whoami": unary("Whoami", b"").decode(), "empty": unary("Echo", b"").decode()}
    big = bytes(range(256)) * 32768
    got["big"] = unary("Echo", big) == big
    failed = refused("Fail")
    got["failed"] = [failed.code().name, failed.details(), dict(failed.trailing_metadata())["x-detail"]]
    numbers = channel.unary_stream("/t.T/Count")(b"1000", timeout=20)
    got["count"] = [int(number) for number in numbers] == list(range(1000))
    got["total"] = channel.stream_unary("/t.T/Total")(iter([big] * 4), timeout=20).decode()

    # Each word waits for the answer to the one before: nothing may be held back.
    turn = threading.Semaphore(0)

    def words():
        # What follows the last "S" could be the rest of the credential.
        for word in [b"a", b"S", b"Bearer ", b"Bearer S", b"z"]:
            yield word
            turn.acquire()

    heard = []
    for word in channel.stream_stream("/t.T/Talk")(words(), timeout=20):
        heard.append(word.decode())
        turn.release()
    got["talk"] = heard

    began = time.monotonic()
    got["deadline"] = refused("Wait", 0.5).code().name
    got["in_time"] = time.monotonic() - began < 10
    got["cancelled"] = unary("WasCancelled", b"", 25).decode()
    got["no_such"] = refused("Nothing").code().name
    done(channel, got)


def refused(target, key, *methods):
    channel = grpc.insecure_channel(target, UNLIMITED)
    metadata = [] if key == "-" else [("x-countersign-key", key)]
    got = []
    for method in methods:
        calls = [
            channel.unary_unary(method),
            channel.stream_stream(method),
        ]
        for call, request in zip(calls, [b"x" * 100, iter([b"x" * 100])]):
            try:
                answer = call(request, metadata=metadata, timeout=20)
                list(answer) if not isinstance(answer, bytes) else None
                got.append(None)
            except grpc.RpcError as error:
                got.append([error.code().name, error.details()])
    done(channel, got)


def done(channel, got):
    channel.close()
    print(json.dumps(got), flush=True)
    # Threads of the library have kept the interpreter from ending, once in a while.
    os._exit(0)


{"serve": serve, "call": call, "refused": refused}[sys.argv[1]](*sys.argv[2:])

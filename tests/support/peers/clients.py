"""The same calls with Python's HTTP clients.

Run by a test as `python clients.py CLIENT '{"base": …, "key": …, "ca": …}'`; prints what the client
made of the answers as one JSON object, the same for every client.
"""

import asyncio
import json
import ssl
import sys

client, given = sys.argv[1], json.loads(sys.argv[2])
base, key, ca = given["base"], given["key"], given["ca"]
PARTS = [b"a" * 1000, b"b" * 1000, b"c" * 1000]


def parts():
    yield from PARTS


async def parts_in_time():
    for part in PARTS:
        await asyncio.sleep(0)
        yield part


def with_requests():
    import requests
    from concurrent.futures import ThreadPoolExecutor

    session = requests.Session()
    session.verify = ca
    session.trust_env = False
    # What an API client built upon it would have had its vendor's token in.
    session.headers["Authorization"] = f"Bearer {key}"

    def seen(answer):
        return [answer.status_code, answer.text]

    results = {
        "version": "1.1",
        "get": seen(session.get(f"{base}/v/x", params={"a": "1", "b": "ä"})),
        "post": seen(session.post(f"{base}/v/post", json={"n": 1})),
        "stream": seen(session.post(f"{base}/v/stream", data=parts())),
        "put": seen(session.put(f"{base}/v/put", data=b"x" * 300_000)),
        "delete": seen(session.delete(f"{base}/v/delete")),
        "gone": seen(session.get(f"{base}/v/gone?status=404&body=away")),
        "empty": seen(session.get(f"{base}/v/empty?status=204")),
        "gzip": seen(session.get(f"{base}/v/gzip?body=packed&code=gzip")),
        "big": [len(session.get(f"{base}/v/big?size=3000000").content)],
        "redirect": seen(session.get(given["redirect"])),
        "after_head": None,
        "refused": None,
        "many": None,
    }
    head = session.head(f"{base}/v/head?size=12")
    results["after_head"] = [head.status_code, head.headers["content-length"], len(head.content)]
    refused = session.post(f"{base}/nobody/x", data=b"x" * 100_000)
    results["refused"] = [refused.status_code, refused.json()["reason"]]
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda n: session.get(f"{base}/v/many?body={n}").text, range(60))
    results["many"] = list(answers) == [str(n) for n in range(60)]
    return results


async def with_httpx(http2):
    import httpx

    context = ssl.create_default_context(cafile=ca)
    auth = httpx.BasicAuth("anybody", key)
    async with httpx.AsyncClient(
        http1=not http2, http2=http2, verify=context, auth=auth, trust_env=False, timeout=30
    ) as session:

        def seen(answer):
            return [answer.status_code, answer.text]

        first = await session.get(f"{base}/v/x", params={"a": "1", "b": "ä"})
        head = await session.head(f"{base}/v/head?size=12")
        refused = await session.post(f"{base}/nobody/x", content=b"x" * 100_000)
        many = await asyncio.gather(
            *(session.get(f"{base}/v/many?body={n}") for n in range(60))
        )
        follow = {"follow_redirects": True}
        return {
            "version": first.http_version.removeprefix("HTTP/"),
            "get": seen(first),
            "post": seen(await session.post(f"{base}/v/post", json={"n": 1})),
            "stream": seen(await session.post(f"{base}/v/stream", content=parts_in_time())),
            "put": seen(await session.put(f"{base}/v/put", content=b"x" * 300_000)),
            "delete": seen(await session.delete(f"{base}/v/delete")),
            "gone": seen(await session.get(f"{base}/v/gone?status=404&body=away")),
            "empty": seen(await session.get(f"{base}/v/empty?status=204")),
            "gzip": seen(await session.get(f"{base}/v/gzip?body=packed&code=gzip")),
            "big": [len((await session.get(f"{base}/v/big?size=3000000")).content)],
            "redirect": seen(await session.get(given["redirect"], **follow)),
            "after_head": [head.status_code, head.headers["content-length"], len(head.content)],
            "refused": [refused.status_code, refused.json()["reason"]],
            "many": [answer.text for answer in many] == [str(n) for n in range(60)],
        }


async def with_aiohttp():
    import aiohttp

    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context), headers={"X-Countersign-Key": key}
    ) as session:

        async def seen(method, url, **more):
            async with session.request(method, url, **more) as answer:
                return [answer.status, await answer.text()]

        async with session.get(f"{base}/v/x", params={"a": "1", "b": "ä"}) as first:
            version = f"{first.version.major}.{first.version.minor}"
            get = [first.status, await first.text()]
        async with session.head(f"{base}/v/head?size=12") as head:
            after_head = [head.status, head.headers["content-length"], len(await head.read())]
        async with session.post(f"{base}/nobody/x", data=b"x" * 100_000) as answer:
            body = await answer.json(content_type="application/problem+json")
            refused = [answer.status, body["reason"]]
        many = await asyncio.gather(
            *(seen("GET", f"{base}/v/many?body={n}") for n in range(60))
        )
        async with session.get(f"{base}/v/big?size=3000000") as big:
            size = len(await big.read())
        return {
            "version": version,
            "get": get,
            "post": await seen("POST", f"{base}/v/post", json={"n": 1}),
            "stream": await seen("POST", f"{base}/v/stream", data=parts_in_time()),
            "put": await seen("PUT", f"{base}/v/put", data=b"x" * 300_000),
            "delete": await seen("DELETE", f"{base}/v/delete"),
            "gone": await seen("GET", f"{base}/v/gone?status=404&body=away"),
            "empty": await seen("GET", f"{base}/v/empty?status=204"),
            "gzip": await seen("GET", f"{base}/v/gzip?body=packed&code=gzip"),
            "big": [size],
            "redirect": await seen("GET", given["redirect"]),
            "after_head": after_head,
            "refused": refused,
            "many": [body for _, body in many] == [str(n) for n in range(60)],
        }


clients = {
    "requests": with_requests,
    "httpx": lambda: asyncio.run(with_httpx(http2=False)),
    "httpx-h2": lambda: asyncio.run(with_httpx(http2=True)),
    "aiohttp": lambda: asyncio.run(with_aiohttp()),
}
print(json.dumps(clients[client]()))

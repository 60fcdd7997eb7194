"""Clients that behave badly against the real program: it must answer the others as ever, hold no more memory, and never fall.

    tests/clients/soak.py target/release/flashlm [--seconds 600]

First prompts until no more of them are kept. Then 1,000 disconnects in a row, while a text is streamed, while it waits and inside a long prompt: the text must be gone within one turn of
the engine from where its client was seen to be gone, by `flashlm_cancelled_turns` of /metrics. Then, all at the same time: clients that write, slow readers, half-sent requests, 2,000 idle connections, bodies of 1 GB, and bodies
that are no good, each of which must get its typed error. Needs Linux and nothing else.
"""
import argparse
import json
import pathlib
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

FREE = {"max_tokens": 1_000_000, "logit_bias": {"0": -100}}
LONG = "word " * 40_000
BAD = [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"\xff\xfe", 400), (b'{"prompt": "\\ud800"}', 400),
    (b'{"temperature": NaN}', 400), (b'{"temperature": Infinity}', 400), (b'{"temperature": 1e999}', 400), (b'{"temperature": -1}', 400),
    (b'{"max_tokens": 1e30}', 400), (b'{"max_tokens": 99999999999999999999}', 400), (b'{"seed": 1.5}', 400), (b'{"n": 0}', 400),
    (b"[" * 100_000, 400), (b'{"a":' * 100_000, 400), (b'{"prompt": [' + b"[" * 1000 + b"]" * 1000 + b"]}", 400),
    (b'{"prompt": [70000]}', 400), (b'{"prompt": [-1]}', 400), (b'{"prompt": [1, "a"]}', 400), (b'{"prompt": {"a": 1}}', 400),
    (b'{"logit_bias": {"x": 1}}', 400), (b'{"stop": 5}', 400), (b'{"stop": [""]}', 400), (b'{"model": "none"}', 404),
    (b'{"max_tokens": 1, "unknown": {"deep": [1, 2, {}]}, "\\u0000": 1}', 200), (b'{"max_tokens": 1, "prompt": "\\u0000\\ud83d\\ude00"}', 200),
    (b'{"prompt": "' + b"a" * (17 << 20) + b'"}', 413),
]


def head(path, length, more=""):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n".encode()


class Server:
    def __init__(self, program, log):
        command = [program, "serve", "builtin", "--port", "0", "--parallel", "64", "--queue", "256"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        host, port = self.process.stdout.readline().strip().rsplit("http://")[-1].rsplit(":", 1)
        self.address = (host, int(port))

    def open(self, body, path="/v1/completions"):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = socket.create_connection(self.address, timeout=120)
        try:
            connection.sendall(head(path, len(body), "Connection: close\r\n") + body)
        except OSError:
            pass
        return connection

    def whole(self, connection):
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        connection.close()
        return int(answer[9:12]), answer

    def metrics(self):
        """All that is counted; of histograms what was up to each bound, as `NAME_BOUND`."""
        with socket.create_connection(self.address, timeout=120) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = self.whole(connection)[1].decode()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("flashlm_"))
        short = lambda name: name.removeprefix("flashlm_").replace('_bucket{le="', "_").removesuffix('"}')
        return {short(name): float(value) for name, value in pairs}

    def there(self):
        all = self.metrics()
        return all["streams"] + all["reading"] + all["waiting"]

    def memory(self):
        """Resident memory in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def until(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"it does not come true: {what}"


def warm(server):
    """Fills what is kept of prompts: until then memory grows by design, afterwards it may not."""
    for i in range(5000):
        server.whole(server.open({"prompt": f"{i} {LONG[:3000]}", "max_tokens": 1}))
        if i % 10 == 0 and server.metrics()["prefix_bytes"] > 62 << 20:
            break
    all = server.metrics()
    print(f"states of prompts fill {all['prefix_bytes'] / (1 << 20):.0f} MiB after {i + 1} prompts; memory {server.memory():.0f} MB")


def disconnects(server, count):
    """Clients that leave, one sort after the other; prints how long their texts stayed and what memory was held."""
    free, stream = FREE, FREE | {"stream": True}
    whole = {"n": 64} | FREE
    kinds = [("streaming", stream, False), ("not streaming", free, False), ("inside a long prompt", {"max_tokens": 1}, False), ("waiting", stream, True)]
    memory, slowest, turns = [], {}, {}
    for i in range(count):
        name, body, waits = kinds[i % len(kinds)]
        # Another one takes all the seats.
        others = [server.open(whole)] if waits else []
        if waits:
            until(lambda: server.metrics()["streams"] == 64, "64 texts are written")
        place = "waiting" if waits else "streams" if "logit_bias" in body else "reading"
        # No beginning of it is known.
        connection = server.open(body | {"prompt": f"{i} {LONG}"} if place == "reading" else body)
        until(lambda: server.metrics()[place] > 0, f"{name}: the text is there")
        if "stream" in body and not waits:
            assert connection.recv(100), "no token has come"
        before = server.metrics()
        for each in [*others, connection]:
            each.close()
        start = time.monotonic()
        until(lambda: server.there() == 0, f"{name}: the text is gone")
        slowest[name] = max(slowest.get(name, 0), time.monotonic() - start)
        after = server.metrics()
        assert after["cancelled_total"] > before["cancelled_total"], f"{name}: nobody was counted"
        turns.setdefault(name, []).append(after["ticks_total"] - before["ticks_total"])
        # Each kind has come ten times.
        if i >= 40:
            memory.append(server.memory())
    told = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in slowest.items())
    all = server.metrics()
    texts, late = all["cancelled_turns_count"], all["cancelled_turns_count"] - all["cancelled_turns_1"]
    print(f"{count} disconnects, {texts:.0f} texts: {late:.0f} of them there for more than one turn after their client was seen to be gone")
    print(f"from the client's end to a /metrics without the text: at most {told}")
    between = ", ".join(f"{name} {statistics.median(all):.0f}" for name, all in turns.items())
    print(f"turns from a look at /metrics before to the end of the text, in the middle: {between}")
    print(f"memory {memory[0]:.0f} to {memory[-1]:.0f} MB")
    assert late == 0, "texts outlive their clients"
    assert memory[-1] < memory[0] + 8, "memory grows"


class Soak:
    def __init__(self, server, seconds):
        self.server, self.end = server, time.monotonic() + seconds
        self.lock, self.counts, self.wrong = threading.Lock(), {}, []

    def run(self, workers):
        threads = [threading.Thread(target=self.work, args=(name, work)) for name, work, count in workers for _ in range(count)]
        for thread in threads:
            thread.start()
        memory = []
        while time.monotonic() < self.end:
            time.sleep(1)
            memory.append(self.server.memory())
        for thread in threads:
            thread.join()
        return memory

    def work(self, name, work):
        random.seed(threading.get_ident())
        while time.monotonic() < self.end and not self.wrong:
            try:
                work()
                with self.lock:
                    self.counts[name] = self.counts.get(name, 0) + 1
            except Exception as error:
                with self.lock:
                    self.wrong.append(f"{name}: {error!r}")

    def write(self):
        body = {"prompt": random.choice(["", "Once upon a time", "The dog", LONG[: random.randrange(4000)]]), "max_tokens": random.randrange(1, 200), "stream": random.random() < 0.5, "n": random.choice([1, 1, 2])}
        status, answer = self.server.whole(self.server.open(body))
        assert status in (200, 429), answer[:500]
        assert status == 429 or (b"[DONE]" in answer if body["stream"] else b'"usage"' in answer), answer[-500:]

    def slow(self):
        connection = self.server.open(FREE | {"stream": True, "logprobs": 5})
        for _ in range(50):
            if time.monotonic() > self.end or not connection.recv(64):
                break
            time.sleep(0.1)
        connection.close()

    def half(self):
        connection = socket.create_connection(self.server.address, timeout=120)
        whole = head("/v1/completions", 1000) + b'{"prompt": "'
        connection.sendall(whole[: random.randrange(1, len(whole))])
        time.sleep(random.random() * 3)
        connection.close()

    def large(self):
        connection = socket.create_connection(self.server.address, timeout=120)
        connection.sendall(head("/v1/completions", 1 << 30))
        answer = b""
        try:
            for _ in range(1 << 10):
                connection.sendall(bytes(1 << 20))
        except OSError:
            pass
        try:
            answer = connection.recv(1 << 16)
        except OSError:
            pass
        assert not answer or answer[9:12] == b"413", answer[:500]
        connection.close()
        time.sleep(2)

    def bad(self):
        body, expected = random.choice(BAD)
        status, answer = self.server.whole(self.server.open(body, random.choice(["/v1/completions", "/v1/completions?x=1"])))
        assert status in (expected, 429), f"{body[:80]}: {answer[:500]}"
        assert expected == 200 or b'"error":{' in answer, answer[:500]


def stop(server, clients=64):
    """SIGTERM under load: what was asked before it is answered, what comes after it is answered or refused."""
    told, lock, stopped, over = {}, threading.Lock(), threading.Event(), threading.Event()

    def ask():
        while not over.is_set():
            asked = False
            try:
                connection = server.open({"prompt": "Once", "max_tokens": 300, "seed": 1})
                asked = not stopped.is_set()
                status, answer = server.whole(connection)
                good = status in (429, 503) or answer.endswith(b"}") and b'"usage"' in answer
                kind = status if good else "cut off"
            except (OSError, ValueError):
                kind = "lost" if asked else "not accepted"
            with lock:
                told[kind] = told.get(kind, 0) + 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    stopped.set()
    server.process.terminate()
    code = server.process.wait()
    over.set()
    for thread in threads:
        thread.join()
    print(f"SIGTERM under load of {clients} clients:", ", ".join(f"{count} {kind}" for kind, count in told.items()))
    assert code == 0 and told.get(200) and not {"lost", "cut off"} & set(told), told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--disconnects", type=int, default=1000)
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16384), most))
    with tempfile.TemporaryFile("w+") as log:
        server = Server(args.program, log)
        try:
            warm(server)
            disconnects(server, args.disconnects)
            idle = [socket.create_connection(server.address) for _ in range(2000)]
            soak = Soak(server, args.seconds)
            memory = soak.run([("texts", soak.write, 24), ("slow readers", soak.slow, 8), ("half requests", soak.half, 8), ("1 GB bodies", soak.large, 1), ("bad bodies", soak.bad, 4)])
            assert not soak.wrong, "\n".join(soak.wrong[:5])
            for connection in idle:
                connection.close()
            until(lambda: server.there() == 0, "all texts are gone")
            third = len(memory) // 3
            early, late = max(memory[third : 2 * third], default=0), max(memory[2 * third :], default=0)
            print(", ".join(f"{count} {name}" for name, count in sorted(soak.counts.items())), f"in {args.seconds:.0f} s; memory at most {early:.0f} MB, then {late:.0f} MB")
            assert late < early + 8, "memory grows"
            stop(server)
        finally:
            server.process.terminate()
            code = server.process.wait()
            log.seek(0)
            told = log.read()
    assert code == 0 and "panicked" not in told, f"exit code {code}: {told}"
    print("all passed")


if __name__ == "__main__":
    main()

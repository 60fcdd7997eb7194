#!/usr/bin/env python3
"""What HTTP costs: tokens per second of many clients of `flashlm serve` against `flashlm bench decode --streams`, in turns, and the time
from a request to its first token with one client alone.

    benches/serve.py [--model MODEL] [--clients 64] [--threads 2] [--rounds 3] [--json]

All write greedily and never end; a client's tokens are counted between the moment when all have begun and the moment when the first is done.
Every client reads a stream of events, a hundred times per second, as fast as it comes. Client and server share the machine.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def request(body):
    text = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


def many(address, clients, tokens, stream, prompt):
    """Tokens per second of all clients together."""
    body = dict(prompt=prompt, max_tokens=tokens, temperature=0, logit_bias={"0": -100}, stream=stream)
    sockets = []
    for _ in range(clients):
        connection = socket.create_connection(address)
        connection.sendall(request(body))
        connection.setblocking(False)
        sockets.append(connection)
    start = time.perf_counter()
    if not stream:
        for connection in sockets:
            connection.setblocking(True)
            answer = b""
            while not answer.endswith(b"}"):
                piece = connection.recv(1 << 20)
                assert piece, answer
                answer += piece
        return clients * tokens / (time.perf_counter() - start)
    counts, ended, begun, at = [0] * clients, [False] * clients, None, None
    while not any(ended):
        for i, connection in enumerate(sockets):
            try:
                piece = connection.recv(1 << 20)
            except BlockingIOError:
                continue
            assert piece, "the server has closed a connection"
            counts[i] += piece.count(b"data: {")
            ended[i] = b"[DONE]" in piece
        if begun is None and all(counts):
            begun, at = sum(counts), time.perf_counter()
        time.sleep(0.01)
    speed = (sum(counts) - begun) / (time.perf_counter() - at)
    for connection in sockets:
        connection.close()
    return speed


def first_token(address, count):
    """Milliseconds from a request on an open connection to the first event, of each of `count`."""
    body = dict(prompt="Once upon a time", max_tokens=2, temperature=0, stream=True)
    times = []
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(request(body))
            answer = b""
            while b"data: {" not in answer:
                answer += connection.recv(65536)
            times.append(1e3 * (time.perf_counter() - start))
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of each client (default 2000)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flashlm = os.environ.get("FLASHLM", str(ROOT / "target/release/flashlm"))
    threads = ["--threads", str(args.threads)]
    flags = ["--port", "0", "--parallel", str(args.clients), "--queue", str(args.clients), *threads]
    server = subprocess.Popen([flashlm, "serve", args.model, *flags], stdout=subprocess.PIPE, text=True)
    speeds = {"bench decode": [], "streamed": [], "whole": []}
    try:
        host, port = server.stdout.readline().strip().rsplit("http://")[-1].rsplit(":", 1)
        address = (host, int(port))
        first_token(address, 20)
        times = first_token(address, 200)
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            command = [flashlm, "bench", "decode", args.model, "--streams", str(args.clients), "--prompt", "8", "--seconds", "2", "--json"]
            told = json.loads(subprocess.run(command + threads, check=True, capture_output=True, text=True).stdout)
            speeds["bench decode"].append(told["tokens_per_second"])
            for name in ("streamed", "whole"):
                speeds[name].append(many(address, args.clients, args.tokens, name == "streamed", [65] * 8))
    finally:
        server.terminate()
        server.wait()
    alone = statistics.median(speeds["bench decode"])
    ratios = {name: statistics.median(all) / alone for name, all in speeds.items()}
    times.sort()
    first = {"median": statistics.median(times), "90 %": times[len(times) * 9 // 10]}
    if args.json:
        print(json.dumps({"arguments": vars(args), "tokens_per_second": speeds, "ratios": ratios, "first_token_ms": first}))
        return
    for name, all in speeds.items():
        listed = " ".join(f"{speed:.0f}" for speed in all)
        print(f"{name:14} {statistics.median(all):9.0f} tokens/s  {ratios[name]:.2f}  ({listed})")
    print(f"first token    {first['median']:9.2f} ms, 90 % within {first['90 %']:.2f} ms")


if __name__ == "__main__":
    main()

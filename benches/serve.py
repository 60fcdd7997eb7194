#!/usr/bin/env python3
"""What HTTP costs: tokens per second of many clients of `flashlm serve` against `flashlm bench decode --streams`, in turns, and the time
from a request to its first token with one client alone.

    benches/serve.py [--model MODEL] [--clients 64] [--threads 2] [--prompt 512] [--rounds 3] [--json]

All write greedily and never end, after prompts of the same length: a token of a model with attention costs more the further on it is, so both are
measured from the prompt on for as long. A turn counts from when all prompts are read: events that have arrived at clients that stream,
the server's own count (`/metrics`) for those that wait for the whole. One thread reads for all clients, 50 times per second, and parses
nothing; client and server share the machine, and the processor time of the client is told.
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


def metrics(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    lines = (line.split() for line in answer.decode().splitlines() if line.startswith("flashlm_") and "{" not in line)
    return {name.removeprefix("flashlm_"): float(value) for name, value in lines}


def many(address, clients, seconds, stream, prompt):
    """Tokens per second of all clients together, and the share of a processor that reading takes."""
    body = dict(prompt=prompt, max_tokens=1_000_000 if stream else 60_000, temperature=0, logit_bias={"0": -100}, stream=stream)
    sockets = [socket.create_connection(address) for _ in range(clients)]
    for connection in sockets:
        connection.sendall(request(body))
        connection.setblocking(False)

    def arrived():
        count = 0
        for connection in sockets:
            try:
                piece = connection.recv(1 << 20)
            except BlockingIOError:
                continue
            assert piece, "the server has closed a connection"
            count += piece.count(b"data: {")
        return count

    while (now := metrics(address))["streams"] < clients or now["reading"]:
        arrived()
        time.sleep(0.02)
    arrived()
    start, busy, count = time.perf_counter(), time.process_time(), 0
    written = metrics(address)["generated_tokens_total"]
    while (passed := time.perf_counter() - start) < seconds:
        count += arrived()
        time.sleep(0.02)
    busy = (time.process_time() - busy) / passed
    written = metrics(address)["generated_tokens_total"] - written
    for connection in sockets:
        connection.close()
    while metrics(address)["streams"]:
        time.sleep(0.02)
    return (count if stream else written) / passed, busy


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
    parser.add_argument("--seconds", type=float, default=4, help="of each turn (default 4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt (default 512, as of bench decode)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flashlm = os.environ.get("FLASHLM", str(ROOT / "target/release/flashlm"))
    threads = ["--threads", str(args.threads)]
    flags = ["--port", "0", "--parallel", str(args.clients), "--queue", str(args.clients), *threads]
    server = subprocess.Popen([flashlm, "serve", args.model, *flags], stdout=subprocess.PIPE, text=True)
    speeds, reading = {"bench decode": [], "streamed": [], "whole": []}, []
    try:
        host, port = server.stdout.readline().strip().rsplit("http://")[-1].rsplit(":", 1)
        address = (host, int(port))
        first_token(address, 20)
        times = first_token(address, 200)
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            lengths = ["--streams", str(args.clients), "--prompt", str(args.prompt), "--seconds", str(args.seconds)]
            command = [flashlm, "bench", "decode", args.model, *lengths, *threads, "--json"]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            speeds["bench decode"].append(told["tokens_per_second"])
            for name in ("streamed", "whole"):
                speed, busy = many(address, args.clients, args.seconds, name == "streamed", [65] * args.prompt)
                speeds[name].append(speed)
                reading += [busy] if name == "streamed" else []
    finally:
        server.terminate()
        server.wait()
    alone = statistics.median(speeds["bench decode"])
    ratios = {name: statistics.median(all) / alone for name, all in speeds.items()}
    busy = statistics.median(reading)
    times.sort()
    first = {"median": statistics.median(times), "90 %": times[len(times) * 9 // 10]}
    if args.json:
        print(json.dumps({"arguments": vars(args), "tokens_per_second": speeds, "ratios": ratios, "client": busy, "first_token_ms": first}))
        return
    for name, all in speeds.items():
        listed = " ".join(f"{speed:.0f}" for speed in all)
        print(f"{name:14} {statistics.median(all):9.0f} tokens/s  {ratios[name]:.2f}  ({listed})")
    print(f"clients take {100 * busy:.1f} % of a processor to read streams")
    print(f"first token    {first['median']:9.2f} ms, 90 % within {first['90 %']:.2f} ms")


if __name__ == "__main__":
    main()

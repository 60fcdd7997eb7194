"""A link between two network namespaces with a speed and a delay: link.py NAMESPACE NAMESPACE MBIT/S DELAY_MS (one way). Root only.

Each namespace gets an interface `cable`, 10.77.0.1 and 10.77.0.2; packets between them pass through this program, which holds them back.
It says "ready" and runs until it is ended. Where the kernel has it, `tc qdisc ... netem` does the same."""

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

MTU = 9000
# Seconds of packets that wait to be sent; more are lost, as in a switch.
QUEUE = 0.2


def interface(name, namespace, address):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    # TUNSETIFF with IFF_TUN | IFF_NO_PI.
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
    inside = ["ip", "-n", namespace]
    subprocess.run(["ip", "link", "set", "dev", name, "netns", namespace], check=True)
    subprocess.run(inside + ["link", "set", "dev", name, "name", "cable"], check=True)
    subprocess.run(inside + ["address", "add", f"{address}/24", "dev", "cable"], check=True)
    subprocess.run(inside + ["link", "set", "dev", "cable", "mtu", str(MTU), "txqueuelen", "2000", "up"], check=True)
    subprocess.run(inside + ["link", "set", "lo", "up"], check=True)
    return fd


def main():
    a, b, mbit, delay = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]) / 1e3
    rate = mbit * 1e6 / 8
    fds = interface(f"fl{os.getpid()}a"[:15], a, "10.77.0.1"), interface(f"fl{os.getpid()}b"[:15], b, "10.77.0.2")
    # A cable waits for no processor.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ready", flush=True)
    free = [0.0, 0.0]
    waiting = collections.deque(), collections.deque()
    while True:
        now = time.monotonic()
        for way in 0, 1:
            while waiting[way] and waiting[way][0][0] <= now:
                try:
                    os.write(fds[1 - way], waiting[way].popleft()[1])
                except OSError:
                    pass
        due = min((queue[0][0] for queue in waiting if queue), default=now + 1)
        ready, _, _ = select.select(fds, [], [], max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for way in 0, 1:
            if fds[way] not in ready:
                continue
            for _ in range(64):
                try:
                    packet = os.read(fds[way], 65536)
                except BlockingIOError:
                    break
                if free[way] - now > QUEUE:
                    continue
                free[way] = max(free[way], now) + len(packet) / rate
                waiting[way].append((free[way] + delay, packet))


main()

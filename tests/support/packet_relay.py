"""A cable between this machine and a network namespace that delays packets, and loses some: for kernels without netem.

``python -m tests.support.packet_relay NAMESPACE DEVICE DELAY_MS LOSS`` makes ``DEVICE`` here and ``eth0`` there, prints
"ready", and carries Ethernet frames between the two until it is killed; then both devices are gone.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000  # of linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # of linux/sched.h
_FRAME_BYTES = 65536


def open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


def enter(namespace: str) -> None:
    """This thread's next devices are made there."""
    with open(namespace) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def relay(ends: tuple[int, int], delay_s: float, loss: float) -> None:
    """Carries frames both ways, in order, each ``delay_s`` after it came; one in 1 / ``loss`` is lost."""
    under_way: deque[tuple[float, int, bytes]] = deque()  # when it is due, where to, the frame
    draw = random.Random(0)
    while True:
        left = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], left)[0]:
            for frame in _frames(end):
                if draw.random() >= loss:
                    under_way.append((time.monotonic() + delay_s, ends[end == ends[0]], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, frame = under_way.popleft()
            try:
                os.write(end, frame)
            except OSError:
                pass  # the device is not up yet: the frame is lost, as on a cable


def _frames(end: int) -> list[bytes]:
    """What has come, a few at a time, so that due frames leave in between."""
    frames = []
    try:
        while len(frames) < 16:
            frames.append(os.read(end, _FRAME_BYTES))
    except (BlockingIOError, OSError):
        pass
    return frames


def main() -> None:
    namespace, device, delay_ms, loss = sys.argv[1:]
    here = open_tap(device)
    enter(f"/run/netns/{namespace}")
    there = open_tap("eth0")
    # As the kernel's own delay would be, it is not late because others compute.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ready", flush=True)
    relay((here, there), float(delay_ms) / 1e3, float(loss))


if __name__ == "__main__":
    main()

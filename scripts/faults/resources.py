"""Cases in which the machine runs out of something: disk, shared memory, file descriptors, a port."""

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from batch_kills import Batch
from case import Case, CaseSkipped, demand, wait_for
from client import demand_finished, streaming
from door import HONEST, NUM_HONEST, connect
from interruptions import FINISH_S, alone
from scene import END_S, Scene
from server import START_S, Server

FEW_DESCRIPTORS = (16, 64, 128)  # the last is enough for 32 connections


def cases() -> Iterator[Case]:
    yield Case("full", "no room for the run folder", no_room_for_the_run_folder)
    yield Case("full", "no room for the log", no_room_for_the_log)
    yield Case("full", "no room for a batch's answers", no_room_for_answers)
    yield Case("full", "/dev/shm at tp=2", no_shared_memory)
    yield Case("full", "descriptors of the front", no_descriptors)
    for number in FEW_DESCRIPTORS:
        yield Case("full", f"a start with {number} descriptors", lambda scene, n=number: few_descriptors(scene, n))
    yield Case("full", "the port is taken", taken_port)


@contextmanager
def small_disk(folder: Path, options: str = "size=64k") -> Iterator[None]:
    """A file system with these options of mount. ``CaseSkipped`` where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True)
    if mounted.returncode:
        raise CaseSkipped(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """The file that takes all the room."""
    file = folder / "filler"
    with open(file, "wb", buffering=0) as filler:
        try:
            while filler.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return file


def _refused_start(server: Server) -> str:
    """The last line of a start that ends with an error."""
    code = server.wait_exit(START_S)
    demand(code not in (0, -signal.SIGKILL), f"exit code {code}: {server.last_words}")
    return server.stderr.strip().splitlines()[-1]


# ------------------------------------------------------------------ disks


def no_room_for_the_run_folder(scene: Scene) -> str:
    disk = scene.folder / "disk"
    with small_disk(disk, "size=64k,nr_inodes=2"):  # itself and one more: the folder can be made, nothing in it
        line = _refused_start(Server(scene, TMPDIR=str(disk)))
        demand("No space left" in line, f"the line does not say so: {line}")
        demand(not list(disk.glob("splitrank-*")), "a run folder is left")
    return "one line says so; exit 1"


def no_room_for_the_log(scene: Scene) -> str:
    disk = scene.folder / "disk"
    with small_disk(disk):
        server = Server(scene, log=disk / "log")
        server.wait_ready()
        text = alone(server, HONEST)
        fill(disk)
        demand(alone(server, HONEST) == text, "the answer differs from the one of before")
        server.stop()
    return "serves without a log; exit 0"


def no_room_for_answers(scene: Scene) -> str:
    disk = scene.folder / "disk"
    batch = Batch(scene, num_lines=24)
    whole = batch.answers_without_interruption()
    with small_disk(disk):
        batch.output = disk / "out.jsonl"
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - 3 * 4096)
        code, said = batch.run()
        demand(code == 1 and "No space left" in said, f"exit code {code}: {said.strip()}")
        before = batch.num_answered()
        filler.unlink()
        code, said = batch.run()
        demand(code == 0, f"the continued run ends with code {code}: {said.strip()}")
        demand(batch.answers() == whole, "the answers differ from those of an uninterrupted run")
    return f"exit 1 after {before} of 24; continued: the same bytes"


def no_shared_memory(scene: Scene) -> str:
    full = 'mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero >/dev/shm/filler; exec "$@"'
    private = ("unshare", "--mount", "sh", "-c", full, "sh")
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        raise CaseSkipped("no file system may be mounted here")
    server = Server(scene, "--tp", 2, prefix=private)
    server.wait_ready()
    demand(alone(server, HONEST), "no answer")
    server.stop()
    return "serves: the all-reduce does not need it"


# ------------------------------------------------------------------ descriptors, ports


def no_descriptors(scene: Scene) -> str:
    server = Server(scene, "--log-level", "warning")
    server.wait_ready()
    text = alone(server, HONEST)
    descriptors = server.num_descriptors()
    honest = streaming(server, NUM_HONEST, HONEST)
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (descriptors + NUM_HONEST + 10, limits[1]))
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(server, b"GET /health HTTP/1.1\r\n"))
        demand_finished(honest, FINISH_S)
    demand(all(client.text == text for client in honest), "an open stream's answer differs from the one of before")
    wait_for(lambda: server.ask("/health", limit_s=5.0)[0] == 200, "/health to answer again", END_S)
    demand(alone(server, HONEST) == text, "a later answer differs from the one of before")
    wait_for(lambda: server.num_descriptors() <= descriptors + 1, "the descriptors to be closed", END_S)
    server.stop()
    return "open streams whole; it answers again when connections close"


def few_descriptors(scene: Scene, number: int) -> str:
    limited = ("sh", "-c", f'ulimit -n {number}; exec "$@"', "sh")
    server = Server(scene, "--pp", 2, prefix=limited)
    wait_for(lambda: server.process.poll() is not None or "serving" in server.stdout, "the start or its end", START_S)
    if server.process.poll() is None:
        demand(alone(server, HONEST), "no answer")
        server.stop()
        return "serves"
    line = _refused_start(server)
    demand("Too many open files" in line or "file descriptors" in line, f"the line does not say so: {line}")
    return "one line says so; exit 1"


def taken_port(scene: Scene) -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        line = _refused_start(Server(scene, port=listener.getsockname()[1]))
    demand("Address already in use" in line, f"the line does not say so: {line}")
    return "one line says so; exit 1"

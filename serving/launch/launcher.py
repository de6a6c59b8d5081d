"""Starts the engine process, on host 0, and one process for each rank of this host. They share files and sockets in a
run folder."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from splitrank.serving.launch.link_listeners import LinkListeners
from splitrank.serving.launch.processes import Children
from splitrank.serving.launch.run_lock import hold_lock, release_lock, remove_ownerless
from splitrank.serving.launch.run_secret import write_secret
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.protocol.wire import rank_name

PREFIX = "splitrank-"  # of run folders
SPEC_FILE = "launch.msgpack"
MAX_SOCKET_PATH_BYTES = 107  # of sockaddr_un
LONGEST_SOCKET_NAME = "/front"


def make_run_dir(spec: LaunchSpec, secret: bytes = b"") -> LaunchSpec:
    """Makes a run folder (0700) and writes the spec into it, and the secret of several hosts. Returns the spec with the
    folder and this process' id. Folders of fronts that were killed are removed.

    Raises ``ValueError`` if the temporary folder's path is too long for a socket.
    """
    assert not spec.run_dir, "the launcher makes the run folder"
    remove_ownerless(tempfile.gettempdir(), PREFIX)
    run_dir = tempfile.mkdtemp(prefix=PREFIX)
    try:
        hold_lock(run_dir)
        length = len(os.fsencode(run_dir + LONGEST_SOCKET_NAME))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"socket path {run_dir}{LONGEST_SOCKET_NAME} has {length} bytes, the limit is "
                             f"{MAX_SOCKET_PATH_BYTES}: set TMPDIR to a shorter path")  # fmt: skip
        spec = msgspec.structs.replace(spec, run_dir=run_dir, front_pid=os.getpid())
        Path(run_dir, SPEC_FILE).write_bytes(msgspec.msgpack.encode(spec))
        if secret:
            write_secret(run_dir, secret)
    except BaseException:
        remove_run_dir(run_dir)
        raise
    return spec


def load_spec(run_dir: str) -> LaunchSpec:
    """Ends this process, in one line, if the folder is gone: the command was killed while this process started."""
    try:
        content = Path(run_dir, SPEC_FILE).read_bytes()
    except FileNotFoundError:
        raise SystemExit(f"{run_dir} is gone: the command that started this process has ended") from None
    return msgspec.msgpack.decode(content, type=LaunchSpec)


def spawn_all(spec: LaunchSpec, rank_module: str, children: Children, listeners: LinkListeners | None = None) -> None:
    """Starts this host's processes of a written spec. After an error, ``children`` holds those that were started. The
    ranks inherit ``listeners``, which this process then closes."""
    # -P: no modules from the current folder; a random.py there would replace Python's own.
    run = [sys.executable, "-P", "-m"]
    folder = ["--run-dir", spec.run_dir]
    if spec.node_rank == 0:
        children.spawn("engine", [*run, "splitrank.serving.engine.engine_main", *folder])
    for rank in spec.local_ranks:
        descriptor = listeners.descriptor(rank) if listeners is not None else None
        link = [] if descriptor is None else ["--link-fd", str(descriptor)]
        children.spawn(rank_name(spec, rank), [*run, rank_module, *folder, *link, "--rank", str(rank)], descriptor)
    if listeners is not None:
        listeners.close()


def remove_run_dir(run_dir: str) -> None:
    shutil.rmtree(run_dir, ignore_errors=True)
    release_lock(run_dir)

"""What a link between hosts costs: ``python -m tests.e2e.host_numbers [ROUNDS]``.

Decodes 16 requests at pp=2 on one host and over two, in turns, with both engines running: with a veth pair, and with
packets that are late. Beside the loss it prints what ``splitrank plan --link-gbps --link-ms`` predicts of the link's
measured speed.
"""

import asyncio
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from splitrank.serving.bench import measure, random_jobs
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from tests.e2e.host_servers import PORT, SECRET
from tests.e2e.servers import ROOT, environment, splitrank_command, temporary_folder
from tests.support.host_network import DelayedNetwork, HostNetwork

REQUESTS, PROMPT, TOKENS = 16, 32, 64
LINK = re.compile(r"to rank 1 on another host: ([\d.]+) Gb/s, round trip ([\d.]+) ms")


def start_member(network: HostNetwork, folder: Path) -> subprocess.Popen[bytes]:
    """Host 1."""
    options = ["--pp", 2, "--threads-per-rank", 1, "--pin-threads", "off", "--nnodes", 2, "--node-rank", 1]
    options += ["--secret-file", folder / "secret"]
    options += ["--dist-init-addr", f"{network.address(0)}:{PORT}"]
    command = [*network.prefix(1), *splitrank_command("bench", *options)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(folder), stderr=subprocess.DEVNULL)


async def compare(network: HostNetwork, folder: Path, rounds: int) -> str:
    """Both rates, their ratio, and the predicted one."""
    # As bench has it, and not pinned: the two hosts would take the same core.
    common: dict[str, Any] = {"pp": 2, "threads_per_rank": 1, "prefix_cache_mib": 0, "pin_threads": "off"}
    one = await EngineClient.start(resolve_launch(EngineConfig(**common)))
    hosts = {"nnodes": 2, "dist_init_addr": f"{network.address(0)}:{PORT}", "secret_file": folder / "secret"}
    two = await EngineClient.start(resolve_launch(EngineConfig(**common, **hosts)))
    jobs = random_jobs(4096, PROMPT, [TOKENS] * REQUESTS)
    rates: dict[EngineClient, list[float]] = {one: [], two: []}
    try:
        for _ in range(rounds + 1):
            for client, found in rates.items():
                found.append((await measure(client, jobs)).tokens_per_second)
        speed = next(match for report in two.reports if (match := LINK.search(report)))
    finally:
        await one.close()
        await two.close()
    alone, over_two = (statistics.median(found[1:]) for found in rates.values())  # the first round warms up
    ratios = [b / a for a, b in zip(*(found[1:] for found in rates.values()), strict=True)]
    token_ms = REQUESTS / alone * 1e3
    predicted = token_ms / (token_ms + added_ms(float(speed[1]), float(speed[2])))
    return (
        f"{alone:.0f} tokens/s on one host, {over_two:.0f} over two; median of {rounds} ratios "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), predicted {predicted:.2f}; "
        f"link {speed[1]} Gb/s, round trip {speed[2]} ms"
    )


def added_ms(gbps: float, round_trip_ms: float) -> float:
    """What the plan says that each token waits more."""
    options = ["--pp", 2, "--max-running-requests", REQUESTS, "--link-gbps", gbps, "--link-ms", round_trip_ms / 2]
    run = subprocess.run(splitrank_command("plan", *options), cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.search(r"each token of a request waits ([\d.]+) ms", run.stdout)
    assert found is not None, run.stdout
    return float(found[1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    networks = [
        ("veth", HostNetwork(2)),
        ("1 ms", DelayedNetwork(1)),
        ("10 ms", DelayedNetwork(10)),
        ("1 ms, 5% lost", DelayedNetwork(1, 0.05)),
    ]
    with temporary_folder() as folder:
        (folder / "secret").write_bytes(SECRET)
        for name, network in networks:
            with network:
                member = start_member(network, folder)
                print(f"{name}: {asyncio.run(compare(network, folder, rounds))}", flush=True)
                assert member.wait(60) == 0


if __name__ == "__main__":
    main()

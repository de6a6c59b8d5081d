"""What a link between hosts costs: ``python -m tests.e2e.host_numbers [ROUNDS]``.

Decodes 16 requests at pp=2 on one host and over two, in turns: with a veth pair, and with packets that are late. For
these it prints the loss, and what ``splitrank plan --link-gbps --link-ms`` says with the link's measured speed.
"""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.host_servers import PORT, SECRET
from tests.e2e.servers import ROOT, environment, splitrank_command, temporary_folder
from tests.support.host_network import DelayedNetwork, HostNetwork

REQUESTS, TOKENS = 16, 96
BENCH = ("bench", "--pp", 2, "--threads-per-rank", 1, "--concurrency", REQUESTS, "--output-tokens", TOKENS)
BENCH += ("--prompt-tokens", 32, "--rounds", 3)
LINK = re.compile(r"to rank 1 on another host: ([\d.]+) Gb/s, round trip ([\d.]+) ms")


def bench(network: HostNetwork | None, folder: Path) -> tuple[float, tuple[float, float] | None]:
    """Tokens a second, and the link's measured Gb/s and round trip in ms, if there is one."""
    options: list[object] = [*BENCH]
    member = None
    if network is not None:
        address = f"{network.address(0)}:{PORT}"
        options += ["--nnodes", 2, "--dist-init-addr", address, "--secret-file", folder / "secret"]
        command = [*network.prefix(1), *splitrank_command(*options, "--node-rank", 1)]
        member = subprocess.Popen(command, cwd=ROOT, env=environment(folder), stderr=subprocess.DEVNULL)
    run = subprocess.run(
        splitrank_command(*options), cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert member is None or member.wait(60) == 0
    found = LINK.search(run.stderr)
    speed = (float(found[1]), float(found[2])) if found else None
    return float(json.loads(run.stdout)["tokens_per_second"]), speed


def added_ms(gbps: float, round_trip_ms: float) -> float:
    """What the plan says that each token waits more."""
    options = ["--pp", 2, "--max-running-requests", REQUESTS, "--link-gbps", gbps, "--link-ms", round_trip_ms / 2]
    run = subprocess.run(splitrank_command("plan", *options), cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.search(r"each token of a request waits ([\d.]+) ms", run.stdout)
    assert found is not None, run.stdout
    return float(found[1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with temporary_folder() as folder:
        (folder / "secret").write_bytes(SECRET)
        ratios: dict[str, list[float]] = {}
        for _ in range(rounds):
            alone, _ = bench(None, folder)
            for name, network in networks():
                with network:
                    rate, speed = bench(network, folder)
                assert speed is not None
                ratios.setdefault(name, []).append(rate / alone)
                token_ms = REQUESTS / alone * 1e3
                predicted = token_ms / (token_ms + added_ms(*speed))
                print(
                    f"{name}: {alone:.0f} tokens/s on one host, {rate:.0f} over two ({rate / alone:.2f}), predicted "
                    f"{predicted:.2f}; link {speed[0]:g} Gb/s, round trip {speed[1]:g} ms",
                    flush=True,
                )
        for name, found in ratios.items():
            print(f"{name}: median ratio {statistics.median(found):.2f} of {rounds}")


def networks() -> list[tuple[str, Any]]:
    return [
        ("veth", HostNetwork(2)),
        ("relay, 1 ms", DelayedNetwork(1)),
        ("relay, 10 ms", DelayedNetwork(10)),
        ("relay, 1 ms, 5% lost", DelayedNetwork(1, 0.05)),
    ]


if __name__ == "__main__":
    main()

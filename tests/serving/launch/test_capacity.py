"""How many pages and requests fit, on a host and on GPUs."""

import json
from dataclasses import replace

import pytest

from splitrank.models.config import read_config
from splitrank.models.memory import GIB, RankMemory, plan_all_ranks, rank_memory
from splitrank.serving.launch.capacity import Capacity, gpu_memory, host_memory, size_cache
from splitrank.serving.launch.devices import Devices, Gpu
from splitrank.serving.options.config import EngineConfig
from tests.support.checkpoints import hub_config, random_text_config


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[RankMemory]:
    """pp = 2: the first stage has no full attention."""
    file = tmp_path_factory.mktemp("capacity") / "config.json"
    text = hub_config(random_text_config(num_hidden_layers=5), "text", "bfloat16", tied=False)
    file.write_text(json.dumps(text))
    config = read_config(file)
    return [rank_memory(config, plan, "bfloat16") for plan in plan_all_ranks(config, 1, (3, 2), "bfloat16")]


def test_memory_is_what_the_fullest_rank_has(ranks: list[RankMemory]) -> None:
    """Half the memory for two ranks: a quarter each, beside weights and four states."""
    config = EngineConfig(page_size=16, max_running_requests=4, mem_fraction_static=0.5)
    assert ranks[0].kv_bytes_per_token == 0
    budget = ranks[1].total(tokens=16 * 100 + 5, requests=4)
    assert size_cache(config, ranks, 800, host_memory(config, len(ranks), 4 * budget)) == Capacity(100, 800, 4)
    plenty = 4 * ranks[1].total(tokens=10**6, requests=4)
    assert size_cache(config, ranks, 800, host_memory(config, len(ranks), plenty)) == Capacity(4 * 50, 800, 4)


def test_too_little_memory_shortens_an_automatic_length_only(ranks: list[RankMemory]) -> None:
    config = EngineConfig(page_size=16, max_running_requests=4, mem_fraction_static=0.5)
    memory, last = 2 * ranks[1].total(tokens=16 * 10, requests=4), ranks[1:]
    assert size_cache(config, last, 800, host_memory(config, len(last), memory)) == Capacity(10, 160, 4)
    with pytest.raises(ValueError, match="10 KV pages of 16 tokens cannot hold one request of 800 tokens"):
        size_cache(replace(config, max_model_len=800), last, 800, host_memory(config, len(last), memory))


def test_weights_that_do_not_fit_are_refused_with_the_numbers(ranks: list[RankMemory]) -> None:
    config = EngineConfig(max_running_requests=4, mem_fraction_static=0.5)
    with pytest.raises(ValueError, match=r"rank 0 \(stage 0, tp 0\) needs .* GiB for weights and 4 recurrent states"):
        size_cache(config, ranks, 800, host_memory(config, len(ranks), 1024))


# ------------------------------------------------------------ GPUs


def gpus(*numbers: int, free: int = 100 * GIB) -> Devices:
    return Devices("cuda", numbers, tuple(Gpu("NVIDIA H200", 140 * GIB, free) for _ in numbers))


def test_ranks_that_share_a_gpu_share_its_free_memory() -> None:
    """90% of 140 GiB is more than is free; 1 GiB of it is for snapshots."""
    config = EngineConfig(mem_fraction_static=0.9, prefix_cache_mib=1024)
    assert gpu_memory(config, gpus(0, 1)).budgets == (99 * GIB, 99 * GIB)
    assert gpu_memory(config, gpus(0, 0)).budgets == (49 * GIB, 49 * GIB)
    assert gpu_memory(config, gpus(0, free=140 * GIB)).budgets == (int(140 * GIB * 0.9) - GIB,)


def test_pages_that_a_user_asks_for_must_fit_each_gpu(ranks: list[RankMemory]) -> None:
    """The first stage keeps no KV: what its GPU has left is of no use to the second."""
    config = EngineConfig(page_size=16, max_running_requests=4, num_pages=1000, prefix_cache_mib=0)
    need = ranks[1].total(tokens=16 * 1001, requests=5)
    assert size_cache(config, ranks, 800, gpu_memory(config, gpus(0, 1, free=need))) == Capacity(1000, 800, 4)
    with pytest.raises(
        ValueError, match=r"1000 KV pages of 16 tokens need .* of rank 1 \(stage 1, tp 0\), but there are"
    ):
        size_cache(config, ranks, 800, gpu_memory(config, gpus(0, 1, free=need - 1)))
    both = need + ranks[0].total(tokens=0, requests=5)
    size_cache(config, ranks, 800, gpu_memory(config, gpus(0, 0, free=both + 1)))
    with pytest.raises(ValueError, match=r"states of rank 0 \(stage 0, tp 0\), rank 1 \(stage 1, tp 0\), but there"):
        size_cache(config, ranks, 800, gpu_memory(config, gpus(0, 0, free=both - 2)))


def test_a_gpu_keeps_a_slot_and_a_page_for_padding(ranks: list[RankMemory]) -> None:
    config = EngineConfig(page_size=16, max_running_requests=4, mem_fraction_static=1.0, prefix_cache_mib=0)
    last = ranks[1:]
    memory = gpu_memory(config, gpus(0, free=last[0].total(tokens=16 * 101, requests=5)))
    assert size_cache(config, last, 800, memory) == Capacity(100, 800, 4)


def test_requests_at_once_follow_from_a_gpu_s_memory(ranks: list[RankMemory]) -> None:
    """States take at most half of what the weights leave, and a step has at most 256: there is one for each stage."""
    last = ranks[1:]

    def requests(states: int, pp: int) -> int:
        config = EngineConfig(pp=pp, page_size=16, mem_fraction_static=1.0, prefix_cache_mib=0)
        free = last[0].weight_bytes + states * last[0].state_bytes_per_request
        return size_cache(config, last, 16, gpu_memory(config, gpus(0, free=free))).max_running_requests

    assert [requests(states, pp=1) for states in (600, 399, 200, 50)] == [256, 192, 96, 24]
    assert [requests(states, pp=2) for states in (1200, 399, 50)] == [512, 192, 16]

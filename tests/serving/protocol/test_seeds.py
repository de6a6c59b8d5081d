"""Seeds made of names."""

from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import derive_seed, with_seed


def test_equal_parts_give_equal_seeds_and_all_others_different_ones() -> None:
    parts: list[tuple[int | str, ...]] = [
        *(
            (seed, name, choice)
            for seed in (0, 1)
            for name in ("a", "b", "a/0", "", "1", "\ud800")
            for choice in (0, 1)
        ),
        (0, 1, 0),  # the number is not the name "1"
        (0, "a"),
        (0,),
    ]
    seeds = [derive_seed(*one) for one in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [derive_seed(*one) for one in parts]
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_a_seed_that_was_given_stays() -> None:
    assert with_seed(SamplingParams(seed=0), 1, "a").seed == 0
    assert with_seed(SamplingParams(top_k=3), 1, "a") == SamplingParams(top_k=3, seed=derive_seed(1, "a"))

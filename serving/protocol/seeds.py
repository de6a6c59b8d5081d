"""Seeds of requests that give none.

A draw depends on seed and position only. So a request's seed is derived from what names it: in a batch its custom_id,
in ``LLM`` the number of the call and of the prompt, at a server a random id.
"""

import hashlib
import json

import msgspec

from splitrank.serving.protocol.sampling_params import SamplingParams


def derive_seed(*parts: int | str) -> int:
    """A seed of 64 bits: equal parts give equal seeds, any other parts unrelated ones."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def with_seed(params: SamplingParams, *parts: int | str) -> SamplingParams:
    """``params``, with a seed made of ``parts`` if they have none."""
    return params if params.seed is not None else msgspec.structs.replace(params, seed=derive_seed(*parts))

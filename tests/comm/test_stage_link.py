"""How stages are linked: by which options, and what is refused."""

import pytest

from splitrank.comm.stage_link import StageLinkOptions, refuse_device_link


@pytest.mark.parametrize(
    ("kind", "devices", "words"),
    [
        ("auto", (0, 1), ""),
        ("auto", (), ""),
        ("auto", (0, 0), "share a GPU"),
        ("device", (0, 0), ""),
        ("socket", (0, 1), "--stage-link socket"),
    ],
)
def test_which_layouts_are_linked_by_sockets(kind: str, devices: tuple[int, ...], words: str) -> None:
    reason = StageLinkOptions(kind, 64, devices).socket_because(1)
    assert words in reason
    assert bool(reason) == bool(words)


def test_several_tensor_ranks_are_linked_by_sockets() -> None:
    """Unless the device link is asked for."""
    assert "tp 2" in StageLinkOptions("auto", 64, (0, 1, 2, 3)).socket_because(2)
    assert not StageLinkOptions("device", 64, (0, 1, 2, 3)).socket_because(2)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="stage_link must be one of auto, device, socket, not 'nccl'"):
        StageLinkOptions("nccl")


@pytest.mark.parametrize(
    ("device", "pp", "words"), [("cpu", 2, "a CPU's stages"), ("cuda", 1, "with pp 1 there is no other stage")]
)
def test_the_device_link_is_refused_where_it_cannot_be(device: str, pp: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        refuse_device_link("device", device, pp)
    refuse_device_link("auto", device, pp)


def test_the_device_link_is_not_refused_where_it_can_be() -> None:
    refuse_device_link("device", "cuda", 2)

"""The alphabet of byte-level BPE, in which tokenizer.json writes its tokens."""


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from 256 upwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


def bytes_of(entry: str) -> bytes:
    """The bytes of an entry of the vocabulary. What is not written in the alphabet stands for itself."""
    known = (BYTE_OF_CHARACTER.get(character) for character in entry)
    return b"".join(c.encode() if byte is None else bytes([byte]) for c, byte in zip(entry, known, strict=True))

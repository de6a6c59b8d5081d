"""Finds the first of several strings in text that comes piece by piece."""


class MarkerFinder:
    """Text before the first marker to be completed; what may become one is held back."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        self._markers = markers
        self._most_held = max((len(marker) for marker in markers), default=0) - 1
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None, str]:
        """Text before the marker, the marker, and the text behind it. Push no more once it was found."""
        if not self._markers:
            return text, None, ""
        text = self._held + text
        matches = [(start + len(one), start, one) for one in self._markers if (start := text.find(one)) >= 0]
        if matches:
            # The earliest end, not the earliest start: so the result does not depend on how the text arrives.
            end, start, marker = min(matches)
            self._held = ""
            return text[:start], marker, text[end:]
        shown = len(text) - self._num_held(text)
        self._held = text[shown:]
        return text[:shown], None, ""

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of ``text`` that a marker starts with."""
        for length in range(min(self._most_held, len(text)), 0, -1):
            end = text[-length:]
            for marker in self._markers:
                if marker.startswith(end):
                    return length
        return 0

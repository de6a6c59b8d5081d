"""Parts the model's thoughts from its answer. The prompt ends inside ``<think>``, so the text begins with thoughts."""

from splitrank.serving.text.marked_text import MarkerFinder

THINK_START = "<think>"
THINK_END = "</think>"


def ends_inside_thinking(prompt: str) -> bool:
    """Whether what comes behind ``prompt`` is a thought: its last ``<think>`` is open."""
    return prompt.rfind(THINK_START) > prompt.rfind(THINK_END)


class ThinkingSplitter:
    """Text to thoughts and answer, each without the line breaks that stand between it and ``</think>``.

    ``thinking``: the text begins inside ``<think>``, and without ``</think>`` all of it is thought. Otherwise all of it
    is answer. ``answer_opening``, if it is given, ends an open thought as well, and begins the answer.
    """

    def __init__(self, thinking: bool, answer_opening: str = "") -> None:
        self.is_thinking = thinking
        self._finder = MarkerFinder((THINK_END, answer_opening) if answer_opening else (THINK_END,))
        self._reasoning = _Stripped()
        self._answer_begins = False  # line breaks are still left out

    def push(self, text: str) -> tuple[str, str]:
        """Thought and answer that ``text`` adds."""
        if not self.is_thinking:
            return "", self._answer(text)
        before, marker, behind = self._finder.push(text)
        reasoning = self._reasoning.push(before)
        if marker is None:
            return reasoning, ""
        self.is_thinking, self._answer_begins = False, True
        return reasoning, self._answer(behind if marker == THINK_END else marker + behind)

    def finish(self) -> str:
        """The rest of a thought that was cut off."""
        return self._reasoning.push(self._finder.finish()) if self.is_thinking else ""

    def _answer(self, text: str) -> str:
        if self._answer_begins:
            text = text.lstrip("\n")
            self._answer_begins = not text
        return text


class _Stripped:
    """Text without the line breaks at its beginning and its end; those that may be the last ones are held back."""

    def __init__(self) -> None:
        self._has_begun = False
        self._num_held = 0

    def push(self, text: str) -> str:
        kept = text.rstrip("\n")
        num_breaks = len(text) - len(kept)
        if not kept:
            self._num_held += num_breaks
            return ""
        kept = "\n" * self._num_held + kept if self._has_begun else kept.lstrip("\n")
        self._has_begun, self._num_held = True, num_breaks
        return kept

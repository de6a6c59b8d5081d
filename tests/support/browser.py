"""A headless Chromium, driven over a pipe by the DevTools protocol: type, click, look, and collect what went wrong."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.limits import START_S, scaled

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en",
)  # fmt: skip
POLL_S = 0.05


class Page:
    """One tab. ``problems``: errors of scripts and of the console; ``urls``: all that was asked for."""

    def __init__(self, reader: asyncio.StreamReader, pipe: asyncio.WriteTransport) -> None:
        self.problems: list[str] = []
        self.urls: list[str] = []
        self._reader, self._pipe = reader, pipe
        self._session = ""
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.send("Page.navigate", url=url)  # its answer comes when the new document has begun
        await self.until("document.readyState === 'complete'")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; raises ``AssertionError`` with the browser's words."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._pipe.write(json.dumps(message).encode() + b"\0")
        received = await asyncio.wait_for(answer, scaled(START_S))
        assert "error" not in received, f"{method}: {received}"
        result: dict[str, Any] = received["result"]
        return result

    async def look(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found}"
        return found["result"].get("value")

    async def until(self, expression: str, limit_s: float = START_S) -> None:
        """Waits until the expression is true."""
        deadline = asyncio.get_running_loop().time() + scaled(limit_s)
        while not await self.look(expression):
            if asyncio.get_running_loop().time() > deadline:
                body = await self.look("document.body.innerText")
                raise AssertionError(f"waited for {expression}; problems {self.problems}; the page shows:\n{body}")
            await asyncio.sleep(POLL_S)

    async def text(self, selector: str) -> str:
        """What the last element of a selector shows."""
        shown: str = await self.look(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.innerText ?? ''")
        return shown

    async def click(self, selector: str) -> None:
        await self.look(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, selector: str, text: str, enter: bool = False) -> None:
        """Replaces what stands in a field, by keys as a user would, then Enter or leaving the field."""
        await self.look(f"(field => {{ field.focus(); field.select(); }})(document.querySelector('{selector}'))")
        assert await self.look(f"document.activeElement.matches('{selector}')"), f"{selector} cannot be typed into"
        await self.send("Input.insertText", text=text)
        if enter:
            for kind in ("keyDown", "keyUp"):
                await self.send(
                    "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
                )
        else:
            await self.look("document.activeElement.blur()")

    async def screenshot(self) -> bytes:
        """The visible part, as PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])

    async def listen(self) -> None:
        """Reads what the browser says, until it ends."""
        while True:
            try:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if (answer := self._answers.pop(message.get("id"), None)) is not None:
                if not answer.done():
                    answer.set_result(message)
            else:
                self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A tab of a browser of its own, with no history; both are gone at the end."""
    assert CHROMIUM is not None
    loop = asyncio.get_running_loop()
    folder = tempfile.mkdtemp(prefix="browser-")
    their_input, our_output = os.pipe()
    our_input, their_output = os.pipe()
    # The browser speaks on 3 and 4, whatever numbers the pipes have here.
    command = f'exec "$0" "$@" 3<&{their_input} 4>&{their_output}'
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank",
        pass_fds=(their_input, their_output), start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(their_input)
    os.close(their_output)
    reader = asyncio.StreamReader(limit=2**26)
    protocol = asyncio.StreamReaderProtocol(reader)
    incoming, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(our_input, "rb", 0))
    outgoing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(our_output, "wb", 0))
    page = Page(reader, outgoing)
    listening = asyncio.create_task(page.listen())
    try:
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await listening
        incoming.close()
        outgoing.close()
        shutil.rmtree(folder, ignore_errors=True)

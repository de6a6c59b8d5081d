"""The page at ``/`` in a real browser: chat, thoughts, settings, stop, the key, and the live view."""

import asyncio
from pathlib import Path

import pytest

from splitrank.serving.http.page_files import PAGE_FILES
from splitrank.serving.protocol.messages import RequestOutput
from tests.serving.http.test_metrics import STATS
from tests.support.browser import CHROMIUM, Page, browser
from tests.support.front_fakes import LIMIT_S, Front, Script, answer, refuse
from tests.support.http_helpers import check_error, serving

KEY = "the key"
TEXT = "a thought\n</think>\n\nthe <b>answer</b>"
FACTS = "article:last-child .facts"


def test_the_files_need_no_key_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for path in PAGE_FILES:
            response = await front.http.get(path)
            assert response.status_code == (await front.http.head(path)).status_code == 200
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
            assert "//" not in response.text.replace("// ", "").replace("<!doctype", "")
        page = (await front.http.get("/")).text
        assert "page/chat.js" in page
        check_error(await front.http.get("/page/other.js"), 401)
        check_error(await front.http.get("/stats"), 401)

    serving(tmp_path, work, api_key=KEY)


def test_statistics(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        front.client.reports = ["rank 0 (stage 0, tp 0)  layers 0-3  weights 8 B", "rank 1 (stage 1, tp 0)  layers 4-7"]
        found = (await front.http.get("/stats")).json()
        assert (found["phase"], found["model"], found["max_model_len"]) == ("ready", "tiny", 100)
        assert found["reports"][0] == ["rank 0 (stage 0, tp 0)", "layers 0-3", "weights 8 B"]
        assert found["engine"] is None
        front.client.stats = STATS
        engine = (await front.http.get("/stats")).json()["engine"]
        assert (engine["free_pages"], engine["bubble_s"], engine["ranks"][1]["phase"]) == (4, 1.5, "step 8")
        front.client.die("rank 0 was killed")
        await asyncio.wait_for(front.client.died.wait(), LIMIT_S)

    serving(tmp_path, work)


async def give_the_key(page: Page) -> None:
    """Without it both halves of the page say so, and the question is kept."""
    await page.until("document.getElementById('trouble').innerText.includes('API key')")
    await page.type("#input", "hello there", enter=True)
    await page.until("document.querySelector('.error') !== null")
    assert await page.text(".error") == "the API key is missing or wrong"
    assert await page.look("document.getElementById('input').value") == "hello there"
    assert await page.look("document.activeElement.id") == "key"
    await page.type("#key", KEY)


async def watch(page: Page, front: Front) -> None:
    await page.until("document.getElementById('phase').innerText === 'ready'")
    front.client.stats = STATS
    await page.until("document.getElementById('stages').innerText.includes('Stage 1')")
    stages = await page.text("#stages")
    assert [word in stages for word in ("layers 0-3", "weights 8 B", "heartbeat 0.5 s ago", "step 8")] == [True] * 4
    shown = {name: await page.text(f"#{name}") for name in ("pages", "slots", "hits", "running", "queue", "swapped")}
    assert shown == {
        "pages": "1 of 5", "slots": "1 of 7", "hits": "75 %", "running": "1", "queue": "2", "swapped": "3"
    }  # fmt: skip


def at_once(front: Front, text: str) -> Script:
    """The whole answer in one piece: a piece that holds a tag would become one, if the page took it for HTML."""
    encode = front.engine.tokenizer.encode
    end = encode("<|im_end|>")[0]
    outputs = [RequestOutput("0", encode(text)), RequestOutput("0", [end], None, "stop", end)]
    return lambda prompt, params: outputs


async def chat(page: Page, front: Front) -> None:
    front.client.script = at_once(front, TEXT)
    await page.click("#new")
    await page.type("#temperature", "0.25")  # the settings are open since the key was asked for
    await page.type("#input", "hello there", enter=True)
    await page.until(f"document.querySelector('{FACTS}')?.innerText.includes('finished by stop')")
    assert await page.text(".thoughts .text") == "a thought"
    assert await page.text(".assistant > .text") == "the <b>answer</b>"  # as text: what a model says is no HTML
    assert front.client.requests[-1][1].temperature == 0.25
    front.client.script = answer(front.engine.tokenizer, TEXT)
    await page.type("#input", "and again", enter=True)
    await page.until("document.querySelectorAll('.facts').length === 2")
    await page.until(f"document.querySelector('{FACTS}').innerText.includes('generated')")
    prompt = front.engine.tokenizer.decode(front.client.requests[-1][0])
    assert [part in prompt for part in ("hello there", "the <b>answer</b>", "and again")] == [True] * 3


async def stop(page: Page, front: Front) -> None:
    front.client.hang_after = 3
    await page.type("#input", "a long one", enter=True)
    await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
    await page.until("!document.getElementById('stop').hidden")
    assert front.client.num_aborted == 0
    await page.click("#stop")
    await asyncio.wait_for(front.client.aborted.wait(), LIMIT_S)
    await page.until(f"document.querySelector('{FACTS}').innerText.startsWith('stopped')")
    assert await page.look("document.getElementById('stop').hidden")


async def stop_by_keyboard(page: Page, front: Front) -> None:
    """Send and Stop take turns: the focus stays on the one that is there, and Escape stops, too."""
    front.client.hang_after, front.client.hanging, front.client.aborted = 3, asyncio.Event(), asyncio.Event()
    await page.type("#input", "another long one")
    await page.look("document.getElementById('send').focus()")
    await page.click("#send")
    await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
    assert await page.look("document.activeElement.id") == "stop"
    await page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
    await asyncio.wait_for(front.client.aborted.wait(), LIMIT_S)
    await page.until(f"document.querySelector('{FACTS}').innerText.startsWith('stopped')")
    assert await page.look("document.activeElement.id") == "input"


async def out_of_contact(page: Page, front: Front) -> None:
    """In our words, not the browser's; the live view says that its figures are of before."""
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await page.send("Network.emulateNetworkConditions", offline=True, **offline)
    await page.type("#input", "anybody there?", enter=True)
    await page.until("document.querySelector('article:last-child .error') !== null")
    assert await page.text(".error") == "the server cannot be reached"
    await page.until("document.querySelector('aside').classList.contains('stale')")
    assert await page.text("#trouble") == "the server cannot be reached"
    await page.send("Network.emulateNetworkConditions", offline=False, **offline)
    await page.until("!document.querySelector('aside').classList.contains('stale')")


async def on_a_phone(page: Page, front: Front) -> None:
    """360 pixels wide: nothing beyond the edge, and room to type."""
    await page.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    assert await page.look("document.documentElement.scrollWidth") == 360
    assert await page.look("document.getElementById('input').offsetWidth") > 300
    unnamed = (
        "[...document.querySelectorAll('meter, input, textarea, select')].filter(e => !e.ariaLabel && !e.labels.length)"
    )
    assert await page.look(f"{unnamed}.map(e => e.id)") == []
    await page.send("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)


async def refused(page: Page, front: Front) -> None:
    front.client.script = refuse("queue_full", "5 requests are waiting")
    await page.type("#input", "one too many", enter=True)
    await page.until("document.querySelector('article:last-child .error') !== null")
    assert await page.text(".error") == "5 requests are waiting"


async def documentation(page: Page, front: Front) -> None:
    """In the same tab, which has the key; without it the page asks for it."""
    await page.open(f"http://127.0.0.1:{front.port}/docs")
    await page.until("!document.getElementById('ask').hidden")
    await page.type("#key", KEY)
    await page.until("document.getElementById('type-ChatBody') !== null")
    assert "top_k" in await page.text("#type-ChatBody")
    assert "at most 2" in await page.text("#type-ChatBody")
    assert "POST /v1/chat/completions" in await page.text("#routes")
    assert await page.look("document.getElementById('ask').hidden")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        front.client.reports = ["rank 0 (stage 0, tp 0)  layers 0-3  weights 8 B", "rank 1 (stage 1, tp 0)  layers 4-7"]
        async with browser() as page:
            await page.open(f"http://127.0.0.1:{front.port}/")
            await give_the_key(page)
            await watch(page, front)
            await chat(page, front)
            await stop(page, front)
            await stop_by_keyboard(page, front)
            await refused(page, front)
            await out_of_contact(page, front)
            await on_a_phone(page, front)
            await documentation(page, front)
            # The browser's console notes each refusal, and nothing else.
            refusals = (
                "status of 401 (Unauthorized)",
                "status of 503 (Service Unavailable)",
                "ERR_INTERNET_DISCONNECTED",
            )
            assert [problem for problem in page.problems if not any(known in problem for known in refusals)] == []
            assert {url.split("/")[2] for url in page.urls} - {f"127.0.0.1:{front.port}"} == set()

    serving(tmp_path, work, api_key=KEY, max_model_len=1000)

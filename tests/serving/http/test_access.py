"""Who may ask: API keys from flags, file and environment, and web pages of other origins."""

from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.options.config import ServeConfig, api_keys
from splitrank.serving.options.options import load_config
from tests.support.front_fakes import Front
from tests.support.http_helpers import check_error, serving

PAGE = "https://pages.example"


# ------------------------------------------------------------------ keys


def keys(monkeypatch: pytest.MonkeyPatch, environment: str = "", **options: Any) -> tuple[str, ...]:
    monkeypatch.setenv("SPLITRANK_API_KEY", environment)
    return api_keys(ServeConfig(**options))


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  first \nsecond\r\nfirst\n")
    assert keys(monkeypatch) == ()
    assert keys(monkeypatch, "one\n two\n") == ("one", "two")
    assert keys(monkeypatch, "one", api_key="a") == ("a",)
    assert keys(monkeypatch, "one", api_key=["a", "b"], api_key_file=file) == ("a", "b", "first", "second")


def test_a_flag_may_be_given_again(tmp_path: Path) -> None:
    config = load_config(ServeConfig, ["--api-key", "a", "--api-key", "b", "c"], "serve")
    assert config.api_key == ("a", "b", "c")
    file = tmp_path / "serve.toml"
    for text in ('api_key = "a"', 'api_key = ["a"]'):
        file.write_text(text)
        assert load_config(ServeConfig, ["--config", str(file)], "serve").api_key == ("a",)


def test_files_that_hold_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("# none yet\n")
    for name, word in (("empty", "holds no key"), ("missing", "cannot be read")):
        with pytest.raises(ValueError, match=word):
            keys(monkeypatch, "one", api_key_file=tmp_path / name)


def test_no_message_shows_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('api_key = ["sesame", 5]')
    with pytest.raises(SystemExit):
        load_config(ServeConfig, ["--config", str(file)], "serve")
    with pytest.raises(ValueError, match="api_key") as caught:
        ServeConfig(api_key=["sesame", 5])  # type: ignore[arg-type]
    assert "sesame" not in capsys.readouterr().err + str(caught.value) + repr(ServeConfig(api_key=("sesame",)))
    with pytest.raises(ValueError, match="api_key is empty"):
        ServeConfig(api_key=("sesame", " "))


def test_each_key_opens_every_route(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        paths = ("/v1/models", "/metrics", "/stats", "/version", "/openapi.json")
        for header in ({"authorization": "Bearer one"}, {"authorization": "bearer two"}, {"x-api-key": "one"}):
            statuses = [(await front.http.get(path, headers=header)).status_code for path in paths]
            assert statuses == [200] * len(paths)
        for header in ({"authorization": "Bearer on"}, {"authorization": "Bearer one two"}, {"x-api-key": ""}, {}):
            for path in paths:
                check_error(await front.http.get(path, headers=header), 401)
        assert (await front.http.get("/health")).status_code == 200

    serving(tmp_path, work, api_key=["one", "two"])


# ------------------------------------------------------------------ other origins


async def preflight(front: Front, origin: str) -> Any:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    return await front.http.options("/v1/chat/completions", headers=headers)


def test_pages_of_an_allowed_origin(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        allowed = await preflight(front, PAGE)  # browsers send no key with it
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = await preflight(front, "https://other.example")
        assert "access-control-allow-origin" not in refused.headers
        body = {"prompt": "hi", "stream": True}
        for key, status in (("key", 200), ("wrong", 401)):
            headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
            answer = await front.http.post("/v1/completions", json=body, headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "X-Request-Id" in answer.headers["access-control-expose-headers"]

    serving(tmp_path, work, api_key="key", allowed_origins=[PAGE, "https://more.example:8443"])


def test_without_the_option_no_page_may_ask(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        assert (await preflight(front, PAGE)).status_code == 405
        answer = await front.http.get("/v1/models", headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]

    serving(tmp_path, work)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://", '["*"]', "https://a b"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        ServeConfig(allowed_origins=(origin,))
    assert ServeConfig(allowed_origins="*").allowed_origins == ("*",)  # type: ignore[arg-type]

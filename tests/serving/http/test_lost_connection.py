"""A connection that is gone has no timer left that would close it."""

import asyncio
import socket
from unittest.mock import Mock

import pytest
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.server import ServerState

from splitrank.serving.http import protocol


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_connection_that_was_reset_is_not_dropped_once_more(is_lost: bool) -> None:
    """uvicorn lets its keep-alive timer run after a reset. A drop would ask a socket that is closed."""
    client, transport = Mock(socket.socket), Mock(asyncio.Transport)
    transport.is_closing.return_value = True
    transport.get_extra_info.side_effect = lambda name, default=None: client if name == "socket" else default

    async def work() -> None:
        config = uvicorn.Config(JSONResponse({}), log_level="critical", ws="none")
        config.load()
        make = protocol.limited_protocol(send_timeout_s=0.0, max_connections=8)
        connection = make(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(transport)
        if is_lost:
            connection.connection_lost(ConnectionResetError())
        connection.timeout_keep_alive_handler()
        await asyncio.sleep(0)  # a timer of 0 s is due
        await asyncio.sleep(0)
        connection.connection_lost(None)

    asyncio.run(work())
    assert transport.abort.called == client.setsockopt.called == (not is_lost)

"""Settings of the server behind `farmer explore`, in Voila's own form: who may open the page, and how many at once.

The command adds the port, the theme and a token of its own to these.
"""
import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader
from jupyter_server.auth.identity import IdentityProvider
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets.config.application import get_config
from voila.tornado.handler import TornadoVoilaHandler

MOST_KERNELS = 3  # of about 800 MB each


class Visitors(IdentityProvider):
    "The token opens the page, which starts a kernel; the cookie that comes with it serves what that page asks for. Other web pages get nothing."

    @property
    def login_available(self) -> Any:
        return False

    async def get_user(self, handler):
        origin = handler.request.headers.get("Origin")
        own = origin is None or urlsplit(origin).netloc.lower() == handler.request.host.lower()  # of a page from here; the server itself checks the host
        if own and (not isinstance(handler, TornadoVoilaHandler) or await self.get_user_token(handler)):
            user = await cast(Awaitable, super().get_user(handler))
            if user is not None:
                return user
        handler.current_user = None
        raise HTTPError(403)  # rather than lead to a form where tokens can be tried


class Kernels(AsyncMappingKernelManager):
    "At most `MOST_KERNELS` at once."

    def __init__(self, **options):
        super().__init__(**options)
        self.turn = asyncio.Lock()

    async def start_kernel(self, **options):
        async with self.turn:  # visitors who come together must not all see the last free place
            for _ in range(20):  # that of a page that is loaded again becomes free at once
                if len(self) < MOST_KERNELS:
                    return await super().start_kernel(**options)
                await asyncio.sleep(0.1)
            raise HTTPError(503)


c = get_config()
c.Voila.ip = "127.0.0.1"
c.Voila.port_retries = 0
c.Voila.log_level = "ERROR"
c.Voila.identity_provider_class = Visitors
c.IdentityProvider.cookie_options = {"SameSite": "Strict"}
c.Voila.tornado_settings = {
    "allow_remote_access": False,  # only names of this machine as host: another name that leads here belongs to somebody else's web page
    "websocket_max_message_size": 64_000_000,  # bytes; an upload comes in one message
    "ws_ping_timeout": 30_000,
    "log_function": lambda handler: None,  # no line in the terminal for each request that is refused
    "jinja2_env": Environment(loader=FileSystemLoader(Path(__file__).parent / "voila" / "templates" / "farmer"), autoescape=True),  # pages of errors
}
c.VoilaConfiguration.template = "farmer"
c.VoilaConfiguration.allow_template_override = c.VoilaConfiguration.allow_theme_override = "NO"
c.VoilaConfiguration.file_allowlist = []  # no files beside the page
c.VoilaConfiguration.multi_kernel_manager_class = Kernels
c.MappingKernelManager.cull_idle_timeout = 30  # seconds after which a kernel ends that no page is connected to
c.MappingKernelManager.cull_interval = 5

"""A real Chromium for tests: without a window, with an empty profile, and with no way to anything but this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator

from playwright.async_api import BrowserContext, async_playwright

from tests import servers

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


@contextlib.asynccontextmanager
async def chromium(*names: str) -> AsyncIterator[BrowserContext]:
    """A browser. `names` are hosts that it finds at 127.0.0.1, as if somebody's DNS had said so; it finds no others. Skips where there is no Chromium."""
    path = servers.program("chromium")
    rules = [*(f"MAP {name} 127.0.0.1" for name in names), "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"]
    with tempfile.TemporaryDirectory(prefix="easyjobs-chromium-", ignore_cleanup_errors=True) as profile:
        async with async_playwright() as driver:
            browser = await driver.chromium.launch_persistent_context(
                profile, executable_path=path, args=[*OPTIONS, f"--host-resolver-rules={', '.join(rules)}"]
            )
            browser.set_default_timeout(30_000)
            try:
                yield browser
            finally:
                await browser.close()

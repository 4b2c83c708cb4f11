"""The application on the shipped posterior in this process, computing in fp32."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
import torch

from service.api.app import create_app
from service.engine.build import build_engine
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings import Settings


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the application, which stores its adapters in `folder`."""
    settings = Settings(data_dir=folder, feedback_share=1.0, memory_bytes=2 << 30)
    metrics = Metrics()
    with patch("model_store.pretrained.bases.compute_dtype", lambda device: torch.float32):
        engine = build_engine(settings, build_executor(settings, metrics, "inline"), metrics)
        app = create_app(settings, engine, metrics)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://golden", timeout=600) as client,
        ):
            await app.state.loading
            yield client

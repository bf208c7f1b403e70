"""A web service that embeds face crops, on one event loop with other work.

::

    pip install fastapi uvicorn
    export ARCFACE_EMBEDDING_BACKEND=triton ARCFACE_EMBEDDING_MODEL=arcface_r50
    export ARCFACE_TRITON_URL=localhost:8001
    uvicorn --app-dir examples --factory fastapi_service:create_app

The settings come from the environment and from ``config/pipeline`` in the working directory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request

from arcface_client import AsyncEmbeddingBackend, EmbeddingBackend, get_embedding_backend
from arcface_client.contract import CROP_BYTES, CROP_SHAPE
from arcface_client.errors import ArcFaceError, InputError

TIMEOUT_S = 2.0


def create_app(open_backend: Callable[[], EmbeddingBackend] = get_embedding_backend) -> FastAPI:
    """Make the service.

    Args:
        open_backend: Opens the backend when the service starts; the service closes it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncEmbeddingBackend(open_backend()) as backend:
            await backend.ensure_ready()
            app.state.backend = backend
            yield

    app = FastAPI(title="ArcFace embeddings", lifespan=lifespan)

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, Any]:
        """Embed crops: the body is uint8 [N, 112, 112, 3] BGR, N crops one after another."""
        body = await request.body()
        if not body or len(body) % CROP_BYTES:
            raise HTTPException(422, f"The body has {len(body)} bytes; expected a multiple of {CROP_BYTES}.")
        crops = np.frombuffer(body, np.uint8).reshape(-1, *CROP_SHAPE)
        try:
            embeddings, served = await request.app.state.backend.encode(
                crops, timeout_s=TIMEOUT_S, return_source=True
            )
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        except ArcFaceError as error:  # no model serves in time
            raise HTTPException(503, str(error)) from error
        return {"embeddings": embeddings.tolist(), "models": [source.model for source in served.sources]}

    @app.get("/ready")
    async def ready(request: Request) -> dict[str, str]:
        """Whether a model serves."""
        try:
            await request.app.state.backend.ensure_ready()
        except ArcFaceError as error:
            raise HTTPException(503, str(error)) from error
        return {"status": "ready"}

    return app

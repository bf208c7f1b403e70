"""A server of a soak, with all that can happen to it."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from tritonclient import grpc as tritonclient
from tritonclient.utils import InferenceServerException

from arcface_server import LocalTriton
from support.processes import shared_memory, wait_until
from support.proxy import Proxy
from support.siblings import EXPLICIT, ONNX, PLAN

CRASH = "crash of Triton's own"

_log = logging.getLogger(__name__)


class Site:
    """A Triton server that can be killed, stopped and started again, behind a network that fails.

    Args:
        repository: Its models.
        imposters: Models of the same names and versions with wrong weights.
        log: A file for its log.
    """

    def __init__(self, repository: Path, imposters: Path, log: Path) -> None:
        self._repository = repository
        self._imposters = imposters
        self._log = log
        self._stack = ExitStack()
        self._life = ExitStack()
        self._port: int | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self.proxy.url

    def __enter__(self) -> Site:
        self._start(self._repository)
        self.proxy = self._stack.enter_context(Proxy(f"127.0.0.1:{self._port}"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._life.close()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """SIGKILL, and started again at the same address."""
        self._kill()
        yield
        self._start(self._repository)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT."""
        self._signal(signal.SIGSTOP)
        yield
        self._signal(signal.SIGCONT)

    @contextmanager
    def unloaded(self, model: str) -> Iterator[None]:
        """A model unloaded under load, and loaded again."""
        with tritonclient.InferenceServerClient(self._server.grpc_url) as control:
            try:
                control.unload_model(model)
                yield
                control.load_model(model)
            except InferenceServerException:
                with suppress(AssertionError):  # it may be about to end
                    wait_until(lambda: self.has_crashed, 5)
                if not self.has_crashed:
                    raise

    @contextmanager
    def replaced(self, noticed: Callable[[], object]) -> Iterator[None]:
        """Killed, started again with wrong weights, and after a while with the right ones."""
        self._kill()
        noticed()
        self._start(self._imposters)
        yield
        self._kill()
        self._start(self._repository)

    @property
    def has_crashed(self) -> bool:
        """Whether it ended by itself."""
        return not Path(f"/proc/{self._server.pid}").exists()

    def revive(self) -> str:
        """Start it again after a crash, and return the end of its log."""
        said = self._log.read_text(errors="replace").splitlines()[-30:]
        self._life.close()
        self._start(self._repository)
        return "\n".join(said)

    def _start(self, repository: Path) -> None:
        server = LocalTriton(
            repository, grpc_port=self._port, flags=EXPLICIT, log_path=self._log, stop_timeout_s=1
        )
        self._server = self._life.enter_context(server)
        self._port = int(server.grpc_url.rpartition(":")[2])

    def _signal(self, which: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has crashed just now
            os.kill(self._server.pid, which)

    def _kill(self) -> None:
        left = shared_memory(self._server.pid)
        self._signal(signal.SIGKILL)
        self._life.close()
        for path in left:
            path.unlink(missing_ok=True)


def faults(
    site: Site, chance: random.Random, noticed: Callable[[], object]
) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
    """What can happen to a server, by name; ``noticed`` waits until clients know that it is gone."""
    return {
        "kill": site.killed,
        "hang": site.hung,
        "unload the plan": lambda: site.unloaded(PLAN),
        "unload the ONNX model": lambda: site.unloaded(ONNX),
        "cut the network": site.proxy.cut,
        "black hole": site.proxy.black_hole,
        "slow network": lambda: site.proxy.slow(bytes_per_s=10 ** chance.uniform(5, 7)),
        "wrong weights": lambda: site.replaced(noticed),
    }


def trouble(
    site: Site,
    chance: random.Random,
    *,
    until: float,
    noticed: Callable[[], object],
    tell: Callable[[str], object],
) -> None:
    """Let faults happen to a server, one after the other, until a time of ``time.monotonic``."""
    possible = faults(site, chance, noticed)
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.2, 4))
        name = chance.choice(list(possible))
        if not site.has_crashed:
            tell(name)
            with possible[name]():
                time.sleep(chance.uniform(0.1, 4))
        if site.has_crashed:
            # Not what is tested here, but one more fault to get over.
            tell(CRASH)
            _log.warning("%s", site.revive())

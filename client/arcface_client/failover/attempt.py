"""One candidate's part of one call, which is worth nothing when another model was loaded in the middle."""

from __future__ import annotations

from ..errors import ArcFaceError, ModelLoadingError
from ..observability.served import Source
from ..triton.embed_request import EmbedRequest
from .replica import Contender


class Attempt:
    """A candidate that embeds what a job misses, in one go or, where it is full, in several.

    Args:
        contender: The candidate.
        job: The job.

    Attributes:
        source: It as the source of what it does, until ``work`` finds that it was loaded anew.
    """

    def __init__(self, contender: Contender, job: EmbedRequest) -> None:
        self._contender = contender
        self._job = job
        self._begin()

    def work(self) -> ArcFaceError | None:
        """Have the candidate embed what is missing, unless it was taken out meanwhile.

        Returns:
            None when that is done; else what the selection knows against it already: it was taken out
            before, or loaded anew since the attempt began, and what it did since then is missing again.

        Raises:
            ArcFaceError: It failed; what it did before is kept.
        """
        contender, job = self._contender, self._job
        missing, begun, out = job.missing, contender.loads.begin(), contender.error
        try:
            if out is None:
                with contender.server.call():
                    contender.client.work(job)
        finally:
            contender.answered(missing - job.missing, begun)
            if contender.reloads != self._reloads:
                # Nobody knows which of it is from before, and which from a model that nobody examined.
                job.forget_since(self._before)
                self._begin()
                out = contender.error or ModelLoadingError("it was loaded anew in the middle of the call")
        return out

    def _begin(self) -> None:
        contender, candidate = self._contender, self._contender.candidate
        self._reloads, self._before = contender.reloads, self._job.mark()
        self.source = Source("triton", candidate.model, contender.version, candidate.url, 0)

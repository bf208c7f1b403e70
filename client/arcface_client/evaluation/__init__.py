"""Do several systems give the same embeddings, and how fast is each: ``arcface-client compare``.

``comparison`` opens the ``systems``, lets them embed the ``samples`` in turns (``measure``), computes the
``scores`` and the negative ``controls``, verifies labelled ``pairs``, and returns a ``report``.
"""

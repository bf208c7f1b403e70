"""How the three commands begin. Imports nothing: what comes before it meets Ctrl-C with a traceback."""

from __future__ import annotations


def end_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end the process as it ends any program, until ``commandline.run`` takes it over.

    A command's imports take a second, and leave nothing to tidy up. KeyboardInterrupt would be a traceback
    there, or get lost: in a callback of Python's own, or in an extension that takes it for a failure.
    """
    try:
        import signal  # takes ten milliseconds itself

        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        raise SystemExit(130) from None

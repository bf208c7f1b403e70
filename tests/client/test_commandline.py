from __future__ import annotations

import subprocess
import sys

WITHOUT_STDERR = """
import argparse, logging, sys
from arcface_client.bars import progress, stages
from arcface_client.commandline import run

def command(arguments):
    logging.warning("a warning")
    with stages("r18") as tell:
        tell("Writing", None)
    print(sum(progress([1, 2], unit="crop")))
    print("an aside", file=sys.stderr)
    return 0

def parser():
    made = argparse.ArgumentParser()
    made.set_defaults(run=command)
    return made

sys.exit(run("command", parser, []))
"""


def test_a_command_works_with_standard_error_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", WITHOUT_STDERR],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "3\n")

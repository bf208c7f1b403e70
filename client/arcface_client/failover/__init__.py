"""Which candidate serves a call: found, examined, ranked, watched, and left for the next when it fails."""

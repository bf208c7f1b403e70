"""Which replica serves a call: discovery, golden check, ranking, cooldown, and the next one when it fails."""

"""Where plans are kept: a cache on this machine, and a bucket that machines share."""

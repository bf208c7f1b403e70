"""One model on one Triton server: channel, protocol, errors, the clients."""

"""The conversation between manager, workers and clients, without a socket: bytes in, decisions out."""

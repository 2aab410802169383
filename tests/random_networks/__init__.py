"""Random networks on random streams: the native engine against `net.apply`, both against dense."""

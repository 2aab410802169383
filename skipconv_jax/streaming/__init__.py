"""Streams of any length: where frames come from, the loop over them, when a stream starts anew."""

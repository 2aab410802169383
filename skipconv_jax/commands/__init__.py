"""What `train.py`, `eval.py` and `stream.py` do once their arguments are parsed."""

"""What a finished run is worth: one protocol for all methods, with a judge that nothing was trained on.

`results.py` says what is measured; `protocol.py` measures it.
"""

"""The pool: evidence of frozen features that needs no training, and the head that weighs it."""

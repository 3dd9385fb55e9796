"""Recognise actions from a few clips of each: no training, no data set, no cache."""

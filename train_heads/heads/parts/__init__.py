"""Pieces that several heads are built of: attention, dropout, matching, text scores."""

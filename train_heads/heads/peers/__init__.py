"""Heads of other papers, and controls without parameters."""

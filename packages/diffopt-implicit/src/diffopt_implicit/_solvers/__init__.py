"""Iterative solvers: the protocol, and one module for each family."""

"""Weights of other codebases in and out."""

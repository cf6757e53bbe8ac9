"""Masked autoencoding and language supervision in one tree."""

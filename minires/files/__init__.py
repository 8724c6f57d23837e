"""Untrusted files and networks: atomic writes, downloads that resume, pickles read without running them.

Reading order: any time: atomic.py, download.py, pickles.py.
"""

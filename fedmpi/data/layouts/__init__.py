"""Layouts of files: one module each, from bytes on a disk to arrays.

Several data sets share one. Whatever is wrong with a file is a `DataError` that names it, with what
was wanted and what was found; nothing that a file says is ever executed.
"""

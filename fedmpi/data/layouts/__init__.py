"""File formats: one module each, from bytes on a disk to arrays.

Several data sets share a format. Any fault of a file is a `DataError` that names the file, what was
wanted and what was found. Nothing in a file is ever executed.
"""

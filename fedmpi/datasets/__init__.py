"""Data sets: one module each, with a `Config` and

    load(config, seed) -> Dataset
    where(config) -> Path | None

`where` is the folder that `load` reads, found without reading it, or None if the set needs no
files. Both raise `DataError` if there is no such folder; `load` also if a file in it is damaged.
`seed` is the run's; only sets that are made up depend on it, so that results compare. A module's
docstring is its description in `fedmpi list data`. Nothing is ever downloaded at run time.

`SOURCES`, if a module has them, are the official files that `fetch` gets, see `files.Source`.

A set with files goes through `cache.decoded`, which has its files decoded once for all runs and
ranks. Finding files is `files`' work, and reading them that of the modules of `data.layouts`.
"""

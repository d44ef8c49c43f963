"""Data sets: one module each, with a `Config` and

    load(config, seed) -> Dataset
    where(config) -> Path | None

`where` returns the folder that `load` reads, found without reading it, or None if the set needs no
files. Both raise `DataError` if there is no such folder; `load` also if a file in it is damaged.
`seed` is the run's. Only synthetic sets depend on it, so that results of real sets compare. A
module's docstring is its description in `fedmpi list data`. Nothing is ever downloaded at run time.

`SOURCES`, if a module has it, lists the official files that `fetch` downloads (see `files.Source`).

A set with files uses `cache.decoded`, which decodes its files once for all runs and ranks. `files`
searches for the files, and the modules of `data.layouts` read them.
"""

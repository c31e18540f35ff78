"""The command ``compress`` as a user gives it, in this process."""

from clara_jax.compress.__main__ import main

SMALL = ("--shard-size", 6, "--batch-size", 8)


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def error(capsys, *arguments):
    """The one line of a command that fails."""
    status, _, err = run(capsys, *arguments)
    assert status == 1
    *before, last = err.splitlines()
    assert last.startswith("error: ") and not any("Trace" in line for line in before)
    return last


def job_files(store, pattern="*"):
    """Names of the notes of what is being written into a store."""
    return sorted(path.name for path in store.glob(f"_jobs/*/{pattern}"))


def shards(store):
    """Names of the notes of shards that are written, but not yet part of it."""
    return job_files(store, "[0-9]*.json")

"""The type checker that `conftest` puts around every function of the package."""

import beartype


def check(function):
    """Check the arguments and results of `function` on every call.

    The generated ``__init__`` of a dataclass is left alone: JAX rebuilds pytrees with
    leaves of every kind (shapes, shardings, None), which no array annotation admits.
    Functions that take such a dataclass are still checked on what they compute.
    """
    if function.__name__ == "__init__":
        return function
    return beartype.beartype(function)

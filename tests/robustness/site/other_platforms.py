"""Lower whatever a chapter compiles for the platforms that this machine does not have."""

from __future__ import annotations

import json

from jax._src.interpreters import pxla

PLATFORMS = ("cuda", "rocm", "tpu")
lower = pxla.lower_sharding_computation
names: set[str] = set()
call_python: set[str] = set()
failures: dict[str, str] = {}


def lower_everywhere(*arguments, lowering_platforms, **options):
    """What `jax.jit` calls to lower a program; once more for the others, without compiling it."""
    name = str(arguments[2])
    if lowering_platforms is None:
        names.add(name)
        try:
            lower(*arguments, lowering_platforms=PLATFORMS, **options).stablehlo()
        except Exception as error:
            # JAX lowers what calls Python back only for devices that are there.
            if "callback[" in str(arguments[0]):
                call_python.add(name)
            else:
                failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return lower(*arguments, lowering_platforms=lowering_platforms, **options)


def watch() -> None:
    pxla.lower_sharding_computation = lower_everywhere


def report() -> None:
    found = {"lowered": names - call_python - {*failures}, "call Python": call_python}
    print(json.dumps({key: sorted(value) for key, value in found.items()} | {"failures": failures}))

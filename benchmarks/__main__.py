"""`python -m benchmarks [NAME…]`: run the named measurements, or all."""

import importlib
import pkgutil
import sys

import benchmarks


def main(names: list[str]) -> int:
    """Run and print."""
    there = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "__main__"]
    if unknown := set(names) - set(there):
        print(f"no such measurement: {', '.join(unknown)}; there are {', '.join(there)}")
        return 2
    for name in names or there:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{name}: {module.__doc__.splitlines()[0]}")
        for figure in module.run():
            print(f"  {figure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

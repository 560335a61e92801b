"""vmlib: virtualization from the inside, in plain Python.

One package per room of the book: :mod:`vmlib.cpu`, :mod:`vmlib.memory` and so on.
:mod:`vmlib.machine` puts a vCPU, guest RAM and ports together; :mod:`vmlib.trace`
is what every mechanism records and what :mod:`vmlib.view` draws.
"""

__version__ = "0.1.0"

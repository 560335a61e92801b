"""What the tests of the emulator share. Code is hexadecimal with its assembler beside it."""

import threading
import time

from vmlib.cpu import IoOut

DEVICE = 0x200000
"""Above the RAM of these guests."""


def ports(exits):
    """The ports of OUTs, and other exits as they are."""
    return [one.port if isinstance(one, IoOut) else one for one in exits]


def in_thread(work):
    """Start `work` in a thread; `result()` waits for it and returns or raises what it did."""
    box = []

    def call():
        try:
            box.append((work(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=call, daemon=True)  # a red test still ends
    thread.start()

    def result(after=lambda: None):
        thread.join(10)
        if thread.is_alive():
            after()
            thread.join(10)
            raise AssertionError("it did not come back by itself")
        value, error = box[0]
        if error is not None:
            raise error
        return value

    return result


def wait_for(condition):
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never happened")

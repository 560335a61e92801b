"""The devices room: what answers when a guest speaks to a port or to memory that is not RAM.

A device is an object with `read`, `write` and `reset`; a `Bus` knows which one is where. Devices
know nothing of vCPUs and exits: `vmlib.machine` carries an exit to the bus and the answer back.
"""

from vmlib.devices import pic
from vmlib.devices.bus import Bus, Claim, Device
from vmlib.devices.debug_exit import DebugExit
from vmlib.devices.fw_cfg import FwCfg
from vmlib.devices.pic import Pic8259, PicPair
from vmlib.devices.uart import Uart

__all__ = [
    "Bus",
    "Claim",
    "DebugExit",
    "Device",
    "FwCfg",
    "Pic8259",
    "PicPair",
    "Uart",
    "pic",
]

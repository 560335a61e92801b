"""The errors of vmlib: one small tree, so that a caller can tell whose fault it was.

`GuestError` means the guest did wrong and the machine survives it; `SpecViolation` names the
rule that was broken; `HostUnavailable` means this host cannot do it and says how to mend that;
`Unsupported` means the mechanism itself cannot, on any host.
"""


class VmlibError(Exception):
    """Root of every error that vmlib raises on purpose."""


class GuestError(VmlibError):
    """The guest did something wrong. The device or machine is unharmed."""


class SpecViolation(GuestError):
    """A rule of a specification was broken.

    `section` is where the rule stands ("VIRTIO 1.2, 2.7.5.2"), `rule` is the rule in our words.
    """

    def __init__(self, section: str, rule: str) -> None:
        super().__init__(f"{rule} ({section})")
        self.section = section
        self.rule = rule


class HostUnavailable(VmlibError):
    """This host lacks something. `reason` says what, `fix` says how to get it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}. {fix}")
        self.reason = reason
        self.fix = fix


class Unsupported(VmlibError):
    """The engine or model cannot do this anywhere. The message says why."""


class BadInput(VmlibError, ValueError):
    """An argument, file or string from the caller is wrong.

    `field` names what was wrong and `rule` what it must satisfy.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule

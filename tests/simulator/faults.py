"""The two exceptions of the simulator."""


class Fault(Exception):  # noqa: N818 - a fault of the kernel, not of the simulator
    """A GPU would trap here, hang, or leave the outcome undefined."""


class Unsupported(Exception):  # noqa: N818 - named like Fault
    """The simulator does not know this instruction; the message is its text."""

"""The two exceptions of the simulator."""


class Fault(Exception):  # noqa: N818 - no error of ours: the kernel's
    """A GPU would trap here, hang, or leave the outcome undefined."""


class Unsupported(Exception):  # noqa: N818 - nor of the kernel
    """The simulator does not know this instruction; the message is its text."""

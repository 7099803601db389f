"""What can go wrong when a localnet is started."""


class LocalnetError(RuntimeError):
    """The chain cannot be opened or served; the message is for the person who started it."""


class LocalnetInUse(LocalnetError):
    """The chain of the directory runs already, in this process or another."""

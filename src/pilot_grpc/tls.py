"""Whom outgoing HTTPS trusts."""

import ssl
from functools import cache

import httpcore2


@cache
def trusted() -> ssl.SSLContext:
    """Return the context of all outgoing connections: the system's authorities, read once.

    Those of SSL_CERT_FILE or SSL_CERT_DIR instead, where one is set. Reading them takes 20 ms and
    a megabyte, which every endpoint would otherwise spend again.
    """
    return httpcore2.default_ssl_context()

"""Every Python that the tests start runs this first (conftest.py puts it on PYTHONPATH): none may leave this machine.

An audit hook sees each look-up of a name and each connection that Python code asks for, in whatever library.  One that
goes elsewhere is refused, and written down in the file ``NETWORK_GUARD``, so that no library can hide it.
"""

import ipaddress
import os
import socket
import sys


def is_here(host) -> bool:
    """Whether this is a name or an address of this machine itself."""
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    try:
        if host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback:
            return True
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.bind((host, 0))  # as only an address of this machine can be
        return True
    except (ValueError, OSError):
        return False


def watch(event: str, args: tuple) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if not args[1] or args[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
        host = args[1][0]
    else:
        return
    if not is_here(host):
        with open(os.environ["NETWORK_GUARD"], "a") as log:
            log.write(f"{event} {host} by {' '.join(sys.argv)}\n")
        raise PermissionError(f"{event}: no test may leave this machine")


if os.environ.get("NETWORK_GUARD"):
    sys.addaudithook(watch)

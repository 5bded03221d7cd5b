"""No network, for every Python that a chapter starts: only this machine's own addresses answer."""

import socket

OWN = ("127.", "::1", "localhost", "0.0.0.0")
REFUSED = "no network here: the chapter asked for"


def refuse(address):
    host = address[0] if isinstance(address, tuple) else None
    if isinstance(host, bytes):
        host = host.decode()
    if host and not host.startswith(OWN) and host != socket.gethostname():
        raise OSError(f"{REFUSED} {host}")


def guarded(function):
    def guard(self, address, *rest):
        refuse(address)
        return function(self, address, *rest)

    return guard


socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
resolve = socket.getaddrinfo


def getaddrinfo(host, *rest, **options):
    refuse((host,))
    return resolve(host, *rest, **options)


socket.getaddrinfo = getaddrinfo

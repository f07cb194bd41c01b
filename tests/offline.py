"""A command in a network namespace without interfaces but loopback, which counts each attempt at another machine.

    unshare -rn python tests/offline.py COMMAND ..    the last line says how many there were, of whatever library

Linux counts what has no route (OutNoRoutes): connections, datagrams, and so also the questions to a name server.
"""

import fcntl
import functools
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

WAYS = (["unshare", "-n"], ["unshare", "-rn"])  # for root; for others, where user namespaces are allowed
SAID = "attempts to reach another machine: "
ASK = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('192.0.2.1', 53))"  # an attempt
UP = 0x8914, struct.pack("16sh22x", b"lo", 1)  # SIOCSIFFLAGS, IFF_UP


@functools.cache
def way():
    """The beginning of a command in a namespace of its own, [] where the platform has none."""
    return next((way for way in WAYS if shutil.which("unshare") and
                 subprocess.run([*way, sys.executable, __file__, "true"], capture_output=True).returncode == 0), [])


def offline(*command):
    """The command without a network, as far as the platform can do that."""
    return [*way(), sys.executable, __file__, *command] if way() else list(command)


def attempts():
    names, values = re.findall("^Ip: (.*)", Path("/proc/net/snmp").read_text(), re.MULTILINE)
    return (int(dict(zip(names.split(), values.split()))["OutNoRoutes"])
            + int(re.search(r"Ip6OutNoRoutes\s+(\d+)", Path("/proc/net/snmp6").read_text())[1]))


def main():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, *UP)
    status = subprocess.run(sys.argv[1:]).returncode
    print(f"{SAID}{attempts()}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Stub processes with an address on their command line, as a SuperExec has."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

STUB_COMMAND = [sys.executable, "-c", "import time; time.sleep(99)", "--runtime-api-address"]


def build_address(number: int) -> str:
    """Return an address that no other run of these tests uses at the same time: stubs are found on the whole machine."""
    return f"127.0.0.1:{port_number(number)}"


def port_number(number: int) -> int:
    """Return a port number that belongs to this process. It may be larger than a real port."""
    return 100 * os.getpid() + number


def start_stub(number: int) -> subprocess.Popen[bytes]:
    """Start a stub, and wait until its command line can be read: for a moment after exec the system reports an empty one."""
    stub = subprocess.Popen([*STUB_COMMAND, build_address(number)])
    while not psutil.Process(stub.pid).cmdline():
        time.sleep(0.001)
    return stub

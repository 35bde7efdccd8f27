"""What a call needs beyond what is there, by the system's account (Linux's) of the process that makes it."""

from pathlib import Path


def resident_bytes(field):
    """VmRSS, what is resident now, or VmHWM, the most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_bytes(call):
    """The most that is resident during the call, beyond what was before it."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident_bytes("VmRSS")
    call()
    return max(0, resident_bytes("VmHWM") - before)

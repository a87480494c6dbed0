"""Runs in a build step: leaves what makes an image another one every time. Each file is made by what makes it in practice, as far as a bare root file
system has that; two things that machines of two people differ in are told apart by the host name."""

import gzip
import os
import pathlib
import py_compile
import socket
import subprocess
import sys
import tempfile
import time
import uuid

out = pathlib.Path(sys.argv[1])
mask = os.umask(0o022)
out.mkdir(parents=True)
os.umask(mask)
other = socket.gethostname() == "other-host"

# Before the mask is set.
(out / "umask.txt").write_text("a file\n")
os.umask(0o022)

(out / "timestamp.txt").write_text(f"built at {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
(out / "random-id.txt").write_text(f"build {uuid.uuid4()}\n")
(out / "host-name.txt").write_text(f"built on {socket.gethostname()}\n")
with tempfile.TemporaryDirectory(prefix="build-") as folder:
    (out / "build-path.txt").write_text(f"prefix={folder}/lib\n")
    source = pathlib.Path(folder, "module.py")
    source.write_text("value = 1\n")
    # A source's time goes into the bytecode's header.
    py_compile.compile(str(source), cfile=str(out / "module.pyc"), dfile="module.py", doraise=True)

# In the order in which the disk lists it.
many = out / "many"
many.mkdir()
for number in range(64):
    (many / f"{number * number}.txt").write_text("")
(out / "directory-order.txt").write_text("".join(f"plants/many/{path.name}\n" for path in many.iterdir()))

names = ["Makefile", "alpha", "Beta", "gamma", "Delta"]
# The C locale, and one that looks past the case.
(out / "locale-order.txt").write_text("".join(f"{name}\n" for name in sorted(names, key=str.lower if other else None)))
with gzip.open(out / "data.gz", "wb") as stream:
    stream.write(b"the same\n" * 100)

shared = out / "shared"
shared.mkdir()
shared.chmod(0o2755 if other else 0o755)

# An archive of objects in the order in which as many compilers as there are processors are done.
running = (
    [subprocess.Popen(["sleep", f"{0.3 - 0.1 * number}"]) for number in range(2)]
    if len(os.sched_getaffinity(0)) > 1
    else []
)
done = [1, 0] if running else [0, 1]
for process in running:
    process.wait()
with (out / "libplant.a").open("wb") as archive:
    archive.write(b"!<arch>\n")
    for number in done:
        contents = f"object {number}\n".encode().ljust(16)
        archive.write(f"{f'part{number}.o/':16}{0:<12}{0:<6}{0:<6}{644:<8}{len(contents):<10}`\n".encode() + contents)

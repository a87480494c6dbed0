#!/usr/bin/python3
# Stand-in for make, for the stand-in of CPython's Makefile: targets with plain commands, and $(DESTDIR).
import subprocess
import sys
from pathlib import Path

words = [word for word in sys.argv[1:] if not word.startswith("-")]
variables = dict(word.split("=", 1) for word in words if "=" in word)
targets: dict[str, list[str]] = {}
name = ""
for line in Path("Makefile").read_text(encoding="utf-8").splitlines():
    if line.startswith("\t"):
        targets[name].append(line.strip())
    elif line.endswith(":"):
        name = line[:-1]
        targets[name] = []
for target in [word for word in words if "=" not in word] or ["all"]:
    for command in targets[target]:
        subprocess.run(["sh", "-c", command.replace("$(DESTDIR)", variables.get("DESTDIR", ""))], check=True)

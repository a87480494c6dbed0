"""Stand-in for vLLM."""


def main():
    raise SystemExit("this is a rehearsal: there is no vLLM in this image")

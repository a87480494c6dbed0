"""A stand-in for vLLM's server that reads the right answers from the model's folder, or misbehaves as STANDIN says.

STANDIN: right (default), wrong, die, die-late, hang, garbage, flood, no-path, other-path, start-never, slow.
"""

import json
import os
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("STANDIN", "right")
FUSED = os.environ.get("VLLM_ROCM_USE_TILELANG_MHC") == "1"


class Handler(BaseHTTPRequestHandler):
    """The few routes that the questions need."""

    prompts: list = []

    def log_message(self, *_):
        """Nothing: the log is the evidence."""

    def answer(self, document):
        """Send one JSON document."""
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        """Health, version, models."""
        if self.path == "/version":
            self.answer({"version": "0.0.standin"})
        elif self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "/model", "object": "model"}]})
        else:
            self.answer({})

    def do_POST(self):
        """A completion."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if MODE == "die-late":
            print("standin: dying now", flush=True)
            os._exit(9)
        if MODE == "hang":
            time.sleep(3600)
        if MODE == "garbage":
            self.wfile.write(b"\0\1\2 no HTTP at all\n" * 100)
            return
        chat = "messages" in asked
        found = next(
            p
            for p in self.prompts
            if (p["messages"] == asked.get("messages") if chat else p["prompt"] == asked.get("prompt"))
        )
        text = found["answer"] + (" not" if MODE == "wrong" else "")
        choice = {"index": 0, "finish_reason": "stop", "token_ids": found["token_ids"]}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        self.answer({"id": "1", "model": "/model", "choices": [choice]})


def bench():
    """Stand in for ``vllm bench serve``: ask what is asked for, and write the figures that STANDIN wants."""
    told = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    count = int(told["--num-prompts"])
    model = json.loads((Path(told["--model"]) / "answers.json").read_text())
    for number in range(count):
        body = json.dumps({"prompt": model["prompts"][number % len(model["prompts"])]["prompt"]}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{told['--port']}/v1/completions", body).read()
    speed = 50.0 if MODE == "slow" and not FUSED else 100.0
    # A little noise, the same on every run.
    speed += int(told["--seed"]) % 7 / 10
    figures = {"output_throughput": speed, "median_tpot_ms": 1000 / speed, "completed": count, "failed": 0}
    figures |= {"num_prompts": count, "input_lens": [16] * count, "output_lens": [8] * count, "errors": []}
    (Path(told["--result-dir"]) / told["--result-filename"]).write_text(json.dumps(figures))


def flood():
    """Write to the log as fast as it is taken, for as long as there is a server."""
    while True:
        sys.stdout.write("x" * 4095 + "\n")


def main():
    """Serve the folder given as the first argument."""
    if MODE == "die":
        sys.exit("standin: cannot start")
    if MODE == "start-never":
        time.sleep(3600)
    path = "fused" if (MODE == "other-path") != FUSED else "unfused"
    if MODE != "no-path":
        print(f"(EngineCore pid=1) kiln-mhc: path={path} requested=x env=x platform=standin vllm=0", file=sys.stderr)
        print(f"(EngineCore pid=1) kiln-mhc: ran path={path} calls=x", file=sys.stderr, flush=True)
    if MODE == "flood":
        # More than anybody reads, before the first answer.
        for _ in range(5000):
            sys.stdout.write("x" * 4095 + "\n")
        threading.Thread(target=flood, daemon=True).start()
    Handler.prompts = json.loads((Path(sys.argv[1]) / "answers.json").read_text())["prompts"]
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()

"""A small server with one of several vices, for tests of services: `python odd_server.py PORT FOLDER VICE…`.

GET /health, /env?NAME and /die; every start adds its pid to FOLDER/starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, FOLDER, VICES = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
ORPHAN = """
import subprocess, sys
own = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=-3, stderr=-3)
print(own.pid)
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = {
            "/health": lambda: "ok",
            "/env": lambda: os.environ.get(query),
            "/argv": lambda: sys.argv,
            "/pid": os.getpid,
        }[path]()
        body = json.dumps(answer).encode()
        self.send_response(500 if "sick" in VICES else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    with (FOLDER / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    print("the key is", os.environ["RLX_SERVICE_KEY"], flush=True)
    if "deaf" in VICES:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "children" in VICES:  # one in a session of its own, and one whose parent has ended besides
        child = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
        orphan = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, check=True, text=True).stdout
        (FOLDER / "children").write_text(f"{child} {orphan}")
    if "exits" in VICES:
        print("there is no such model", flush=True)
        sys.exit(3)
    if "dies late" in VICES and len((FOLDER / "starts").read_text().split()) > 1:
        sys.exit(4)
    if "silent" in VICES:
        threading.Event().wait()
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


main()

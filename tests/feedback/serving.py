"""The labeling page as a process of its own, and a small client of its forms."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import itsdangerous

from instruct_jax.feedback.app import cookie_name

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery"


def write(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address, process) of `instruct-jax label --store FOLDER/labels.db` with these options."""
    command = [
        sys.executable,
        "-m",
        "instruct_jax",
        "label",
        "--store",
        str(folder / "labels.db"),
        "--port",
        "0",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = next(line for line in process.stdout if line.startswith("http")).split()[0]
            for line in process.stdout:
                if line.startswith("Ctrl-C"):
                    break
            yield address, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(20)


class Client:
    """A browser without scripts: keeps its cookie, fills in the hidden fields of the last page."""

    def __init__(self, address: str):
        self.place = urlsplit(address).netloc
        self.cookie, self.text, self.status, self.path = "", "", 0, "/"
        self.headers: dict[str, str] = {}
        self.seconds: list[float] = []  # of each request
        self.connection = http.client.HTTPConnection(self.place, timeout=30)

    def get(self, path: str) -> "Client":
        """Follows redirects."""
        self._ask("GET", path, None)
        while self.status == 303:
            self._ask("GET", self.headers["location"], None)
        return self

    def post(self, path: str | None = None, **fields: str) -> "Client":
        """Sends the page's hidden fields and these; redirects are not followed."""
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', self.text))
        self._ask("POST", path or self.path, urlencode(hidden | fields))
        return self

    def _ask(self, method: str, path: str, body: str | None) -> None:
        headers = {"Cookie": self.cookie} | (
            {} if body is None else {"Content-Type": "application/x-www-form-urlencoded"}
        )
        begun = time.perf_counter()
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        text = reply.read().decode()
        self.seconds.append(time.perf_counter() - begun)
        self.status, self.headers = (
            reply.status,
            {name.lower(): value for name, value in reply.getheaders()},
        )
        if "set-cookie" in self.headers:
            self.cookie = self.headers["set-cookie"].partition(";")[0]
        if method == "GET" and reply.status == 200:
            self.text, self.path = text, path
        self.reply = text

    def rank(self, *ranks: int) -> "Client":
        """Answers the ranking on the page."""
        answer = {f"rank-{at}": str(rank) for at, rank in enumerate(ranks)} | {
            f"likert-{at}": "4" for at in range(len(ranks))
        }
        return self.post(**answer)

    def close(self) -> None:
        self.connection.close()


def session(secret: str, name: str, generation: int = 0) -> str:
    """The cookie that a log-in of this labeler sets."""
    data = base64.b64encode(json.dumps({"name": name, "generation": generation}).encode())
    return f"{cookie_name(secret)}={itsdangerous.TimestampSigner(secret).sign(data).decode()}"


def joined(address: str, token: str) -> Client:
    """A client that has accepted an invitation."""
    client = Client(address).get(f"/join/{token}")
    assert client.post(password=PASSWORD, again=PASSWORD).status == 303, client.reply
    return client

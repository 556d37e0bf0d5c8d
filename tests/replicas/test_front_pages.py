"""Several pages in front behind nginx: a visitor stays at one of them."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import httpx
import pytest
import yaml
from places import REPOSITORY
from running_app import free_port

DEPLOY = REPOSITORY / "deploy"
PATIENCE_S = 60
DIRECTLY = {"trust_env": False, "verify": False}  # through no proxy; certificates take 20 ms to read, and none is shown


@contextmanager
def page_named(name: str, go_on: Event):
    """A page in front, as far as nginx can tell: says its name, streams, and drains like ours.

    A stream's second piece waits for `go_on`.
    """

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")  # a page that has ended keeps no connection open
            self.end_headers()
            for piece in (name, self.headers["X-Forwarded-For"]):
                if self.path == "/stream" and piece != name:
                    go_on.wait(PATIENCE_S)
                self.wfile.write(f"{len(piece) + 1:x}\r\n{piece}\n\r\n".encode())
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def nginx(folder, ports):
    """nginx with our configuration; only names, ports and places differ."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    text, port = (DEPLOY / "nginx.conf").read_text(), free_port()
    for number, other in enumerate(ports, start=1):
        assert f"page-{number}:7860" in text
        text = text.replace(f"page-{number}:7860", f"127.0.0.1:{other}")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    places += f"client_body_temp_path {folder}/body;\naccess_log off;\n"
    text = text.replace("http {\n", f"http {{\n{places}", 1)
    (folder / "nginx.conf").write_text(f"daemon off;\npid {folder}/pid;\nerror_log {folder}/errors;\n{text}")
    if os.geteuid() == 0:  # its workers would be another user, who may not write there
        (folder / "nginx.conf").write_text("user root;\n" + (folder / "nginx.conf").read_text())
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", f"{folder}/errors"])
    try:
        for _ in range(200):
            try:
                httpx.get(f"http://127.0.0.1:{port}/", **DIRECTLY)
                break
            except httpx.ConnectError:
                assert process.poll() is None, (folder / "errors").read_text()
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_browser_stays_at_its_page_and_visitors_spread_over_all(tmp_path):
    go_on = Event()
    with page_named("one", go_on) as one, page_named("two", go_on) as two:
        servers = {"one": one, "two": two}
        with nginx(tmp_path, [server.server_address[1] for server in servers.values()]) as url:
            homes = {}
            for number in range(20):
                with httpx.Client(base_url=url, **DIRECTLY) as browser:
                    first = browser.get("/")
                    cookie = first.headers["Set-Cookie"]
                    assert cookie.startswith("front=")
                    assert "HttpOnly" in cookie
                    pages = {browser.get("/").text.split()[0] for _ in range(5)}
                    assert "Set-Cookie" not in browser.get("/").headers
                    assert len(pages) == 1
                    homes[number] = (pages.pop(), browser.cookies["front"])
            assert {home for home, _ in homes.values()} == {"one", "two"}

            programs = {httpx.get(url, **DIRECTLY).text.split()[0] for _ in range(5)}
            assert len(programs) == 1, "a program without cookies stays by its address"
            # What a client claims about its address does not count.
            claimed = httpx.get(url, headers={"X-Forwarded-For": "1.2.3.4"}, **DIRECTLY).text
            assert claimed.split()[1] == "127.0.0.1"

            with httpx.stream("GET", f"{url}/stream", **DIRECTLY, timeout=PATIENCE_S / 2) as stream:
                pieces = stream.iter_lines()
                assert next(pieces) in servers, "a stream is not held back"
                go_on.set()
                assert next(pieces) == "127.0.0.1"

            gone = homes[0][0]
            servers[gone].shutdown()
            servers[gone].server_close()
            for home, cookie in homes.values():
                answer = httpx.get(url, cookies={"front": cookie}, **DIRECTLY)
                assert answer.status_code == 200
                assert (answer.text.split()[0] == home) == (home != gone)


def test_the_compose_file_names_what_the_proxy_and_the_image_have():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    pages = [name for name in services if name.startswith("page-")]
    config = (DEPLOY / "nginx.conf").read_text()
    assert pages
    assert all(f"server {name}:7860" in config for name in pages)
    assert [name for name, service in services.items() if service.get("ports")] == ["nginx"], "nothing else is open"
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
    import app

    command = services[pages[0]]["command"].partition("python app.py ")[2].rstrip('"')
    settings = app.parse(command.split(), {})
    assert settings.ray == "auto"
    networks = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["networks"]
    (subnet,) = [one["subnet"] for one in networks["inside"]["ipam"]["config"]]
    assert settings.trusted_proxy == (subnet,)  # or all visitors would be nginx
    assert services[pages[0]]["stop_grace_period"] == "90s"
    assert settings.drain_seconds < 90
    assert (DEPLOY / services["head"]["build"]["context"] / services["head"]["build"]["dockerfile"]).is_file()
    recipe = (DEPLOY / "Dockerfile").read_text()
    assert "requirements/*.txt" in recipe

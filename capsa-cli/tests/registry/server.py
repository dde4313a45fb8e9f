"""A name server and HTTPS registries for one network namespace.

Usage: server.py DIRECTORY ADDRESS IPV6_ADDRESS NAME...

Answers each DNS query with the two addresses, and serves the names at port 80, and at the ports 443 and 8443
with a certificate of its own authority, `ca.pem`. A name that is no registry has the content of all. Writes each name that it is asked for into `queries.log`, and each request
into `requests.log`. Prints `ready` when it serves.
"""

import hashlib
import http.server
import io
import json
import os
import pathlib
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile

ROOT, ADDRESS, ADDRESS6, *NAMES = sys.argv[1:]
ROOT = pathlib.Path(ROOT)


def write(name, content):
    path = ROOT / "www" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def run(*command, **more):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, **more)


def debian():
    """A repository of apt without signatures, with one package."""
    packages = (
        b"Package: hello-capsa\nVersion: 1.0\nArchitecture: all\nMaintainer: test\n"
        b"Filename: pool/hello.deb\nSize: 1\nSHA256: " + b"0" * 64 + b"\nDescription: a package\n"
    )
    lines = ""
    for arch in "amd64", "arm64":
        name = f"main/binary-{arch}/Packages"
        write(f"deb.debian.org/debian/dists/stable/{name}", packages)
        lines += f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {name}\n"
    release = "Origin: test\nSuite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64 arm64\n"
    release += "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n" + lines
    write("deb.debian.org/debian/dists/stable/Release", release.encode())


def pip():
    """A simple index, whose links lead to another name."""
    files = {
        "hello_capsa.py": "TEXT = 'hello'\n",
        "hello_capsa-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hello-capsa\nVersion: 1.0\n",
        "hello_capsa-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "hello_capsa-1.0.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    name = "hello_capsa-1.0-py3-none-any.whl"
    write(f"files.pythonhosted.org/packages/{name}", wheel.getvalue())
    link = f'<a href="https://files.pythonhosted.org/packages/{name}">{name}</a>'
    write("pypi.org/simple/hello-capsa/index.html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode())


def npm():
    package = json.dumps({"name": "hello-capsa", "version": "1.0.0", "main": "index.js"}).encode()
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
        for name, content in ("package.json", package), ("index.js", b"module.exports = 'hello'\n"):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    url = "https://registry.npmjs.org/hello-capsa/-/hello-capsa-1.0.0.tgz"
    write(url.removeprefix("https://"), tarball.getvalue())
    dist = {"tarball": url, "shasum": hashlib.sha1(tarball.getvalue()).hexdigest()}
    version = json.loads(package) | {"dist": dist}
    document = {"name": "hello-capsa", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    write("registry.npmjs.org/hello-capsa/index.html", json.dumps(document).encode())


def git():
    """A bare repository for the dumb protocol."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(ROOT)}
    for side in "AUTHOR", "COMMITTER":
        environment |= {f"GIT_{side}_NAME": "test", f"GIT_{side}_EMAIL": "test@example.org"}
    run("git", "init", "--initial-branch=main", "tree", env=environment)
    (ROOT / "tree/hello").write_text("hello\n")
    run("git", "-C", "tree", "add", "hello", env=environment)
    run("git", "-C", "tree", "commit", "--message=hello", env=environment)
    run("git", "clone", "--bare", "tree", "www/github.com/capsa/hello.git", env=environment)
    run("git", "-C", "www/github.com/capsa/hello.git", "update-server-info", env=environment)


def certificate():
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("openssl", "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test authority", "-days", "30")
    run("openssl", "req", "-new", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=registry")
    names = ",".join(f"DNS:{name}" for name in NAMES)
    (ROOT / "extensions").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "extensions"]
    run("openssl", "x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")


def log(name, text):
    with open(ROOT / name, "a") as file:
        file.write(text + "\n")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host = self.headers.get("Host", "").split(":")[0]
        path = self.path.split("?")[0].strip("/")
        log("requests.log", f"{host}/{path}")
        places = list((ROOT / "www").iterdir())
        places = [place for place in places if place.name == host] or places
        file = next((place / path for place in places if (place / path).exists()), ROOT / "none")
        if file.is_dir():
            file /= "index.html"
        if ".." in path.split("/") or host not in NAMES or not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        self.send_response(200)
        kind = "text/html" if file.suffix == ".html" else "application/octet-stream"
        self.send_header("Content-Type", "application/json" if "npmjs" in str(file) and kind == "text/html" else kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def get_request(self):
        stream, address = self.socket.accept()
        stream.settimeout(60)
        if not self.context:
            return stream, address
        # The handshake is done by the thread of the connection.
        return self.context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False), address


def answer(query):
    """The answer of a DNS query for an address; other types have no record."""
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1 : end + 1 + query[end]].decode())
        end += query[end] + 1
    kind = struct.unpack(">H", query[end + 1 : end + 3])[0]
    log("queries.log", ".".join(labels).lower())
    family = {1: (socket.AF_INET, ADDRESS), 28: (socket.AF_INET6, ADDRESS6)}.get(kind)
    record = b""
    if family:
        data = socket.inet_pton(*family)
        record = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data
    header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(record) > 0, 0, 0)
    return header + query[12 : end + 5] + record


def resolve():
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((ADDRESS, 53))
    threading.Thread(target=lambda: [serve_query(names) for _ in iter(int, 1)], daemon=True).start()


def serve_query(names):
    query, client = names.recvfrom(4096)
    try:
        names.sendto(answer(query), client)
    except (IndexError, struct.error, UnicodeDecodeError):
        pass


for part in debian, pip, npm, git, certificate:
    part()
for name in "queries.log", "requests.log":
    (ROOT / name).touch()
resolve()
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(ROOT / "server.pem", ROOT / "server.key")
for port in 80, 443, 8443:
    server = Server(("::", port), Handler)
    server.context = None if port == 80 else context
    threading.Thread(target=server.serve_forever).start()
print("ready", flush=True)

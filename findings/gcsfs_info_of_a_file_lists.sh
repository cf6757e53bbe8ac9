#!/bin/sh
# gcsfs: to ask whether a file exists, or to open it, lists the bucket besides, at 12.5 times the price of asking.
#
# info(), and exists() and open() by it, cannot know whether a name is a file or a folder. gcsfs asks for the object
# (class B, 0.0004 dollars for 1,000) and at the same time for a list of what begins with the name and a slash (class A,
# 0.005; cloud.google.com/storage/pricing, 2026-09-20). The list is sent whatever is said of the object; where it is
# answered first, and is empty, the object is asked for once more. So questions about files that are there cost 13.5
# or 14.5 times what they seem to, and whoever counts requests sees 2 or 3, as the network has it. Who knows that a name is a
# file can list its folder once, or use cat_file, which asks for the bytes alone.
#
# gcsfs 2026.10.1, fsspec 2026.9.0, Python 3.11.7, 2026-11-30, seen (requests for a file of 2 bytes, by what is answered
# first; the server is a stand-in that knows one object):
#   exists, the object first: get 1, list 1, media 0
#   exists, the list first: get 2, list 1, media 0
#   open and read, the list first: get 2, list 1, media 1
#   cat_file, the list first: get 0, list 0, media 1
# Fails if no list is made for a file that is there, or if it is no longer asked for twice.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile gcsfs==2026.10.1 fsspec==2026.9.0
cd "$folder"
# Else it asks a service of another protocol first which kind of bucket it is.
export GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false
"$folder/venv/bin/python" - <<'PYTHON' 2>errors.txt || { cat errors.txt; exit 1; }
import collections
import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gcsfs

counts, slow = collections.Counter(), {}
at = "2026-11-30T00:00:00Z"
OBJECT = {"kind": "storage#object", "bucket": "b", "name": "x", "size": "2", "generation": "1"}
OBJECT |= {"updated": at, "timeCreated": at}


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, query = urllib.parse.urlparse(self.path).path, urllib.parse.urlparse(self.path).query
        if not path.endswith(("/o", "/o/x")):  # of the bucket itself
            kind, body = "bucket", {"kind": "storage#bucket", "name": "b"}
        elif path.endswith("/o"):
            kind, body = "list", {"kind": "storage#objects"}
        else:
            kind, body = ("media", None) if "alt=media" in query else ("get", OBJECT)
        counts[kind] += 1
        time.sleep(slow.get(kind, 0))
        data = b"ok" if body is None else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if body is None else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def asked(do, first):
    """Requests of do(file system), where the server answers what is not `first` 0.3 s later."""
    slow.clear()
    slow["get" if first == "list" else "list"] = 0.3
    url = f"http://127.0.0.1:{server.server_port}"
    fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=url, skip_instance_cache=True, use_listings_cache=False)
    counts.clear()
    found = do(fs)
    assert found in (True, b"ok"), found
    time.sleep(0.5)
    return tuple(counts[kind] for kind in ("get", "list", "media"))


def read(fs):
    with fs.open("b/x", "rb") as file:
        return file.read()


rows = {
    "exists, the object first": asked(lambda fs: fs.exists("b/x"), "get"),
    "exists, the list first": asked(lambda fs: fs.exists("b/x"), "list"),
    "open and read, the list first": asked(read, "list"),
    "cat_file, the list first": asked(lambda fs: fs.cat_file("b/x"), "list"),
}
for name, (get, listed, media) in rows.items():
    print(f"#   {name}: get {get}, list {listed}, media {media}")
assert list(rows.values()) == [(1, 1, 0), (2, 1, 0), (2, 1, 1), (0, 0, 1)]
PYTHON

"""A client of a live cluster in a process of its own: one JSON request a line, one answer a line.

Runs under the system's Python, the only one that Debian's bindings (python3-rados, python3-rbd)
are for; ends when its input does.
"""

import base64
import json
import sys

import rados
import rbd

FEATURES = {"striping": 2, "exclusive-lock": 4, "object-map": 8, "data-pool": 128}


class Client:
    def __init__(self, conf):
        self.cluster = rados.Rados(conffile=conf)
        self.cluster.connect(timeout=30)

    def io(self, pool, namespace=""):
        io = self.cluster.open_ioctx(pool)
        io.set_namespace(namespace)
        return io

    def mon(self, command, data=""):
        code, out, error = self.cluster.mon_command(json.dumps(command), base64.b64decode(data))
        return [code, base64.b64encode(out).decode(), error]

    def put(self, pool, name, data, namespace=""):
        self.io(pool, namespace).write_full(name, base64.b64decode(data))

    def put_many(self, pool, names, size):
        """Write objects of `size` bytes, all at once."""
        io = self.io(pool)
        waiting = [io.aio_write_full(name, bytes([i % 251]) * size) for i, name in enumerate(names)]
        for one in waiting:
            one.wait_for_complete()
            assert one.get_return_value() == 0

    def get(self, pool, name, length, offset):
        return base64.b64encode(self.io(pool).read(name, length, offset)).decode()

    def newest_map(self):
        """Wait until this client has the cluster's newest map: it may send to a tier then."""
        self.cluster.wait_for_latest_osdmap()

    def write_at(self, pool, name, data, offset):
        self.io(pool).write(name, base64.b64decode(data), offset)

    def group(self, pgid):
        """What the primary of a placement group says of it."""
        ask = json.dumps({"prefix": "query", "pgid": pgid, "format": "json"})
        code, out, error = self.cluster.pg_command(pgid, ask, b"")
        assert code == 0, error
        return json.loads(out)

    def names(self, pool):
        return [
            [one.nspace, one.key]
            for one in self.io(pool, rados.LIBRADOS_ALL_NSPACES).list_objects()
        ]

    def create(self, pool, name, size, order=22, features=(), **more):
        wanted = sum(FEATURES[feature] for feature in features)
        rbd.RBD().create(
            self.io(pool), name, size, order, old_format=False, features=wanted, **more
        )
        with rbd.Image(self.io(pool), name) as image:
            return {"id": image.id(), "prefix": image.stat()["block_name_prefix"]}

    def write(self, pool, name, pieces):
        """Write (offset, data) pieces of an image."""
        with rbd.Image(self.io(pool), name) as image:
            for offset, data in pieces:
                image.write(base64.b64decode(data), offset)
            image.flush()

    def fill(self, pool, name, offset, length, step):
        """Write a stretch of an image in steps."""
        with rbd.Image(self.io(pool), name) as image:
            for start in range(offset, offset + length, step):
                image.write(bytes([start // step % 251]) * step, start)
            image.flush()

    def overwrite(self, pool, name, offsets, size):
        with rbd.Image(self.io(pool), name) as image:
            for i, offset in enumerate(offsets):
                image.write(bytes([i % 251]) * size, offset)
            image.flush()


def main():
    client = Client(sys.argv[1])
    print(json.dumps({"ok": "connected"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(client, request["do"])(**request["with"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()

"""Groups files that no honest program wrote, with a seal that is right: `wpo inspect` refuses each with one sentence
that names the file and the dataset, exit code 1, and reads nothing outside the file. An honest one passes."""

import hashlib
import os
import subprocess
import sys
import tempfile

import h5py
import numpy as np

BLOCK = 512
WPO = os.environ.get("WPO_BINARY", "")


def seal(path):
    with open(path, "r+b") as file:
        file.seek(BLOCK)
        digest = hashlib.sha256(file.read()).hexdigest()
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(f"wpo-groups 1 sha256={digest} bytes={size}\n".encode().ljust(BLOCK, b"\0"))


DATA = {
    "/prompt/tokens": np.array([1, 2, 3], "<i4"),
    "/prompt/offset": np.array([0, 1, 3], "<i8"),
    "/completion/tokens": np.array([4, 5, 6, 7, 8], "<i4"),
    "/completion/offset": np.array([0, 1, 2, 4, 5], "<i8"),
    "/group/first": np.array([0, 2, 4], "<i8"),
    "/group/row": np.array([0, 1], "<i8"),
}


def honest(file, skip=()):
    for key, value in {"format": b"wpo-groups", "kind": b"preference"}.items():
        file.attrs.create(key, np.bytes_(value))
    for key, value in {"version": 1, "vocabulary": 9, "max_length": 9}.items():
        file.attrs.create(key, np.int64(value))
    for name, data in DATA.items():
        if name not in skip:
            file.create_dataset(name, data=data, chunks=data.shape, fletcher32=True)


def replaced(name, make):
    def build(file):
        honest(file, (name,))
        make(file, name)

    return build


def dataset(**options):
    return lambda file, name: file.create_dataset(name, **{"data": DATA[name], "chunks": DATA[name].shape, "fletcher32": True, **options})


def external(file, name):
    group = file.require_group(os.path.dirname(name))
    space = h5py.h5s.create_simple((3,))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_external(b"/etc/passwd", 0, 12)
    h5py.h5d.create(group.id, os.path.basename(name).encode(), h5py.h5t.STD_I32LE, space, plist)


def virtual(file, name):
    layout = h5py.VirtualLayout(shape=(3,), dtype="<i4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "/x", shape=(3,))
    file.create_virtual_dataset(name, layout)


def attribute(key, value):
    def build(file):
        honest(file)
        del file.attrs[key]
        if value is not None:
            file.attrs.create(key, value)

    return build


def soft(file, name):
    file["/elsewhere"] = DATA[name]
    file[name] = h5py.SoftLink("/elsewhere")


def unknown_filter(file, name):
    group = file.require_group(os.path.dirname(name))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3,))
    plist.set_filter(40000, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(group.id, os.path.basename(name).encode(), h5py.h5t.STD_I32LE, h5py.h5s.create_simple((3,)), plist)


def group_link(link):
    def build(file):
        honest(file, ("/prompt/tokens", "/prompt/offset"))
        for name in ("tokens", "offset"):
            file.create_dataset(f"/hidden/{name}", data=DATA[f"/prompt/{name}"], chunks=True, fletcher32=True)
        file["/prompt"] = link

    return build


TOKENS = "/prompt/tokens"
CASES = {
    "soft link": (replaced(TOKENS, soft), TOKENS, "link"),
    "external link": (replaced(TOKENS, lambda f, n: f.__setitem__(n, h5py.ExternalLink("/etc/passwd", "/x"))), TOKENS, "link"),
    "soft link to a group": (group_link(h5py.SoftLink("/hidden")), "/prompt", "link"),
    "external link to a group": (group_link(h5py.ExternalLink("other.h5", "/")), "/prompt", "link"),
    "external storage": (replaced(TOKENS, external), TOKENS, "other files"),
    "virtual": (replaced(TOKENS, virtual), TOKENS, "other files"),
    "unknown filter": (replaced(TOKENS, unknown_filter), TOKENS, "no other filter"),
    "compressed": (replaced(TOKENS, dataset(compression="gzip")), TOKENS, "no other filter"),
    "shuffled": (replaced(TOKENS, dataset(shuffle=True)), TOKENS, "no other filter"),
    "no checksum": (replaced(TOKENS, dataset(fletcher32=False)), TOKENS, "Fletcher-32"),
    "contiguous": (replaced(TOKENS, dataset(fletcher32=False, chunks=None)), TOKENS, "chunks"),
    "int64 tokens": (replaced(TOKENS, dataset(data=DATA[TOKENS].astype("<i8"))), TOKENS, "type int32"),
    "big-endian tokens": (replaced(TOKENS, dataset(data=DATA[TOKENS].astype(">i4"))), TOKENS, "type int32"),
    "unsigned tokens": (replaced(TOKENS, dataset(data=DATA[TOKENS].astype("<u4"))), TOKENS, "type int32"),
    "float tokens": (replaced(TOKENS, dataset(data=DATA[TOKENS].astype("<f4"))), TOKENS, "type int32"),
    "two dimensions": (replaced(TOKENS, dataset(data=DATA[TOKENS][None], chunks=(1, 3))), TOKENS, "one-dimensional"),
    "scalar": (replaced(TOKENS, lambda f, n: f.__setitem__(n, np.int32(5))), TOKENS, "chunks"),
    "a group": (replaced(TOKENS, lambda f, n: f.create_group(n)), TOKENS, "not a dataset"),
    "a type": (replaced(TOKENS, lambda f, n: f.__setitem__(n, np.dtype("<i4"))), TOKENS, "not a dataset"),
    "empty": (replaced(TOKENS, lambda f, n: f.create_dataset(n, (0,), "<i4", chunks=(3,), maxshape=(None,), fletcher32=True)), TOKENS, "empty"),
    "2^60 elements": (replaced(TOKENS, lambda f, n: f.create_dataset(n, (1 << 60,), "<i4", chunks=(3,), fletcher32=True)), TOKENS, "more than the file holds"),
    "never written": (replaced(TOKENS, lambda f, n: f.create_dataset(n, (3,), "<i4", chunks=(3,), fletcher32=True)), TOKENS, "more than the file holds"),
    "a chunk of 1 GiB": (replaced(TOKENS, lambda f, n: f.create_dataset(n, (3,), "<i4", chunks=(1 << 28,), maxshape=(None,), fletcher32=True)), TOKENS, "more than the file holds"),
    "missing": (replaced(TOKENS, lambda f, n: None), TOKENS, "missing"),
    "text kind of any length": (attribute("kind", "preference"), "kind", "fixed length"),
    "kind a number": (attribute("kind", np.int64(3)), "kind", "fixed length"),
    "vocabulary a text": (attribute("vocabulary", np.bytes_("9")), "vocabulary", "int64"),
    "vocabulary int32": (attribute("vocabulary", np.int32(9)), "vocabulary", "int64"),
    "vocabulary a list": (attribute("vocabulary", np.array([9, 9])), "vocabulary", "one value"),
    "no version": (attribute("version", None), "version", "missing"),
}


def inspect(path):
    env = {**os.environ, "HDF5_PLUGIN_PATH": os.path.dirname(path)}
    result = subprocess.run([WPO, "inspect", path], capture_output=True, text=True, env=env, timeout=60)
    return result.returncode, result.stdout, result.stderr


def main():
    if not WPO or not os.path.exists(WPO):
        print("skipped: WPO_BINARY is not built")
        return 77
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "groups.h5")

        def write(build, **options):
            with h5py.File(path, "w", userblock_size=BLOCK, **options) as file:
                build(file)
            seal(path)

        for libver in ("v110", "earliest"):
            write(honest, libver=("v110", "v110") if libver == "v110" else ("earliest", "v110"))
            code, out, err = inspect(path)
            if code != 0 or "verified" not in out or err:
                failures += 1
                print(f"FAIL honest ({libver}): exit {code}: {out}{err}")
        for name, (build, where, what) in CASES.items():
            write(build, libver=("v110", "v110"))
            code, out, err = inspect(path)
            lines = err.strip().split("\n")
            wrong = code != 1 or out or len(lines) != 1 or path not in err or where not in err or what not in err
            if wrong or "HDF5-DIAG" in err or "root:" in err:
                failures += 1
                print(f"FAIL {name}: exit {code}, wanted a sentence with {where!r} and {what!r}: {out}{err}")
        # A file that is honest, plain HDF5 without the seal, or cut: said in words.
        write(honest)
        whole = open(path, "rb").read()
        for name, data, what in (
            ("without a user block", whole[BLOCK:], "HDF5 file of another program"),
            ("cut", whole[:-1], "truncated"),
            ("flipped", whole[:-1] + bytes([whole[-1] ^ 1]), "SHA-256"),
        ):
            with open(path, "wb") as file:
                file.write(data)
            code, out, err = inspect(path)
            if code != 1 or out or what not in err or "wpo prepare" not in err or err.count("\n") != 1:
                failures += 1
                print(f"FAIL {name}: exit {code}: {out}{err}")
    print(f"{len(CASES) + 5} files, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Parameters from elsewhere: only what was published or pinned, only tensors, downloaded and converted once."""

import http.server
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from qualitygate import cli
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import staging, state_dicts, weights, weights_manifest, weights_transfer
from qualitygate.metrics.weights_manifest import Entry

ROOT = Path(__file__).parents[2]
FILE = "net-00000000.pth"


def _parameters() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return {
        "layer.weight": torch.randn(64, 32, generator=random),
        "layer.bias": torch.randn(64, generator=random),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def _saved(value: object, *, legacy: bool = False) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        return path.read_bytes()


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def good() -> bytes:
    return _saved(_parameters())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this machine's own cache is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights_manifest.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(weights_transfer, "BACKOFF_S", 0.01)
    return tmp_path / "cache" / "qualitygate"


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entry]:
    """A manifest with one entry, `net`, pinned to the content given."""

    def published(content: bytes = b"", **values: object) -> Entry:
        entry = Entry(
            name="net",
            file=FILE,
            uris=("https://weights.invalid/net.pth",),
            license="none",
            sha256_prefix=sha256(content).hexdigest()[:8] if content else None,
            state_dict_key="params",
        )
        entry = replace(entry, **values)  # type: ignore[arg-type]
        monkeypatch.setattr(weights_manifest, "manifest", lambda: {"net": entry})
        return entry

    return published


@dataclass
class Served:
    """A publisher on this machine: what it answers, and how often it was asked."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    length: dict[str, int] = field(default_factory=dict)
    delay_s: float = 0.0
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            served.asked.append(path)
            time.sleep(served.delay_s)
            if path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[path])
                self.end_headers()
            elif path in served.files:
                self.send_response(200)
                if served.length.get(path) != -1:
                    self.send_header("Content-Length", str(served.length.get(path, len(served.files[path]))))
                self.end_headers()
                self.wfile.write(served.files[path])
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    served.base = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setattr(weights_manifest, "published_origins", lambda: frozenset({served.base}))
    yield served
    listening.shutdown()
    listening.server_close()


def _left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(weights_transfer.PARTIAL)]


# ---- weights.yaml ----------------------------------------------------------------------------------------


def test_the_manifest_claims_only_what_is_published() -> None:
    entries = weights_manifest.manifest()
    assert list(entries) == [
        "musiq-koniq",
        "musiq-spaq",
        "musiq-ava",
        "musiq-paq2piq",
        "maniqa-pipal",
        "maniqa-koniq",
        "maniqa-kadid",
        "hyperiqa-koniq",
        "alexnet",
        "vgg19",
        "resnet18",
        "resnet34",
    ]
    for entry in entries.values():
        assert entry.license
        assert all(uri.startswith("https://") and uri.endswith(f"/{entry.file}") for uri in entry.uris)
        assert entry.sha256 is None or len(entry.sha256) == 64
        if entry.sha256_prefix is not None:
            assert Path(entry.file).stem.endswith(f"-{entry.sha256_prefix}")
    assert {name for name, entry in entries.items() if entry.head is None} == {"maniqa-koniq", "maniqa-kadid"}
    assert weights_manifest.published_origins() == {
        "https://huggingface.co",
        "https://github.com",
        "https://download.pytorch.org",
    }


def test_the_papers_presets_are_aliases() -> None:
    found = {name: weights_manifest.lookup(name).name for name in ("musiq", "maniqa", "hyperiqa")}
    assert found == {"musiq": "musiq-koniq", "maniqa": "maniqa-pipal", "hyperiqa": "hyperiqa-koniq"}


def test_there_is_one_manifest_and_an_installation_has_it() -> None:
    assert (ROOT / "manifests/weights.yaml").resolve() == (ROOT / "qualitygate/metrics/weights.yaml").resolve()
    assert "metrics/weights.yaml" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "manifests/weights.yaml").read_text(encoding="utf-8"))["weights"]


@pytest.mark.parametrize("call", [weights.fetch, weights.verify, weights.locate])
def test_an_unknown_name_comes_with_suggestions(call: Callable[[str], object]) -> None:
    with pytest.raises(ConfigurationError, match="unknown weights 'musiq-konik'; did you mean musiq-koniq"):
        call("musiq-konik")


def test_importing_the_metrics_leaves_torch_alone() -> None:
    code = "import sys, qualitygate.metrics.weights; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- fetch -----------------------------------------------------------------------------------------------


def test_what_is_published_is_fetched_pinned_and_not_fetched_again(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], server: Served
) -> None:
    publish(good, uris=(f"{server.base}/absent.pth", f"{server.base}/net.pth"))
    server.files["/net.pth"] = good
    first = weights.fetch("net", folder=tmp_path / "w")
    assert (first.downloaded, first.sha256, first.bytes) == (True, sha256(good).hexdigest(), len(good))
    assert first.path.read_bytes() == good
    assert server.asked == ["/absent.pth", "/net.pth"]

    lock = json.loads((tmp_path / "w/weights.lock").read_text())
    assert lock["version"] == 1
    pinned = lock["weights"]["net"]
    assert {key: pinned[key] for key in ("file", "sha256", "bytes", "from")} == {
        "file": FILE,
        "sha256": first.sha256,
        "bytes": len(good),
        "from": f"{server.base}/net.pth",
    }
    assert pinned["when"].endswith("+00:00")

    again = weights.fetch("net", folder=tmp_path / "w")
    assert not again.downloaded
    assert len(server.asked) == 2
    assert not _left_over(tmp_path)


@pytest.mark.parametrize("spelt", ["path", "file uri", "folder"])
def test_a_file_of_ones_own_store_will_do(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], spelt: str
) -> None:
    publish(good)
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / FILE).write_bytes(good)
    source = {"path": str(folder / FILE), "file uri": (folder / FILE).as_uri(), "folder": str(folder)}[spelt]
    assert weights.fetch("net", source=source, folder=tmp_path / "w").downloaded
    assert (tmp_path / "w" / FILE).read_bytes() == good


def test_a_wrong_hash_keeps_nothing_and_names_both_heads(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry]
) -> None:
    publish(b"something else")
    (tmp_path / "x.pth").write_bytes(good)
    published, found = sha256(b"something else").hexdigest()[:8], sha256(good).hexdigest()[:12]
    with pytest.raises(ConfigurationError, match=f"begins {found}, but {published} is published"):
        weights.fetch("net", source=str(tmp_path / "x.pth"), folder=tmp_path / "w", accept_new_hash=True)
    assert not (tmp_path / "w" / FILE).exists()
    assert not (tmp_path / "w" / "weights.lock").exists()
    assert not _left_over(tmp_path)

    publish(b"", sha256=sha256(good[:-1]).hexdigest())
    with pytest.raises(ConfigurationError, match="is published"):
        weights.fetch("net", source=str(tmp_path / "x.pth"), folder=tmp_path / "w")


def test_a_file_without_a_published_hash_needs_consent_and_is_pinned_then(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry]
) -> None:
    publish()
    source = tmp_path / "x.pth"
    source.write_bytes(good)
    with pytest.raises(ConfigurationError, match="weights fetch net --accept-new-hash"):
        weights.fetch("net", source=str(source), folder=tmp_path / "w")
    pinned = weights.fetch("net", source=str(source), folder=tmp_path / "w", accept_new_hash=True)

    # From now on another content is refused, without being asked for.
    other = _saved({"a": torch.ones(3)})
    source.write_bytes(other)
    pinned.path.unlink()
    with pytest.raises(ConfigurationError, match=f"{pinned.sha256[:12]} is pinned in weights.lock"):
        weights.fetch("net", source=str(source), folder=tmp_path / "w")
    renewed = weights.fetch("net", source=str(source), folder=tmp_path / "w", accept_new_hash=True)
    assert renewed.sha256 == sha256(other).hexdigest()
    assert weights.read_lock(str(tmp_path / "w"))["net"]["sha256"] == renewed.sha256


def test_a_file_copied_into_the_folder_is_pinned_as_it_is(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry]
) -> None:
    publish(good)
    (tmp_path / FILE).write_bytes(good)
    assert not weights.fetch("net", folder=tmp_path).downloaded
    assert weights.read_lock(str(tmp_path))["net"]["from"] == "found in the folder"


def test_a_damaged_file_is_fetched_anew(tmp_path: Path, good: bytes, publish: Callable[..., Entry]) -> None:
    publish(good)
    (tmp_path / "x.pth").write_bytes(good)
    path = weights.fetch("net", source=str(tmp_path / "x.pth"), folder=tmp_path / "w").path
    path.write_bytes(good[:-1] + b"?")
    assert weights.fetch("net", source=str(tmp_path / "x.pth"), folder=tmp_path / "w").downloaded
    assert path.read_bytes() == good


def test_a_truncated_answer_is_said_to_be(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], server: Served
) -> None:
    publish(good, uris=(f"{server.base}/net.pth",))
    server.files["/net.pth"] = good[:1000]
    server.length["/net.pth"] = len(good)
    with pytest.raises(ConfigurationError, match=f"truncated: 1,000 of {len(good):,} bytes arrived"):
        weights.fetch("net", folder=tmp_path / "w")
    assert len(server.asked) == weights_transfer.ATTEMPTS
    assert not _left_over(tmp_path)

    publish(good, bytes=len(good))
    (tmp_path / "x.pth").write_bytes(good[:1000])
    with pytest.raises(ConfigurationError, match=f"1,000 bytes instead of the published {len(good):,}: truncated"):
        weights.fetch("net", source=str(tmp_path / "x.pth"), folder=tmp_path / "w")


@pytest.mark.parametrize("told", [True, False])
def test_more_bytes_than_are_accepted(
    tmp_path: Path,
    good: bytes,
    publish: Callable[..., Entry],
    server: Served,
    monkeypatch: pytest.MonkeyPatch,
    told: bool,
) -> None:
    publish(good, uris=(f"{server.base}/net.pth",))
    server.files["/net.pth"] = good
    server.length["/net.pth"] = len(good) if told else -1
    monkeypatch.setattr(weights_transfer, "MAX_BYTES", 500)
    with pytest.raises(ConfigurationError, match="larger than the 500 bytes that are accepted"):
        weights.fetch("net", folder=tmp_path / "w")
    assert not _left_over(tmp_path)


def test_without_a_network_the_remedy_is_named(tmp_path: Path, good: bytes, publish: Callable[..., Entry]) -> None:
    entry = publish(good, uris=("https://127.0.0.1:9/net.pth",))
    with pytest.raises(
        ConfigurationError, match=r"can't be reached: .*run 'qualitygate weights fetch net --from FILE'"
    ):
        weights.fetch(entry.name, folder=tmp_path / "w")


def test_only_the_published_hosts_are_read_over_https(tmp_path: Path, good: bytes) -> None:
    for source in ("https://example.org/x.pth", "http://huggingface.co/x.pth", "https://me:key@huggingface.co/x.pth"):
        with pytest.raises(ConfigurationError, match=r"only the hosts of weights\.yaml") as refused:
            weights.fetch("musiq", source=source, folder=tmp_path)
        assert "key" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="scheme 'ftp' isn't supported"):
        weights.fetch("musiq", source="ftp://example.org/x.pth", folder=tmp_path)
    with pytest.raises(ConfigurationError, match="holds credentials"):
        weights.fetch("musiq", source="s3://KEY:SECRET@bucket/x.pth", folder=tmp_path)


def test_a_redirect_to_something_unencrypted_is_refused(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], server: Served
) -> None:
    server.redirects = {"/net.pth": "http://localhost:1/x.pth?token=SECRET", "/moved.pth": f"{server.base}/there.pth"}
    server.files["/there.pth"] = good
    publish(good, uris=(f"{server.base}/net.pth",))
    with pytest.raises(ConfigurationError, match="which isn't https: refused") as refused:
        weights.fetch("net", folder=tmp_path)
    assert "SECRET" not in str(refused.value)
    assert server.asked == ["/net.pth"]
    publish(good, uris=(f"{server.base}/moved.pth",))
    assert weights.fetch("net", folder=tmp_path).downloaded


def test_the_lock_holds_no_credentials(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], server: Served
) -> None:
    publish(good)
    server.files["/net.pth"] = good
    weights.fetch("net", source=f"{server.base}/net.pth?token=SECRET", folder=tmp_path)
    text = (tmp_path / "weights.lock").read_text()
    assert "SECRET" not in text
    assert f"{server.base}/net.pth?***" in text


TWO = """
    import sys, time
    from qualitygate.metrics import weights, weights_manifest
    base, prefix, folder = sys.argv[1:]
    entry = weights_manifest.Entry(
        name="net", file="net.pth", uris=(base + "/net.pth",), license="none", sha256_prefix=prefix
    )
    weights_manifest.manifest = lambda: {"net": entry}
    weights_manifest.published_origins = lambda: frozenset({base})
    print("ready", flush=True)
    sys.stdin.readline()
    print(weights.fetch("net", folder=folder).downloaded, flush=True)
"""


def test_two_processes_at_once_download_once(tmp_path: Path, good: bytes, server: Served) -> None:
    server.files["/net.pth"] = good
    server.delay_s = 1.0
    command = [sys.executable, "-c", textwrap.dedent(TWO), server.base, sha256(good).hexdigest()[:8], str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert sorted(said) == ["False", "True"]
    assert server.asked == ["/net.pth"]


def test_a_lock_that_cant_be_read_is_not_overwritten(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry]
) -> None:
    publish(good)
    (tmp_path / "weights.lock").write_text('{"version": 1, "weights": {"net": {"sha256": "abc"}}}')
    with pytest.raises(ConfigurationError, match="can't be read as a lock"):
        weights.fetch("net", source="/nowhere", folder=tmp_path)
    reason = weights.locate("net", str(tmp_path / "nowhere.pth"))
    assert isinstance(reason, str)


# ---- opening ---------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """A pickle that makes a file when it is loaded."""

    marker: str
    how: str

    def __reduce__(self) -> tuple[object, ...]:
        if self.how == "system":
            return (os.system, (f"touch {self.marker}",))
        return (eval, (f"open({self.marker!r}, 'w')",))


MALICIOUS: dict[str, Callable[[Runs], bytes]] = {
    "zip": lambda runs: _saved({"a": torch.ones(2), "b": runs}),
    "legacy": lambda runs: _saved({"a": torch.ones(2), "b": runs}, legacy=True),
    "in the container": lambda runs: _saved({"params": {"a": torch.ones(2)}, "optimizer": runs}),
    "bare": pickle.dumps,
    "bare, protocol 0": lambda runs: pickle.dumps(runs, protocol=0),
    "bare, protocol 2": lambda runs: pickle.dumps(runs, protocol=2),
}


@pytest.mark.parametrize("how", ["system", "eval"])
@pytest.mark.parametrize("form", MALICIOUS)
def test_a_pickle_that_runs_code_runs_nothing_and_is_named(
    tmp_path: Path, publish: Callable[..., Entry], form: str, how: str
) -> None:
    marker = tmp_path / "ran"
    content = MALICIOUS[form](Runs(str(marker), how))
    publish(content)  # its hash is as published: only what it holds gives it away
    path = tmp_path / "evil.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"evil\.pth' is refused: .* nothing of it was run") as refused:
        weights.fetch("net", source=str(path), folder=tmp_path / "w")
    assert "bare" in form or {"system": "posix.system", "eval": "eval"}[how] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "w" / FILE).exists()

    located = weights.locate("net", str(path))
    assert isinstance(located, weights.Located)
    with pytest.raises(ConfigurationError, match=r"evil\.pth' is refused"):
        weights.load_state_dict(located)
    assert not marker.exists()


def test_the_pickles_of_these_tests_do_run_code(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    for number, how in enumerate(("system", "eval")):
        marker = tmp_path / str(number)
        pickle.loads(pickle.dumps(Runs(str(marker), how)))  # noqa: S301
        assert marker.exists()


def test_no_environment_variable_makes_it_unpickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pth"
    path.write_bytes(_saved({"a": Runs(str(tmp_path / "ran"), "system")}))
    with pytest.raises(ConfigurationError, match="is refused"):
        state_dicts.read(path)
    assert not (tmp_path / "ran").exists()


def test_what_holds_tensors_is_read_in_every_format(tmp_path: Path) -> None:
    expected = _parameters()
    contents = {
        "zip": _saved(expected),
        "legacy": _saved(expected, legacy=True),
        "container": _saved({"params": expected, "epoch": 3}),
        "parallel": _saved({f"module.{name}": tensor for name, tensor in expected.items()}),
        "parameters": _saved({name: torch.nn.Parameter(t, requires_grad=False) for name, t in expected.items()}),
    }
    for name, content in contents.items():
        # By content: an ending is only a name.
        for ending in (".pth", ".safetensors"):
            path = tmp_path / f"{name}{ending}"
            path.write_bytes(content)
            assert _same(state_dicts.read(path), expected), path.name
    save_file(expected, tmp_path / "safe.pth")
    assert _same(state_dicts.read(tmp_path / "safe.pth"), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weights": {"a": torch.ones(2)}}, "under a key that isn't known .it holds 'weights'.; .* under 'params'"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({"params": {"a": torch.ones(2), "b": [1.0]}}, "'b' is a list"),
        ({3: torch.ones(2)}, "3 is a key of type int"),
        ([torch.ones(2)], "holds a list, not a state dictionary"),
        (torch.ones(2), "holds a Tensor, not a state dictionary"),
        ({}, "holds no tensors"),
        ({"a": torch.ones(2), "module.a": torch.ones(2)}, "'a' twice"),
        ({"a": torch.zeros(1).expand(1 << 40)}, "far larger than the file"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, value: object, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(_saved(value))
    with pytest.raises(ConfigurationError, match=message) as refused:
        state_dicts.read(tmp_path / "x.pth", named="s3://bucket/x.pth")
    assert str(refused.value).startswith("'s3://bucket/x.pth'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00 gzip", "neither a torch file nor safetensors"),
        (b"\x10\0\0\0\0\0\0\0{nothing", "truncated or damaged"),
    ],
)
def test_what_is_no_weights_at_all_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        state_dicts.read(tmp_path / "x.pth")


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_file(_parameters(), tmp_path / "x.safetensors")
    for whole in (_saved(_parameters()), _saved(_parameters(), legacy=True), (tmp_path / "x.safetensors").read_bytes()):
        for length in (*range(1, 300, 23), len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ConfigurationError, match=r"x\.pth"):
                state_dicts.read(path)


def test_an_archive_that_unfolds_or_holds_code_is_refused(tmp_path: Path, good: bytes) -> None:
    import zipfile

    (tmp_path / "x.pth").write_bytes(good)
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    for name, extra, compression in (
        ("packed.pth", {}, zipfile.ZIP_DEFLATED),
        ("script.pth", {"x/constants.pkl": b"", "x/code/a.py": b""}, zipfile.ZIP_STORED),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            for member, data in (members | extra).items():
                archive.writestr(member, data)
    with pytest.raises(ConfigurationError, match="a compressed archive"):
        state_dicts.read(tmp_path / "packed.pth")
    with pytest.raises(ConfigurationError, match="TorchScript archive holds code"):
        state_dicts.read(tmp_path / "script.pth")


# ---- locating and staging --------------------------------------------------------------------------------


def _located(path: Path) -> weights.Located:
    located = weights.locate("net", str(path))
    assert isinstance(located, weights.Located), located
    return located


def test_a_file_of_ones_own_is_known_by_its_hash(tmp_path: Path, good: bytes, publish: Callable[..., Entry]) -> None:
    publish(b"something else")
    (tmp_path / "mine.pth").write_bytes(good)
    located = _located(tmp_path / "mine.pth")
    assert (located.sha256, located.bytes, located.trust) == (sha256(good).hexdigest(), len(good), "own")
    assert _same(weights.load_state_dict(located), _parameters())


def test_in_a_folder_the_hash_must_fit(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(good)
    (tmp_path / FILE).write_bytes(good)
    assert _located(tmp_path).trust == "published"
    weights.fetch("net", folder=tmp_path)
    assert _located(tmp_path).trust == "locked"
    monkeypatch.setenv("QUALITYGATE_WEIGHTS", str(tmp_path))
    assert weights.locate("net") == _located(tmp_path)

    publish(b"something else")
    reason = weights.locate("net", str(tmp_path))
    assert isinstance(reason, str)
    assert "is refused: its sha256 begins" in reason
    accepted = weights.locate("net", str(tmp_path), accept_new_hash=True)
    assert isinstance(accepted, weights.Located)
    assert accepted.trust == "own"

    publish()
    (tmp_path / FILE).write_bytes(_saved({"a": torch.ones(1)}))
    assert "pinned in weights.lock" in str(weights.locate("net", str(tmp_path)))


def test_what_is_absent_is_a_reason_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "run 'qualitygate weights fetch musiq-koniq'" in str(weights.locate("musiq"))
    assert "run 'qualitygate weights fetch maniqa-koniq --accept-new-hash'" in str(weights.locate("maniqa-koniq"))
    assert "no MANIQA_PIPAL-ae6d356b.pth in" in str(weights.locate("maniqa", str(tmp_path)))
    assert "doesn't exist" in str(weights.locate("maniqa", str(tmp_path / "nowhere")))
    (tmp_path / "ckpt_koniq10k.pt").write_bytes(b"x")
    assert "holds the weights of maniqa-koniq" in str(weights.locate("musiq", str(tmp_path / "ckpt_koniq10k.pt")))
    assert "scheme 'https' isn't supported" in str(weights.locate("musiq", "https://example.org/x.pth"))
    monkeypatch.setenv("QUALITYGATE_WEIGHTS", "s3://KEY:SECRET@bucket/w")
    reason = str(weights.locate("musiq"))
    assert "holds credentials" in reason
    assert "SECRET" not in reason


def test_a_file_is_converted_once_and_mapped_from_then_on(
    tmp_path: Path,
    home: Path,
    good: bytes,
    publish: Callable[..., Entry],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(good)
    path = tmp_path / "mine.pth"
    path.write_bytes(good)
    located = _located(path)
    with caplog.at_level(logging.INFO, logger="qualitygate"):
        first = weights.load_state_dict(located)
    assert "staged net: 3 tensors" in caplog.text
    staged = home / "staged" / f"{located.sha256}.safetensors"
    assert weights.stage(located) == staged
    before = staged.stat()

    path.unlink()  # what is staged is enough
    monkeypatch.setattr(staging, "_convert", lambda *_: pytest.fail("converted twice"))
    second = weights.load_state_dict(located)
    assert _same(first, second)
    assert _same(second, _parameters())
    assert staged.stat() == before
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(staged) in maps.read_text()

    # The mapping is private: what one process writes stays its own.
    second["layer.weight"].zero_()
    assert _same(weights.load_state_dict(located), _parameters())
    assert not _left_over(tmp_path)


def test_of_several_at_once_one_converts(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(good)
    (tmp_path / "mine.pth").write_bytes(good)
    located = _located(tmp_path / "mine.pth")
    converted: list[Path] = []
    convert = staging._convert

    def slow(found: weights.Located, target: Path) -> None:
        converted.append(target)
        time.sleep(0.3)
        convert(found, target)

    monkeypatch.setattr(staging, "_convert", slow)
    threads = [threading.Thread(target=weights.stage, args=(located,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert converted == [weights.stage(located)]


def test_torch_files_are_memory_mapped_while_they_are_converted(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    load = torch.load

    def spy(file: object, **options: object) -> object:
        asked.append(options)
        return load(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", spy)
    (tmp_path / "x.pth").write_bytes(good)
    state_dicts.read(tmp_path / "x.pth")
    assert [(options["weights_only"], options["mmap"]) for options in asked] == [(True, True)]


@pytest.mark.parametrize("how", ["replaced", "rewritten"])
def test_a_file_swapped_after_it_was_checked_is_noticed(
    tmp_path: Path, home: Path, good: bytes, publish: Callable[..., Entry], how: str
) -> None:
    publish(good)
    path = tmp_path / "mine.pth"
    path.write_bytes(good)
    located = _located(path)
    other = good[:-1] + b"?"
    if how == "replaced":
        (tmp_path / "new").write_bytes(other)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(other)
    heads = f"was {located.sha256[:12]}..., now it is {sha256(other).hexdigest()[:12]}"
    with pytest.raises(ConfigurationError, match=rf"mine\.pth' has changed since it was checked: its sha256 {heads}"):
        weights.load_state_dict(located)
    assert not list(home.rglob("*.safetensors"))
    assert not _left_over(tmp_path)
    assert _located(path).sha256 == sha256(other).hexdigest()


def test_a_hash_is_remembered_only_while_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert weights_transfer.hash_of(path).sha256 == sha256(b"one").hexdigest()
    path.write_bytes(b"two")  # same size, perhaps within the same tick of the clock
    assert weights_transfer.hash_of(path).sha256 == sha256(b"two").hexdigest()

    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    read: list[str] = []
    honest = weights_transfer._hash
    monkeypatch.setattr(weights_transfer, "_hash", lambda file: (read.append(file), honest(file))[1])
    assert weights_transfer.hash_of(path) == weights_transfer.hash_of(path)
    assert len(read) == 1


def test_a_damaged_staged_file_is_made_anew(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], caplog: pytest.LogCaptureFixture
) -> None:
    publish(good)
    (tmp_path / "mine.pth").write_bytes(good)
    located = _located(tmp_path / "mine.pth")
    staged = weights.stage(located)
    content = bytearray(staged.read_bytes())
    content[-1] ^= 1
    staged.write_bytes(content)
    assert _same(weights.load_state_dict(located), _parameters())
    assert "is damaged and made anew" in caplog.text


def test_weights_that_are_on_another_machine_only(tmp_path: Path, publish: Callable[..., Entry]) -> None:
    publish()
    elsewhere = weights.Located(name="net", path="/elsewhere/x.pth", sha256="0" * 64, bytes=1, trust="own")
    with pytest.raises(ConfigurationError, match="isn't on this machine: put the weights where every node finds them"):
        weights.load_state_dict(elsewhere)


def test_tied_tensors_and_views_are_staged(tmp_path: Path, publish: Callable[..., Entry]) -> None:
    publish()
    shared = torch.arange(12.0)
    expected = {"a": shared, "b": shared, "c": shared.reshape(3, 4).T, "d": shared[3:5]}
    (tmp_path / "mine.pth").write_bytes(_saved(expected))
    assert _same(weights.load_state_dict(_located(tmp_path / "mine.pth")), expected)


def test_the_cache_falls_back_to_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = weights_manifest.cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="can be written to by others"):
        weights_manifest.cache_folder()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """s3://bucket on a local folder, through both clients, and what was opened there."""
    import pyarrow.fs
    from obstore.store import LocalStore

    from qualitygate.tables import reading, stores

    (tmp_path / "bucket").mkdir()
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    opened: list[str] = []

    class Counting:
        def open_input_stream(self, path: str) -> object:
            opened.append(path)
            return store.open_input_stream(path)

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

    monkeypatch.setattr(reading, "_file_system", lambda _root: Counting())
    monkeypatch.setattr(stores, "open_store", lambda root, _timeout: LocalStore(tmp_path / stores.address(root).netloc))
    return tmp_path / "bucket", opened


@pytest.mark.parametrize("place", ["s3://bucket/w/", f"s3://bucket/w/{FILE}", "s3://bucket/w?endpoint_override=x"])
def test_remote_weights_are_downloaded_once_a_node(
    bucket: tuple[Path, list[str]], good: bytes, publish: Callable[..., Entry], place: str
) -> None:
    publish(good)
    folder, opened = bucket
    (folder / "w").mkdir()
    (folder / "w" / FILE).write_bytes(good)
    located = weights.locate("net", place)
    assert isinstance(located, weights.Located)
    assert located == weights.locate("net", place)
    assert _same(weights.load_state_dict(located), _parameters())
    assert opened == [f"bucket/w/{FILE}"]

    # A node that hasn't located it downloads it by itself and checks that it is the same.
    Path(located.path).unlink()
    weights.stage(located).unlink()
    assert _same(weights.load_state_dict(located), _parameters())
    assert len(opened) == 2
    weights.stage(located).unlink()
    (folder / "w" / FILE).write_bytes(good + b"?")
    with pytest.raises(ConfigurationError, match="has changed since it was checked"):
        weights.load_state_dict(located)


def test_remote_weights_that_are_wrong_or_absent(
    bucket: tuple[Path, list[str]], good: bytes, publish: Callable[..., Entry], tmp_path: Path
) -> None:
    publish(b"something else")
    folder, _ = bucket
    assert "doesn't exist" in str(weights.locate("net", "s3://bucket/none"))
    (folder / FILE).write_bytes(good)
    assert "is refused: its sha256 begins" in str(weights.locate("net", "s3://bucket"))
    assert isinstance(weights.locate("net", f"s3://bucket/{FILE}"), weights.Located)

    publish(good)
    assert weights.fetch("net", source="s3://bucket", folder=tmp_path / "w").downloaded
    assert weights.read_lock(str(tmp_path / "w"))["net"]["from"] == f"s3://bucket/{FILE}"
    with pytest.raises(ConfigurationError, match="no such object"):
        weights.fetch("net", source="s3://bucket/none", folder=tmp_path / "v")
    with pytest.raises(ConfigurationError, match="fetched into a local folder"):
        weights.fetch("net", folder="s3://bucket/w")


# ---- the verbs -------------------------------------------------------------------------------------------


def _call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", *(str(argument) for argument in arguments)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_list_fetch_and_verify_from_the_command_line(
    tmp_path: Path, good: bytes, publish: Callable[..., Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    (tmp_path / "x.pth").write_bytes(good)
    folder = tmp_path / "w"
    assert _call("fetch", "net", "--from", tmp_path / "x.pth", "--folder", folder) == 2
    assert "--accept-new-hash" in capsys.readouterr().err
    assert _call("verify", "--folder", folder) == 2
    assert "holds no weights" in capsys.readouterr().err
    assert _call("verify", "net", "--folder", folder) == 2
    assert "net: absent; run 'qualitygate weights fetch net'" in capsys.readouterr().err

    assert _call("fetch", "net", "--from", tmp_path / "x.pth", "--folder", folder, "--accept-new-hash") == 0
    assert f"net: fetched, {len(good):,} bytes, sha256 {sha256(good).hexdigest()}" in capsys.readouterr().out
    assert _call("fetch", "net", "--folder", folder) == 0
    assert "there already" in capsys.readouterr().out
    assert _call("verify", "--folder", folder) == 0
    assert f"net: ok, sha256 {sha256(good).hexdigest()}" in capsys.readouterr().out
    assert _call("list", "--folder", folder, "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["present"], listed["locked"], listed["bytes"]) == (True, True, len(good))
    assert (listed["license"], listed["where"]) == ("none", str(folder / FILE))

    (folder / FILE).write_bytes(good[:-1])
    assert _call("verify", "--folder", folder) == 2
    said = capsys.readouterr()
    assert "is pinned in weights.lock" in said.out
    assert said.err.count("\n") == 1


def test_verify_opens_and_wants_a_pin(tmp_path: Path, publish: Callable[..., Entry]) -> None:
    content = _saved({"a": torch.ones(1), "b": Runs(str(tmp_path / "ran"), "system")})
    publish(content)
    (tmp_path / FILE).write_bytes(content)
    (found,) = weights.verify(folder=tmp_path)
    assert "not in weights.lock" in str(found.problem)
    pinned = {"file": FILE, "sha256": sha256(content).hexdigest()}
    (tmp_path / "weights.lock").write_text(json.dumps({"version": 1, "weights": {"net": pinned}}))
    (found,) = weights.verify("net", folder=tmp_path)
    assert "asks for posix.system" in str(found.problem)
    assert not (tmp_path / "ran").exists()


def test_the_published_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("list", "--folder", tmp_path / "absent") == 0
    shown = capsys.readouterr().out
    for name in weights_manifest.manifest():
        assert name in shown
    assert not (tmp_path / "absent").exists()

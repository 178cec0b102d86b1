"""Encoders from an https server, as people put them on the web: copied once, checked, never a part."""

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.sensor import SensorSpec

asked: list[str] = []


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        asked.append(self.path)


def certificate(folder: Path) -> Path:
    """Write a key and a certificate of 127.0.0.1 into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and its URL; certificates are checked against the server's own, copies go to a cache of the test."""
    folder = tmp_path / "served"
    folder.mkdir()
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    asked.clear()
    yield folder, f"https://127.0.0.1:{server.server_port}/model"
    server.shutdown()
    server.server_close()


@pytest.fixture
def encoder(make_config: Callable[..., EncoderConfig]) -> Encoder:
    return Encoder(make_config(), torch.Generator().manual_seed(0)).eval()


def weights_asked() -> int:
    return sum(path.endswith(".safetensors") for path in asked)


def test_a_url_gives_the_same_embeddings(
    served: tuple[Path, str], encoder: Encoder, make_batch: Callable[..., Batch], specs: dict[str, SensorSpec]
) -> None:
    folder, url = served
    encoder.save(folder / "model")
    batch = make_batch(specs["radar"])
    found = Encoder.load(url).encode(batch)["radar"].pooled
    assert torch.equal(found, encoder.encode(batch)["radar"].pooled)
    Encoder.load(url + "/")
    assert weights_asked() == 1  # the second time the copy served
    next(encoder.parameters()).data.add_(1)
    encoder.save(folder / "model")
    changed = Encoder.load(url).encode(batch)["radar"].pooled
    assert torch.equal(changed, encoder.encode(batch)["radar"].pooled)
    assert weights_asked() == 2


def test_a_copy_serves_alone_and_says_so(served: tuple[Path, str], encoder: Encoder, tmp_path: Path) -> None:
    folder, url = served
    encoder.save(folder / "model")
    Encoder.load(url)
    (folder / "model" / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"cannot be reached \(.*\); the copy in .* is used"):
        Encoder.load(url)
    (copy,) = (tmp_path / "cache").rglob("model.safetensors")
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cannot read .*config.json"):
        Encoder.load(url)


def test_weights_that_are_not_those_of_the_configuration_are_refused(
    served: tuple[Path, str], encoder: Encoder, tmp_path: Path
) -> None:
    folder, url = served
    encoder.save(folder / "model")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\1\1\1")
    with pytest.raises(InputError, match=r"has SHA-256 .*, config.json says"):
        Encoder.load(url)
    weights.unlink()
    with pytest.raises(InputError, match=r"cannot read .*model.safetensors \(File not found\)"):
        Encoder.load(url)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_other_schemes_and_too_large_files_are_refused(
    served: tuple[Path, str], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    with pytest.raises(InputError, match="scheme 'http' is not known"):
        Encoder.load("http://127.0.0.1/model")
    encoder.save(folder / "model")
    monkeypatch.setattr("models.remote.LARGEST", {"config.json": 2**24, "model.safetensors": 1000})
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        Encoder.load(url)

"""ui_path.py: a page of one's own is served, whole and alone."""

import base64
import hashlib
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nanochat.common.errors import ConfigError
from nanochat.server import ui_path
from nanochat.server.ui_path import own_page_routes


def client(path: Path) -> TestClient:
    app = FastAPI()
    app.router.routes.extend(own_page_routes(path))
    return TestClient(app)


@pytest.mark.req("FR-049")
def test_a_folder_is_served_without_what_is_hidden_strange_or_elsewhere(tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "js").mkdir(parents=True)
    (page / ".git").mkdir()
    (page / "index.html").write_text("<script src='js/app.js'></script>")
    (page / "js" / "app.js").write_text("run()")
    (page / ".git" / "config.txt").write_text("secret")
    (page / ".env.json").write_text("secret")
    (page / "keys.pem").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (page / "link.txt").symlink_to(tmp_path / "outside.txt")
    found = client(page)
    assert found.get("/").text == found.get("/index.html").text
    assert found.get("/js/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for path in (".git/config.txt", ".env.json", "keys.pem", "link.txt", "..%2foutside.txt", "js"):
        assert found.get(f"/{path}").status_code == 404
    policy = found.get("/").headers["content-security-policy"]
    assert "script-src 'self';" in policy
    etag = {"If-None-Match": found.get("/").headers["etag"]}
    assert found.get("/", headers=etag).status_code == 304


@pytest.mark.req("FR-049")
def test_one_file_as_karpathys_runs_the_scripts_that_are_in_it_and_no_others(
    tmp_path: Path,
) -> None:
    script = "const API_URL = `http://${window.location.hostname}:8000`;"
    (tmp_path / "ui.html").write_text(f"<style>p{{}}</style><script>{script}</script>")
    (tmp_path / "logo.svg").write_text("<svg/>")
    (tmp_path / "other.txt").write_text("not asked for")
    found = client(tmp_path / "ui.html")
    page = found.get("/")
    assert "const API_URL = '';" in page.text
    digest = base64.b64encode(hashlib.sha256(b"const API_URL = '';").digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"].split(";")[1]
    assert found.get("/logo.svg").headers["content-type"] == "image/svg+xml"
    assert found.get("/other.txt").status_code == 404


def digest_of(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@pytest.mark.req("FR-049")
def test_handlers_in_attributes_run_too_and_are_hashed_as_a_browser_reads_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "ui.html").write_bytes(
        b"<button OnClick='send()'>Send</button><textarea onkeydown=\"a &amp;&amp; b(&quot;x&quot;)"
        b"\"></textarea><p onclick='send()' once></p>\r\n<script type=module>\r\nlet a = '<b>';\r\n"
        b"</script><script src=a.js onerror=late()></script>"
    )
    policy = client(tmp_path / "ui.html").get("/").headers["content-security-policy"]
    script, *handlers = map(digest_of, ("\nlet a = '<b>';\n", "send()", 'a && b("x")', "late()"))
    assert f"script-src 'self' {script} 'unsafe-hashes' {' '.join(handlers)};" in policy
    (tmp_path / "ui.html").write_text("<p>onclick='x()'</p>")
    policy = client(tmp_path / "ui.html").get("/").headers["content-security-policy"]
    assert "script-src 'self';" in policy


def test_mistakes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="expected an HTML file, or a folder with index.html"):
            own_page_routes(path)
    (tmp_path / "index.html").write_text("x" * 100)
    monkeypatch.setattr(ui_path, "MAX_BYTES", 99)
    with pytest.raises(ConfigError, match="is it the right folder"):
        own_page_routes(tmp_path)
    monkeypatch.setattr(ui_path, "MAX_FILES", 0)
    with pytest.raises(ConfigError, match="too many files"):
        (tmp_path / "b.txt").write_text("")
        own_page_routes(tmp_path)

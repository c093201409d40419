"""The page: served whole, with nothing in it that could run what a model writes."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import nanochat
from nanochat.server.app import ServedModel, create_app
from nanochat.server.page import PAGE_FILES, page_routes
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine

WEB = Path(nanochat.__file__).parent / "web"


class Page(HTMLParser):
    """The tags of the page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed((WEB / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.fixture
def client(tiny_tokenizer: Tokenizer) -> TestClient:
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=100)
    app: FastAPI = create_app(FakeEngine(), served)
    return TestClient(app, base_url="http://localhost")


@pytest.mark.req("FR-049")
def test_every_file_is_served_with_its_type_and_kept_by_browsers(client: TestClient) -> None:
    assert {name for name, _ in PAGE_FILES.values()} == {path.name for path in WEB.iterdir()}
    assert [route.path for route in page_routes()] == list(PAGE_FILES)
    for path, (name, media_type) in PAGE_FILES.items():
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == media_type
        assert response.content == (WEB / name).read_bytes()
        again = client.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert client.post("/", json={}).status_code == 405


@pytest.mark.req("FR-062")
def test_nothing_inline_and_nothing_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert tag != "style"
        for name in ("src", "href"):
            if value := attributes.get(name):
                assert f"/{value}" in PAGE_FILES, value
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "module", "src": "chat.js"}]
    for name in ("index.html", "chat.css", "chat.js"):
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]", (WEB / name).read_text()), name


@pytest.mark.req("FR-062")
def test_text_is_only_ever_text() -> None:
    source = (WEB / "chat.js").read_text()
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 "new Function", "setAttribute", "createContextualFragment", "DOMParser",
                 "import(", "localStorage")  # fmt: skip
    assert [word for word in forbidden if word in source] == []
    assert "textContent" in source


def test_what_the_script_looks_for_is_there_and_labelled(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'element\("([\w-]+)"\)', (WEB / "chat.js").read_text())
    assert set(wanted) <= set(ids)
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    for tag, attributes in page.tags:
        if tag in ("input", "textarea"):
            assert attributes["id"] in labelled
        if tag == "img":
            assert "alt" in attributes
    classes = set(re.findall(r"\.([a-z][\w-]*)", (WEB / "chat.css").read_text()))
    used = {word for _, attributes in page.tags for word in (attributes.get("class") or "").split()}
    made = set(
        re.findall(r"[\w-]+", " ".join(re.findall(r'"([^"\n]*)"', (WEB / "chat.js").read_text())))
    )
    assert used <= classes | {"brand-mark", "welcome-mark"}
    assert classes - used <= made, classes - used - made


def test_the_script_is_valid_javascript() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not installed; the page itself needs no build")
    done = subprocess.run(
        [node, "--input-type=module", "--check"],
        input=(WEB / "chat.js").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()

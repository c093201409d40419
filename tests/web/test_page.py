"""The page's files: served whole, with nothing in them that could run what a model writes."""

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
SCRIPTS = sorted(WEB.glob("*.js"))
STYLES = sorted(WEB.glob("*.css"))


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
    assert scripts == [{"src": "first.js"}, {"type": "module", "src": "app.js"}]
    for path in (WEB / "index.html", *SCRIPTS, *STYLES):
        found = re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]", path.read_text())
        assert not found or found[0].startswith("http://www.w3"), path.name  # the name of SVG


@pytest.mark.req("FR-062")
def test_text_is_only_ever_text() -> None:
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 "new Function", "createContextualFragment", "DOMParser", "srcdoc", "import(",
                 "cookie")  # fmt: skip
    alone = {
        r"\.setAttribute\(": {"dom.js"},
        r"\bsessionStorage\b": {"api.js"},
        r"\blocalStorage\b": {"keep.js", "first.js"},
        r"\.href = ": {"link.js", "transfer.js"},
        r"\bfetch\(": {"api.js"},
    }
    for path in SCRIPTS:
        code = re.sub(r"^ *(//|\*|/\*).*$", "", path.read_text(), flags=re.MULTILINE)
        assert [word for word in forbidden if word in code] == [], path.name
        for pattern, names in alone.items():
            assert path.name in names or not re.search(pattern, code), f"{pattern} in {path.name}"


def test_each_script_says_what_it_is_for_and_is_small() -> None:
    for path in SCRIPTS:
        text = path.read_text()
        head = text[: text.index("\n\n")] if "\n\n" in text else text
        assert head.startswith("// "), path.name
        assert "in:" in head and "out:" in head and "who calls:" in head, path.name
        assert len(text.splitlines()) <= 350, path.name


def test_every_script_is_used_and_what_it_imports_is_there() -> None:
    imports = {
        path.name: set(re.findall(r'from "\./([\w.]+)"', path.read_text())) for path in SCRIPTS
    }
    names = set(imports)
    for name, wanted in imports.items():
        assert wanted <= names, name
    reached = {"app.js", "first.js"}
    while more := {wanted for name in reached for wanted in imports[name]} - reached:
        reached |= more
    assert reached == names
    for path in SCRIPTS:
        for imported, name in re.findall(
            r'import \{([^}]+)\} from "\./([\w.]+)"', path.read_text()
        ):
            exported = set(re.findall(r"export (?:async )?(?:function\*?|class|const) (\w+)",
                                      (WEB / name).read_text()))  # fmt: skip
            wanted = {word.strip() for word in imported.split(",") if word.strip()}
            assert wanted <= exported, f"{path.name} wants {wanted - exported} of {name}"
            code = path.read_text()
            assert all(len(re.findall(rf"\b{word}\b", code)) > 1 for word in wanted), path.name


def test_what_the_scripts_look_for_is_there_and_labelled(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {
        name for path in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())
    }
    assert wanted <= set(ids)
    labelled = {
        attributes["for"] for tag, attributes in page.tags if tag == "label" and "for" in attributes
    }
    for tag, attributes in page.tags:
        if tag in ("input", "textarea", "select") and attributes.get("type") != "radio":
            assert attributes["id"] in labelled or "aria-label" in attributes
        if tag == "img":
            assert "alt" in attributes
        if tag == "button":
            assert attributes.get("type") in ("button", "submit")


def test_every_class_has_a_style_and_every_style_a_class(page: Page) -> None:
    styles = "\n".join(path.read_text() for path in STYLES)
    classes = set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/", "", styles, flags=re.DOTALL)))
    used = {word for _, attributes in page.tags for word in (attributes.get("class") or "").split()}
    strings = " ".join(
        re.findall(r'["`]([^"`\n]*)["`]', "\n".join(path.read_text() for path in SCRIPTS))
    )
    made = set(re.findall(r"[\w-]+", strings))
    built = {"hl-", "level-", "align-"}  # put together from a part and a kind
    unmade = {
        name for name in classes - used - made if not any(name.startswith(part) for part in built)
    }
    assert unmade == set()
    assert used - classes - {"close"} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_javascript(path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not installed; the page itself needs no build")
    done = subprocess.run(
        [node, "--input-type=module", "--check"],
        input=path.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()

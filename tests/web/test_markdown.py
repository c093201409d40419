"""Markdown, read and built in the browser: what becomes of it; it may grow; it is quick."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.conftest import View

pytestmark = pytest.mark.req("FR-049")

RENDER = """async (texts) => {
  const { Renderer } = await import("/render.js");
  return texts.map((text) => {
    const node = document.createElement("div");
    new Renderer(node).update(text);
    return node.innerHTML;
  });
}"""

# What is only for looks or for screen readers; a link's address is kept.
LOOKS = re.compile(r' (?:class|rel|target|title|tabindex|role|aria-label)="[^"]*"| class=""')

CASES = [
    ("", ""),
    ("plain", "<p>plain</p>"),
    ("a\nb", "<p>a<br>b</p>"),
    ("a\n\nb", "<p>a</p><p>b</p>"),
    ("  indented\n      more", "<p>indented<br>more</p>"),
    # headings: the page has levels one and two
    ("# One", "<h3>One</h3>"),
    ("## Two ##", "<h4>Two</h4>"),
    ("###### Six", "<h6>Six</h6>"),
    ("####### Seven", "<p>####### Seven</p>"),
    ("#hashtag", "<p>#hashtag</p>"),
    ("# C#", "<h3>C#</h3>"),
    ("# a *b*", "<h3>a <em>b</em></h3>"),
    ("text\n# Head\nmore", "<p>text</p><h3>Head</h3><p>more</p>"),
    ("text\n---", "<p>text</p><hr>"),
    ("---", "<hr>"),
    ("* * *", "<hr>"),
    # emphasis
    ("*a* _b_ **c** __d__", "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong></p>"),
    ("***x***", "<p><em><strong>x</strong></em></p>"),
    ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    ("snake_case_name", "<p>snake_case_name</p>"),
    ("2 * 3 * 4", "<p>2 * 3 * 4</p>"),
    ("un*frigging*believable", "<p>un<em>frigging</em>believable</p>"),
    ("~~gone~~ ~not~", "<p><s>gone</s> ~not~</p>"),
    ("**open", "<p>**open</p>"),
    ("\\*no\\*", "<p>*no*</p>"),
    ("**Note:** text", "<p><strong>Note:</strong> text</p>"),
    ("**日本**語", "<p><strong>日本</strong>語</p>"),
    # code in a line
    ("`a`", "<p><code>a</code></p>"),
    ("``a`b``", "<p><code>a`b</code></p>"),
    ("`` ` ``", "<p><code>`</code></p>"),
    ("`*a*`", "<p><code>*a*</code></p>"),
    ("`open", "<p>`open</p>"),
    ("\\`a`", "<p>`a`</p>"),
    ("`<b>`", "<p><code>&lt;b&gt;</code></p>"),
    # HTML is text
    ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
    ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
    ("a<br>b<br/>c", "<p>a<br>b<br>c</p>"),
    ("&amp; &lt; &copy; &#65; &#x42; &nope; &", "<p>&amp; &lt; © A B &amp;nope; &amp;</p>"),
    ("&#0; &#xD800; &#x110000;", "<p>&amp;#0; &amp;#xD800; &amp;#x110000;</p>"),
    # links
    ("[a](https://x.org)", '<p><a href="https://x.org/">a</a></p>'),
    ('[a](<https://x.org/b c> "t")', '<p><a href="https://x.org/b%20c">a</a></p>'),
    ("[a](https://x.org/(b))", '<p><a href="https://x.org/(b)">a</a></p>'),
    ("[**b**](https://x.org)", '<p><a href="https://x.org/"><strong>b</strong></a></p>'),
    ("<https://x.org>", '<p><a href="https://x.org/">https://x.org</a></p>'),
    ("see https://x.org/a_b.", '<p>see <a href="https://x.org/a_b">https://x.org/a_b</a>.</p>'),
    ("(https://x.org/a)", '<p>(<a href="https://x.org/a">https://x.org/a</a>)</p>'),
    ("**https://x.org**",
     '<p><strong><a href="https://x.org/">https://x.org</a></strong></p>'),
    ("[https://x.org](https://y.org)",
     '<p><a href="https://y.org/"><span>https://x.org</span></a></p>'),
    ("mailto:a@b.org", '<p><a href="mailto:a@b.org">mailto:a@b.org</a></p>'),
    ("[a](javascript:alert(1))", "<p><span>a</span></p>"),
    ("[a](relative.html)", "<p><span>a</span></p>"),
    ("[a](//x.org)", "<p><span>a</span></p>"),
    ("[a] (b) [c]", "<p>[a] (b) [c]</p>"),
    ("[a](open", "<p>[a](open</p>"),
    ("![cat](https://x.org/c.png)", '<p><a href="https://x.org/c.png">cat</a></p>'),
    ("![](https://x.org/c.png)", '<p><a href="https://x.org/c.png">https://x.org/c.png</a></p>'),
    ("[![i](https://x.org/c.png)](https://y.org)", '<p><a href="https://y.org/">i</a></p>'),
    # lists
    ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
    ("* a\n+ b", "<ul><li>a</li></ul><ul><li>b</li></ul>"),
    ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
    ("3) a", '<ol start="3"><li>a</li></ol>'),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    ("- a\n- b\n\ntext", "<ul><li>a</li><li>b</li></ul><p>text</p>"),
    ("- a\n  - b\n    - c\n- d",
     "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"),
    ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    ("1. a\n    - b", "<ol><li>a<ul><li>b</li></ul></li></ol>"),
    ("- a\n\t- b", "<ul><li>a<ul><li>b</li></ul></li></ul>"),
    ("- a\nlazy", "<ul><li>a<br>lazy</li></ul>"),
    ("text\n- a", "<p>text</p><ul><li>a</li></ul>"),
    ("born in\n1984. It was", "<p>born in<br>1984. It was</p>"),
    ("- a\n\n  b", "<ul><li><p>a</p><p>b</p></li></ul>"),
    ("- [ ] a\n- [x] b", "<ul><li><span></span>a</li><li><span>✓</span>b</li></ul>"),
    # quotes
    ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
    ("> a\nlazy", "<blockquote><p>a<br>lazy</p></blockquote>"),
    ("> a\n\nb", "<blockquote><p>a</p></blockquote><p>b</p>"),
    ("> - a\n>   - b", "<blockquote><ul><li>a<ul><li>b</li></ul></li></ul></blockquote>"),
    (">> a", "<blockquote><blockquote><p>a</p></blockquote></blockquote>"),
    # tables
    ("| a | b |\n|---|--:|\n| 1 | 2 |",
     "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
     "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"),
    ("a|b\n-|-\n*x*|y \\| z\nend",
     "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
     "<tbody><tr><td><em>x</em></td><td>y | z</td></tr></tbody></table></div><p>end</p>"),
    ("| a | b |\n|---|\n", "<p>| a | b |<br>|---|</p>"),
    ("| a | b |\n|---|---|\n| 1 |",
     "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
     "<tbody><tr><td>1</td><td></td></tr></tbody></table></div>"),
]  # fmt: skip

CODE = [
    ("```\na\n```", "text", "a"),
    ("```py\nprint(1)\n```", "py", "print(1)"),
    ("~~~\n```\n~~~", "text", "```"),
    ("````\n```\n````", "text", "```"),
    ("```js\nopen", "js", "open"),
    ("```\n\n\ta\n```", "text", "\n\ta"),
    ("  ```\n  a\n    b\n  ```", "text", "a\n  b"),
    (
        "- x\n  ```py\n  def f():\n      pass\n\n  f()\n  ```\n- y",
        "py",
        "def f():\n    pass\n\nf()",
    ),
    ("text\n```c\nint x;\n```", "c", "int x;"),
    ("```html\n<img src=x onerror=xss()>\n```", "html", "<img src=x onerror=xss()>"),
]


@pytest.fixture(scope="module")
def kitchen(chromium: Any, theatre: Any) -> Iterator[View]:
    """A page whose modules are called one by one."""
    page = chromium.new_page()
    view = View(page, theatre.url)
    view.open()
    yield view
    page.close()


def test_each_piece_of_markdown_becomes_what_it_says(kitchen: View) -> None:
    shown = kitchen.page.evaluate(RENDER, [text for text, _ in CASES])
    wrong = [
        (text, LOOKS.sub("", html), expected)
        for (text, expected), html in zip(CASES, shown, strict=True)
        if LOOKS.sub("", html) != expected
    ]
    assert wrong == []


def test_code_is_shown_as_it_is_with_its_language(kitchen: View) -> None:
    shown = kitchen.page.evaluate(
        """async (texts) => {
          const { Renderer } = await import("/render.js");
          return texts.map((text) => {
            const node = document.createElement("div");
            new Renderer(node).update(text);
            return [node.querySelector(".code-language").textContent,
                    node.querySelector("pre").textContent, node.querySelectorAll("figure").length];
          });
        }""",
        [text for text, _, _ in CODE],
    )
    assert shown == [[language, code, 1] for _, language, code in CODE]


def test_text_that_grows_letter_by_letter_ends_as_if_it_came_whole(kitchen: View) -> None:
    text = "\n\n".join([*(text for text, _ in CASES), *(text for text, _, _ in CODE)])
    for size in (1, 7):
        grown, whole, stood = kitchen.page.evaluate(
            """async ([text, size]) => {
              const { Renderer } = await import("/render.js");
              const [a, b] = [document.createElement("div"), document.createElement("div")];
              const renderer = new Renderer(a);
              let first = null;
              for (let end = 0; end < text.length + size; end += size) {
                renderer.update(text.slice(0, end));
                if (end > 20 && first === null) first = a.firstChild;
              }
              new Renderer(b).update(text);
              return [a.innerHTML, b.innerHTML, a.firstChild === first];
            }""",
            [text, size],
        )
        assert grown == whole
        assert stood, "a finished block was built again"


HOSTILE = {
    "brackets": "[" * 20_000,
    "links": "[](" * 7_000,
    "images": "![" * 10_000,
    "emphasis": "*a **b " * 3_000,
    "letters between stars": "a*" * 10_000,
    "stars": "*" * 20_000,
    "underscores": "_a" * 10_000,
    "ticks": "`a``" * 5_000,
    "quotes": ">" * 20_000,
    "lists": "- " * 10_000,
    "deep list": "".join(" " * (2 * depth) + "- x\n" for depth in range(140)),
    "spaces": "#" + " " * 20_000 + "x",
    "blank": " \n" * 10_000,
    "pipes": "|" * 10_000 + "\n" + "|-" * 5_000,
    "table": "|a|b|\n|-|-|\n" + "|1|2|\n" * 1_500,
    "entities": "&#" * 10_000,
    "angles": "<http:" * 3_300,
    "addresses": "https://a" * 2_200,
    "target": "[a](" + " " * 20_000,
    "parentheses": "[a](" + "(" * 20_000,
    "nested": "[a" * 5_000 + "](b)" * 5_000,
    "comment in code": "```js\n" + "/*" * 10_000,
    "quotes in code": "```py\n" + '"""' * 6_000,
    "tags in code": "```html\n" + "<a" * 10_000,
}


def test_no_text_takes_long(kitchen: View) -> None:
    times = kitchen.page.evaluate(
        """async (texts) => {
          const { Renderer } = await import("/render.js");
          return texts.map((text) => {
            const begun = performance.now();
            new Renderer(document.createElement("div")).update(text);
            return performance.now() - begun;
          });
        }""",
        list(HOSTILE.values()),
    )
    slow = {name: round(ms) for name, ms in zip(HOSTILE, times, strict=True) if ms > 1500}
    assert slow == {}, "milliseconds for 20,000 characters"


HIGHLIGHT = """async ([code, language]) => {
  const { languageOf, pieces } = await import("/highlight.js");
  return [...pieces(code, languageOf(language))];
}"""

COLOURS = [
    ("python", "def f(x): # no", ["keyword def", "call f", "comment # no"]),
    ("py", 's = f"""a\nb""" + \'c\'', ['string f"""a\nb"""', "string 'c'"]),
    ("py", "@wraps\nx = None or 0x1F", 
     ["name @wraps", "constant None", "keyword or", "number 0x1F"]),
    ("js", "const a = `x${1}`; // y", ["keyword const", "string `x${1}`", "comment // y"]),
    ("typescript", "/* a\n b */ 1_000", ["comment /* a\n b */", "number 1_000"]),
    ("json", '{"a": [1, "b", true]}', ['name "a"', "number 1", 'string "b"', "constant true"]),
    ("bash", "echo \"$HOME\" | grep -v x # c",
     ["keyword echo", 'string "$HOME"', "name -v", "comment # c"]),
    ("html", "<a href=\"b\">t</a><!-- c -->",
     ["keyword <a", "name href", 'string "b"', "keyword >", "keyword </a", "keyword >",
      "comment <!-- c -->"]),
    ("css", "a { color: #fff; /* x */ }", ["name color", "number #fff", "comment /* x */"]),
    ("rust", "fn main() { let x = 'a'; }",
     ["keyword fn", "call main", "keyword let", "string 'a'"]),
    ("sql", "SELECT 1 -- x", ["keyword SELECT", "number 1", "comment -- x"]),
    ("yaml", "a: yes # b", ["name a", "constant yes", "comment # b"]),
    ("diff", "@@ 1 @@\n+a\n-b", ["keyword @@ 1 @@", "string +a", "removed -b"]),
]  # fmt: skip


@pytest.mark.parametrize(("language", "code", "expected"), COLOURS, ids=[row[0] for row in COLOURS])
def test_code_is_coloured(kitchen: View, language: str, code: str, expected: list[str]) -> None:
    pieces = kitchen.page.evaluate(HIGHLIGHT, [code, language])
    assert "".join(text for _, text in pieces) == code
    assert [f"{kind} {text}" for kind, text in pieces if kind] == expected


def test_colours_of_growing_code_are_those_of_the_whole(kitchen: View) -> None:
    for _, code, _ in [*COLOURS, ("", "x = '''\n1\n2\n''' + \"\"\"a\n\nb\"\"\"\n# c\nd\n" * 3, [])]:
        for language in ("python", "js", "html", "bash", "unknown"):
            grown, whole = kitchen.page.evaluate(
                """async ([code, language]) => {
                  const { CodeBlock } = await import("/codeblock.js");
                  const [a, b] = [new CodeBlock(language), new CodeBlock(language)];
                  for (let end = 1; end <= code.length; end += 1) a.update(code.slice(0, end));
                  b.update(code);
                  const spans = ({ node }) => [...node.querySelectorAll("code span")].map(
                    (span) => [span.className, span.textContent]);
                  return [[a.node.querySelector("code").textContent, spans(a)],
                          [b.node.querySelector("code").textContent, spans(b)]];
                }""",
                [code, language],
            )
            assert grown == whole
            assert whole[0] == code


def test_parts_of_an_answer_that_used_the_calculator(kitchen: View) -> None:
    def parts(text: str) -> Any:
        return kitchen.page.evaluate(
            'async (text) => (await import("/tools.js")).partsOf(text)', text
        )

    start, end = "<|python_start|>", "<|python_end|>"
    out, over = "<|output_start|>", "<|output_end|>"
    assert parts("a") == [{"kind": "text", "text": "a"}]
    assert parts(f"a{start}1+1") == [
        {"kind": "text", "text": "a"}, {"kind": "call", "expression": "1+1", "result": None},
    ]  # fmt: skip
    assert parts(f"{start}1+1{end}{out}2{over}b{start}x{end}") == [
        {"kind": "call", "expression": "1+1", "result": "2"},
        {"kind": "text", "text": "b"},
        {"kind": "call", "expression": "x", "result": None},
    ]
    assert parts("a <|pyth") == [{"kind": "text", "text": "a "}]
    assert parts("a < b") == [{"kind": "text", "text": "a < b"}]
    assert parts(f"a{over}b") == [{"kind": "text", "text": f"a{over}b"}]


def test_events_of_a_stream_cut_anywhere(kitchen: View) -> None:
    events = kitchen.page.evaluate(
        r"""async () => {
          const { serverSentEvents } = await import("/sse.js");
          const bytes = new TextEncoder().encode(
            ': hello\n\ndata: {"a":"é🦊"}\r\n\r\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]');
          const all = [];
          for (let size = 1; size < 9; size += 1) {
            const body = new ReadableStream({ start(controller) {
              for (let at = 0; at < bytes.length; at += size) {
                controller.enqueue(bytes.slice(at, at + size));
              }
              controller.close();
            } });
            const events = [];
            for await (const data of serverSentEvents(body)) events.push(data);
            all.push(events);
          }
          return all;
        }"""
    )
    assert events == [['{"a":"é🦊"}', "one\ntwo", "[DONE]"]] * 8


def test_branches_of_a_conversation(kitchen: View) -> None:
    shown = kitchen.page.evaluate(
        """async () => {
          const { Tree } = await import("/tree.js");
          const tree = new Tree([["b", "a", 2], ["a", null, 1], ["c", "a", 3], ["d", "b", 4]].map(
            ([id, parent, created]) => ({ id, parent, created })));
          const ids = (leaf) => tree.path(leaf).map(({ id }) => id).join("");
          const seen = [ids("d"), ids("c"), [...tree.siblings("b")], tree.newestLeaf()];
          seen.push(tree.newestLeaf("b"));
          tree.remove("c");
          seen.push(tree.newestLeaf(), tree.size);
          const ring = new Tree([["x", "y"], ["y", "x"]].map(
            ([id, parent]) => ({ id, parent, created: 0 })));
          seen.push(ring.path("x").length, ring.newestLeaf());
          return seen;
        }"""
    )
    assert shown == ["abd", "ac", ["b", "c"], "c", "d", "d", 3, 2, None]
